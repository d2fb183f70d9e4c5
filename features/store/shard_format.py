"""The names, columns and header of a shard: what its reader and its writer agree on (FORMAT.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from features.contracts import (
    CONTEXT_CHANNELS,
    CONTEXT_STREAM,
    FACE_STREAM,
    FACE_VECTOR_SIZE,
    check_beside_name,
    check_stream_name,
)

FORMAT_NAME = "caca-rnn-shard"
FORMAT_VERSION = 1

TEXT_COLUMNS = ("id", "label", "split", "subject", "source", "sha256", "status", "decoder", "extra")
OPTIONAL_COLUMNS = {"notes": "{}"}
"""Text columns that came after the first shards, and what stands in one that lacks them."""
NUMBER_COLUMNS = {"start_s": "f8", "end_s": "f8", "n_phases": "i2"}
FRAME_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "pts_s": ("f8", ()),
    "phase": ("i2", ()),
    "context_7x7": ("f2", (CONTEXT_CHANNELS, 7, 7)),
    "context_2x2": ("f2", (CONTEXT_CHANNELS, 2, 2)),
}
CONTEXT = ("context_7x7", "context_2x2")
FACE_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "frame": ("i8", ()),
    "box_px": ("f4", (4,)),
    "score": ("f4", ()),
    "landmarks_px": ("f4", (5, 2)),
    "track": ("i4", ()),
}
"""Columns that every store has; ``ShardHeader.face_columns`` has all."""
FACE_FEATURES = ("vector", "map", "expression")

STREAM_FORMAT_NAME = "caca-rnn-stream"
STREAM_FORMAT_VERSION = 1
"""Of a stream's file; part of the fingerprint of every stream."""
LACKING_STREAM_VERSION = 2
"""Of one with a clip that lacks the stream: code that knows no such clips must not take its zeros
for values."""
STREAM_ROWS = ("frame", "face")
_MOST_NAME_LENGTH = 64
"""Of an added stream: the path of its files fits into the header of a tar archive."""


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What every shard of a store says about all of its clips."""

    fingerprint: str
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    weights: Mapping[str, str]
    """Network -> SHA-256."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """``context`` and ``face`` -> licence of the weights that made them, where that was told."""
    versions: Mapping[str, str]
    """Library -> version, when the shard was written."""
    face_map_shape: tuple[int, int, int] | None = None
    """(C, h, w) where face maps are kept."""
    face_vector_size: int = FACE_VECTOR_SIZE
    """Values of each face's vector."""
    keeps_context: bool = True
    """Whether the context features are kept; an encoder's stream may stand in their place."""
    keeps_face: bool = True
    """The same of the face features: vector, map and expressions."""
    expressions: tuple[str, ...] = ()
    """Names of the expressions whose probabilities are kept of each face; empty: none are."""
    streams: Mapping[str, int] = field(default_factory=dict)
    """Extra stream in the shards themselves -> values a frame."""

    def __post_init__(self) -> None:
        if not all(self.classes) or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)}: expected names, each once")
        shape = self.face_map_shape
        if shape is not None and min(shape) < 1:
            raise ValueError(f"face maps of {shape}, expected (C, h, w)")
        described = (shape, self.expressions, self.face_vector_size)
        if not self.keeps_face and described != (None, (), FACE_VECTOR_SIZE):
            raise ValueError("face maps, expressions or another size without face vectors")
        if self.face_vector_size < 1:
            raise ValueError(f"{self.face_vector_size} values a face")
        if not all(self.expressions) or len(set(self.expressions)) < len(self.expressions):
            raise ValueError(f"expressions {list(self.expressions)}: expected names, each once")
        for name, size in self.streams.items():
            check_stream_name(name)
            if size < 1:
                raise ValueError(f"stream {name}: {size} values a frame")

    @property
    def own_streams(self) -> set[str]:
        """Of the streams ``context`` and ``face`` those that the shards themselves keep."""
        kept = {CONTEXT_STREAM: self.keeps_context, FACE_STREAM: self.keeps_face}
        return {name for name, is_kept in kept.items() if is_kept}

    @property
    def frame_columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Columns of frames -> type, and shape of a row."""
        return {n: c for n, c in FRAME_COLUMNS.items() if n not in CONTEXT or self.keeps_context}

    @property
    def face_columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Columns of faces -> type, and shape of a row."""
        columns = dict(FACE_COLUMNS)
        if self.keeps_face:
            columns["vector"] = ("f2", (self.face_vector_size,))
        if self.face_map_shape is not None:
            columns["map"] = ("f2", self.face_map_shape)
        if self.expressions:
            columns["expression"] = ("f2", (len(self.expressions),))
        return columns


class Lack(IntEnum):
    """Whether a clip lacks a stream, and what can change that: values of ``/clip/lacks``."""

    NO = 0
    RETRIED = 1
    """Its file was not to be had, or it ended its worker: it is tried again."""
    FINAL = 2
    """What its file holds cannot be used: it is not tried again until the file is another."""


@dataclass(frozen=True, kw_only=True)
class StreamHeader:
    """What every file of an added stream says of it."""

    name: str
    rows: str
    """``frame`` or ``face``: the stream has a row for each."""
    size: int
    """Values of each row."""
    fingerprint: str
    """Hash of all that decides the values: the store's fingerprint, and the encoder."""
    encoder: Mapping[str, Any]
    """What made it: the encoder's sidecar, and ``sha256`` of its file."""

    def __post_init__(self) -> None:
        check_beside_name(self.name, self.rows)
        if len(self.name) > _MOST_NAME_LENGTH:
            raise ValueError(
                f"stream {self.name}: its name has more than {_MOST_NAME_LENGTH} letters"
            )
        if self.rows not in STREAM_ROWS:
            raise ValueError(f"stream {self.name}: rows {self.rows!r}, expected {STREAM_ROWS}")
        if self.size < 1:
            raise ValueError(f"stream {self.name}: {self.size} values a row")


def name_number(number: int) -> str:
    """The name of a file of the shard of a number."""
    return f"{number:04d}.h5"
