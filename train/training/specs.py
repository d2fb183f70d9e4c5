"""Runs to train, a seed and settings each, and which of them one batched model can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from train.config import FitConfig

OWN_SETTINGS: tuple[str, ...] = (
    "lr",
    "class_weights",
    "sampling",
    "dropout",
    "label_smoothing",
    "patience",
    "select",
)
"""Settings in which runs trained together may differ: they change no shape and no batch's size."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a head: what decides it beside the head and the clips."""

    seed: int
    config: FitConfig


def group_specs(specs: Sequence[RunSpec], most: int = 0) -> list[list[RunSpec]]:
    """Sort runs of one head into groups that train together, in order of first appearance.

    Args:
        specs: Any runs.
        most: Runs a group at most; a larger group is cut into parts of nearly equal size. 0: any.
    """
    groups: dict[tuple[object, ...], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(_shared_settings(spec.config), []).append(spec)
    parts = []
    for group in groups.values():
        n_parts = -(-len(group) // most) if most else 1
        size = -(-len(group) // n_parts)
        parts += [group[begin : begin + size] for begin in range(0, len(group), size)]
    return parts


def _shared_settings(config: FitConfig) -> tuple[object, ...]:
    return tuple(value for name, value in asdict(config).items() if name not in OWN_SETTINGS)
