"""The table of heads: what each is made of, which streams it reads, and from which matrices.

A *stream* is what a head reads at each step; a *matrix* is where a store keeps it. Knows no torch:
``train.heads.build`` makes networks of this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from features.contracts import CONTEXT_CHANNELS, FACE_MAP_SHAPE, FACE_VECTOR_SIZE
from features.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
"""Stream or feature matrix -> shape of its values at one step, for example (512, 7, 7)."""

SHAPES: Shapes = MappingProxyType(
    {
        "context_2x2": (CONTEXT_CHANNELS, 2, 2),
        "context_7x7": (CONTEXT_CHANNELS, 7, 7),
        "face": (FACE_VECTOR_SIZE,),
        "face_map": FACE_MAP_SHAPE,
    }
)
"""Feature matrices of a store made with the shipped networks; other stores tell their own."""

FACE_MATRICES: tuple[str, ...] = ("face", "face_map")
"""Feature matrices with a row a face; all others have a row a frame."""

ENSEMBLE = "ensemble"
"""The one head that is no network: it weighs the probabilities of other heads' runs (VI)."""

DEFAULT_NAMES: Mapping[str, str] = MappingProxyType(
    {"streams": "context,face", "members": "caca,conv2d3d"}
)
"""The settings that list names, and their defaults."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a head is made of, and what it reads."""

    kind: str
    """A key of ``train.heads.build.KINDS``, or ``ensemble``."""
    streams: tuple[str, ...] = ("context", "face")
    """What the head reads, in order; empty where a setting says it."""
    context_grid: str = "2x2"
    """The pooling of the context features that the head was published with."""
    layers: tuple[int, int] = (2, 1)
    """Of a cascade: LSTM layers of the first stream, and of each later one."""
    preset: str = ""
    """The preset of ``fit`` that trains the head, if one does."""


HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "face": HeadSpec(kind="single", streams=("face",), preset="table1"),
        "context": HeadSpec(kind="single", streams=("context",), preset="table1"),
        "parallel": HeadSpec(kind="parallel", preset="table1"),
        "concatenated": HeadSpec(kind="concatenated", preset="table1"),
        "caca-a": HeadSpec(kind="cascade", preset="table1"),
        "caca-b": HeadSpec(kind="cascade", streams=("face", "context"), preset="table1"),
        "caca": HeadSpec(kind="cascade", context_grid="7x7", layers=(1, 2), preset="submitted"),
        "conv2d3d": HeadSpec(kind="conv2d3d", streams=("face_map",), preset="submitted"),
        "cascade": HeadSpec(kind="cascade", streams=()),
        ENSEMBLE: HeadSpec(kind=ENSEMBLE, streams=(), preset="submitted"),
    }
)
"""Every head by name, in the order of the tables: ``caca`` is the submitted one of IV-C,
``conv2d3d`` that of Fig. 4, ``cascade`` reads any streams."""

TABLE_1_HEADS: tuple[str, ...] = tuple(n for n, spec in HEADS.items() if spec.preset == "table1")
"""The six heads of Table I, in its order."""

NETWORKS: tuple[str, ...] = tuple(name for name in HEADS if name != ENSEMBLE)
"""The heads that are trained."""


def rank_head(name: str) -> int:
    """Where a head stands in the table; one that it does not know stands last."""
    return [*HEADS, name].index(name)


def split_names(setting: str, text: str) -> tuple[str, ...]:
    """Take a setting of ``DEFAULT_NAMES`` apart, like ``context,face``.

    Raises:
        ConfigError: Fewer than two names, or one stands twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise ConfigError(
            f"setting {setting}: found {text!r}, expected two or more names, each once, for "
            f"example {DEFAULT_NAMES[setting]}."
        )
    return names


def choose_grid(head: str, context: str = "own") -> str:
    """The pooling grid a head reads: what the setting says, or what it was published with."""
    return HEADS[head].context_grid if context == "own" else context


def choose_streams(
    head: str, *, context: str = "own", streams: str = DEFAULT_NAMES["streams"]
) -> dict[str, str]:
    """The streams that a head reads, in order -> the feature matrix that each comes from.

    Args:
        head: One of ``NETWORKS``.
        context: ``2x2``, ``7x7``, or ``own`` for what the head was published with.
        streams: Of a head that reads any streams.
    """
    read = HEADS[head].streams or split_names("streams", streams)
    matrix = f"context_{choose_grid(head, context)}"
    return {stream: matrix if stream == "context" else stream for stream in read}
