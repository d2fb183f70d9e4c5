"""The commands that make what the report shows, for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train.config import PRESETS
from train.streams import HEADS, OWN, split_streams


def write_fit(
    store: Mapping[str, Any],
    runs: Path,
    preset: str,
    heads: Sequence[str],
    n_seeds: int,
    settings: Sequence[str],
    *,
    folds: str = "",
) -> str:
    """The ``fit`` that trains some heads.

    Args:
        store: What the runs' config.json tells of it.
        runs: Their folder.
        preset: A key of ``PRESETS``.
        heads: Names.
        n_seeds: Of each head.
        settings: ``KEY=VALUE`` where they differ from the preset.
        folds: As of ``fit --folds``; empty: none.
    """
    words = ["fit"]
    for path in store["paths"]:
        words += ["--store", path]
    for path in store.get("test_paths", ()):
        words += ["--test-store", path]
    words += ["--runs", str(runs), "--preset", preset, "--seeds", str(n_seeds)]
    if set(heads) != set(PRESETS[preset].heads):
        for name in dict.fromkeys(heads):
            words += ["--head", name]
    if folds:
        words += ["--folds", folds]
    for setting in settings:
        is_streams = setting.startswith("streams=")
        words += ["--streams", setting[len("streams=") :]] if is_streams else ["--set", setting]
    return join_command(*words)


def list_changed(head: str, settings: Mapping[str, Any], preset: str) -> tuple[str, ...]:
    """``KEY=VALUE`` of the settings of a head that are not the preset's."""
    usual = asdict(PRESETS[preset].config)
    changed = {key: value for key, value in settings.items() if usual.get(key, value) != value}
    streams = changed.get("streams", OWN)
    if head in HEADS and split_streams(streams) == HEADS[head].streams:
        changed.pop("streams")  # some heads tell their own
    return tuple(f"{key}={value}" for key, value in changed.items())


def join_command(*words: str) -> str:
    """A line for the shell."""
    return "python cli.py " + shlex.join(words)
