"""Reads shards: ragged clips as flat arrays with offsets (FORMAT.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.contracts import FACE_VECTOR_SIZE, ClipFeatures
from features.disk import FileState
from features.errors import ShardError
from features.json_records import build_record, parse_object
from features.store.hdf5_files import (
    check_state,
    iter_blocks,
    iter_rows,
    open_columns,
    read_open_state,
)
from features.store.shard_checks import (
    Columns,
    check_clips,
    check_offsets,
    check_phases,
    has_attribute,
    read_attribute,
)
from features.store.shard_format import (
    CONTEXT,
    FACE_FEATURES,
    FORMAT_NAME,
    NUMBER_COLUMNS,
    OPTIONAL_COLUMNS,
    TEXT_COLUMNS,
    ShardHeader,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """All of a shard but its features: cheap to read."""

    path: Path
    header: ShardHeader
    columns: Mapping[str, Sequence[Any]]
    """Clip columns by name, one value a clip."""
    frame_offset: NDArray[np.int64]
    """[N+1] Clip i has frames frame_offset[i]..frame_offset[i+1]-1."""
    face_offset: NDArray[np.int64]
    """[N+1]"""
    state: FileState
    """Of the file that all this was read from."""
    version: int
    """Of its format."""
    checked: set[str] = field(default_factory=set)
    """Groups whose columns were found to be as the header and the offsets say."""

    def __len__(self) -> int:
        return len(self.frame_offset) - 1


def read_shard_index(path: Path) -> ShardIndex:
    """Read a shard's header, clip columns and offsets; other columns are not looked at.

    Raises:
        ShardError: not there, damaged, not a shard, or of a version that this code does not read.
    """
    with open_columns(path) as columns:
        return _read_index(path, columns)


def iter_shard_clips(
    index: ShardIndex,
    rows: Sequence[int],
    *,
    context_7x7: bool = False,
    face_map: bool = False,
) -> Iterator[ClipFeatures]:
    """Yield the clips of some rows of a shard, in order; all its columns are checked before.

    Raises:
        ShardError: As ``read_shard_index``; no such features; or another file stands in the shard's
            place, or it was written to, since its index was read.
    """
    if face_map and index.header.face_map_shape is None:
        raise ShardError(
            f"{index.path}: the store keeps no face maps. Run extract with --face-map into a new "
            "store."
        )
    if context_7x7 and not index.header.keeps_context:
        raise ShardError(f"{index.path}: the store keeps no context features of its own.")
    with open_columns(index.path) as columns:
        yield from _iter_clips(index, columns, rows, context_7x7, face_map)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipRows:
    """Which frames and faces a clip has rows of, without their features."""

    pts_s: NDArray[np.float64]
    """[F]"""
    phase: NDArray[np.int16]
    """[F]"""
    face_frame: NDArray[np.int64]
    """[A] Row of the clip's frame, 0..F-1."""
    box_px: NDArray[np.float32]
    """[A, 4]"""


def read_clip_rows(index: ShardIndex, row: int) -> ClipRows:
    """What a clip of a shard has rows of. Raises ShardError as ``iter_shard_clips``."""
    frames, faces = (
        slice(*offset[row : row + 2].tolist()) for offset in (index.frame_offset, index.face_offset)
    )
    with open_columns(index.path) as columns:
        _check_columns(index, columns)
        return ClipRows(
            pts_s=columns.read_rows("frame/pts_s", "f8", frames),
            phase=columns.read_rows("frame/phase", "i2", frames),
            face_frame=columns.read_rows("face/frame", "i8", faces) - frames.start,
            box_px=columns.read_rows("face/box_px", "f4", faces),
        )


def iter_expressions(index: ShardIndex, rows: Sequence[int]) -> Iterator[NDArray[np.float16]]:
    """Yield the expressions [A, K] of the faces of some clips; no other column is read.

    Raises:
        ShardError: As ``iter_shard_clips``.
    """
    name = "face/expression"
    n_faces, n_names = int(index.face_offset[-1]), len(index.header.expressions)
    with open_columns(index.path) as columns:
        columns.check(name, "f2", (n_faces, n_names))
        yield from iter_rows(index.path, index.state, columns, name, index.face_offset, rows)


def check_shard(path: Path) -> ShardIndex:
    """Read all of a shard. Raises ShardError where it contradicts FORMAT.md."""
    with open_columns(path) as columns:
        index = _read_index(path, columns)
        has_map = index.header.face_map_shape is not None
        for _ in _iter_clips(index, columns, range(len(index)), True, has_map):
            pass
    return index


@dataclass(frozen=True)
class _Reader:
    """How one format version is read; an old reader is never edited."""

    index: Callable[[Columns], dict[str, Any]]
    """Fields of a ShardIndex: header, columns, offsets."""
    check: Callable[[ShardIndex, Columns], None]
    """Checks the columns of frames, faces and streams."""
    clips: Callable[[ShardIndex, Columns, Sequence[int], bool, bool], Iterator[ClipFeatures]]


def _read_index(path: Path, columns: Columns) -> ShardIndex:
    state = read_open_state(columns)
    name = read_attribute(columns.file, "format", str)
    if name != FORMAT_NAME:
        raise ShardError(f"{path}: root attribute 'format' is {name!r}, not a shard")
    version = read_attribute(columns.file, "format_version", int)
    if version not in _READERS:
        raise ShardError(
            f"{path}: shard format {version}, but this code reads {sorted(_READERS)}. "
            "Update the code if the shard is newer; run extract again if it is older."
        )
    return ShardIndex(path=path, state=state, version=version, **_READERS[version].index(columns))


def _iter_clips(
    index: ShardIndex, columns: Columns, rows: Sequence[int], context_7x7: bool, face_map: bool
) -> Iterator[ClipFeatures]:
    read = _READERS[index.version]
    _check_columns(index, columns)
    for block in iter_blocks(index.frame_offset, rows):
        check_state(index.path, index.state, columns)
        yield from read.clips(index, columns, block, context_7x7, face_map)
    check_state(index.path, index.state, columns)


def _check_columns(index: ShardIndex, columns: Columns) -> None:
    """Check the columns of a shard, once, and that it is still the same."""
    check_state(index.path, index.state, columns)
    if not index.checked:
        _READERS[index.version].check(index, columns)
        index.checked.update(("frame", "face", "stream"))


def _read_index_v1(columns: Columns) -> dict[str, Any]:
    frame_offset = columns.read("clip/frame_offset", "i8", None)
    n_clips = len(frame_offset) - 1
    if n_clips < 0:
        raise ValueError("/clip/frame_offset is empty")
    face_offset = columns.read("clip/face_offset", "i8", n_clips + 1)
    check_offsets(frame_offset, "clip/frame_offset")
    check_offsets(face_offset, "clip/face_offset")
    clips: dict[str, Sequence[Any]] = {
        name: columns.read_texts(f"clip/{name}", n_clips) for name in TEXT_COLUMNS
    }
    for name, missing in OPTIONAL_COLUMNS.items():
        has_it = columns.has(f"clip/{name}")
        clips[name] = columns.read_texts(f"clip/{name}", n_clips) if has_it else [missing] * n_clips
    for name, dtype in NUMBER_COLUMNS.items():
        clips[name] = columns.read(f"clip/{name}", dtype, n_clips).tolist()
    maps = columns.find_shape("face/map")[1:] if columns.has("face/map") else None
    vector = columns.find_shape("face/vector") if columns.has("face/vector") else _NO_VECTOR
    if len(vector) != 2:
        raise ValueError(f"/face/vector is {vector}, expected (faces, values)")
    streams = {name: columns.find_shape(f"stream/{name}") for name in columns.list_names("stream")}
    if wrong := [name for name, shape in streams.items() if len(shape) != 2]:
        raise ValueError(f"/stream/{wrong[0]} is {streams[wrong[0]]}, expected (frames, values)")
    texts = tuple(
        (name, read_attribute(columns.file, name, str))
        for name in _HEADER_TEXTS
        if name not in _OPTIONAL_TEXTS or has_attribute(columns.file, name)
    )
    sizes = tuple((name, shape[1]) for name, shape in streams.items())
    has_context = any(columns.has(f"frame/{name}") for name in CONTEXT)
    has_face = any(columns.has(f"face/{name}") for name in FACE_FEATURES)
    fingerprint = read_attribute(columns.file, "fingerprint", str)
    header = _parse_header(fingerprint, texts, vector[1], has_context, has_face, maps, sizes)
    check_clips(clips, header.classes, np.diff(face_offset).tolist())
    return {
        "header": header,
        "columns": clips,
        "frame_offset": frame_offset,
        "face_offset": face_offset,
    }


_NO_VECTOR = (0, FACE_VECTOR_SIZE)
"""Where the column is missing: no face features are kept, or columns are found to be wrong."""
_HEADER_TEXTS = ("classes", "config", "weights", "versions", "expressions", "licences")
"""Root attributes of JSON."""
_OPTIONAL_TEXTS = {"expressions", "licences"}


@lru_cache(maxsize=16)
def _parse_header(
    fingerprint: str,
    texts: tuple[tuple[str, str], ...],
    face_vector_size: int,
    keeps_context: bool,
    keeps_face: bool,
    face_map_shape: tuple[int, ...] | None,
    streams: tuple[tuple[str, int], ...],
) -> ShardHeader:
    """The header that root attributes tell: of all shards of a store the same."""
    # One object of them: what is wrong is then told by its name.
    parts = [f'"{name}": {text}' for name, text in texts]
    described = parse_object(f"{{{', '.join(parts)}}}") | {
        "fingerprint": fingerprint,
        "face_map_shape": face_map_shape and list(face_map_shape),
        "face_vector_size": face_vector_size,
        "keeps_context": keeps_context,
        "keeps_face": keeps_face,
        "streams": dict(streams),
    }
    header: ShardHeader = build_record(ShardHeader, described)
    return header


def _check_v1(index: ShardIndex, columns: Columns) -> None:
    n_frames, n_faces = int(index.frame_offset[-1]), int(index.face_offset[-1])
    for name, (dtype, shape) in index.header.frame_columns.items():
        columns.check(f"frame/{name}", dtype, (n_frames, *shape))
    for name, (dtype, shape) in index.header.face_columns.items():
        columns.check(f"face/{name}", dtype, (n_faces, *shape))
    for name in index.header.streams:
        columns.check(f"stream/{name}", "f2", (n_frames, None))


def _read_clips_v1(
    index: ShardIndex, columns: Columns, rows: Sequence[int], context_7x7: bool, face_map: bool
) -> Iterator[ClipFeatures]:
    """The clips of neighbouring rows, whose arrays are read at once."""
    first, last = rows[0], rows[-1] + 1
    frame_0, face_0 = int(index.frame_offset[first]), int(index.face_offset[first])
    frames = slice(frame_0, int(index.frame_offset[last]))
    faces = slice(face_0, int(index.face_offset[last]))
    frame = {
        name: columns.read_rows(f"frame/{name}", dtype, frames)
        for name, (dtype, _) in index.header.frame_columns.items()
        if context_7x7 or name != "context_7x7"
    }
    face = {
        name: columns.read_rows(f"face/{name}", dtype, faces)
        for name, (dtype, _) in index.header.face_columns.items()
        if face_map or name != "map"
    }
    vector, maps, expression = (face.get(name) for name in FACE_FEATURES)
    context_2x2, full = frame.get("context_2x2"), frame.get("context_7x7")
    stream = {
        name: columns.read_rows(f"stream/{name}", "f2", frames) for name in index.header.streams
    }
    for row in rows:
        of_frame = slice(*(index.frame_offset[row : row + 2] - frame_0).tolist())
        check_phases(frame["phase"][of_frame], index.columns["n_phases"][row])
        of_face = slice(*(index.face_offset[row : row + 2] - face_0).tolist())
        yield ClipFeatures(
            **_read_row(index.columns, row),
            pts_s=frame["pts_s"][of_frame],
            phase=frame["phase"][of_frame],
            context_2x2=None if context_2x2 is None else context_2x2[of_frame],
            context_7x7=None if full is None else full[of_frame],
            face_frame=(face["frame"][of_face] - index.frame_offset[row]).astype(np.int32),
            box_px=face["box_px"][of_face],
            score=face["score"][of_face],
            landmarks_px=face["landmarks_px"][of_face],
            track=face["track"][of_face],
            face_vector=None if vector is None else vector[of_face],
            face_map=None if maps is None else maps[of_face],
            face_expression=None if expression is None else expression[of_face],
            streams={name: values[of_frame] for name, values in stream.items()},
        )


_READERS = {1: _Reader(_read_index_v1, _check_v1, _read_clips_v1)}


def _read_row(columns: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    values = {name: columns[name][row] for name in columns if name not in ("id", "status")}
    values["clip_id"] = columns["id"][row]
    for name in ("extra", "notes"):
        values[name] = {} if values[name] == "{}" else json.loads(values[name])
    for name in ("start_s", "end_s"):
        values[name] = None if np.isnan(values[name]) else values[name]
    return values
