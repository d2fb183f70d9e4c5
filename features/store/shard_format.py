"""The names, columns and header of a shard: what its reader and its writer agree on (FORMAT.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from features.contracts import CONTEXT_CHANNELS, FACE_VECTOR_SIZE, check_stream_name

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
FACE_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "frame": ("i8", ()),
    "box_px": ("f4", (4,)),
    "score": ("f4", ()),
    "landmarks_px": ("f4", (5, 2)),
    "track": ("i4", ()),
    "vector": ("f2", (FACE_VECTOR_SIZE,)),
}


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What every shard of a store says about all of its clips."""

    fingerprint: str
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    weights: Mapping[str, str]
    """Network -> SHA-256."""
    versions: Mapping[str, str]
    """Library -> version, when the shard was written."""
    face_map_shape: tuple[int, int, int] | None = None
    """(512, h, w) where face maps are kept."""
    streams: Mapping[str, int] = field(default_factory=dict)
    """Extra stream -> values a frame."""

    def __post_init__(self) -> None:
        if not all(self.classes) or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)}: expected names, each once")
        shape = self.face_map_shape
        if shape is not None and (shape[0] != CONTEXT_CHANNELS or min(shape) < 1):
            raise ValueError(f"face maps of {shape}, expected ({CONTEXT_CHANNELS}, h, w)")
        for name, size in self.streams.items():
            check_stream_name(name)
            if size < 1:
                raise ValueError(f"stream {name}: {size} values a frame")
