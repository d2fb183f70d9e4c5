"""Reads shards: ragged clips as flat arrays with offsets (FORMAT.md).

With ``features.store.shard_checks`` and ``features.store.shard_writer`` the only door to h5py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - HDF5 then reads columns packed by zstd
import numpy as np
from numpy.typing import NDArray

from features.contracts import ClipFeatures
from features.disk import FileState, read_state
from features.errors import ShardError
from features.json_records import build_record, parse_object
from features.store.shard_checks import (
    Columns,
    check_clips,
    check_offsets,
    check_phases,
    read_attribute,
)
from features.store.shard_format import (
    FACE_COLUMNS,
    FORMAT_NAME,
    FRAME_COLUMNS,
    NUMBER_COLUMNS,
    OPTIONAL_COLUMNS,
    TEXT_COLUMNS,
    ShardHeader,
)

_READ_FRAMES = 1024
"""Clips are read in blocks of about this many frames, so that chunks are inflated once."""


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
    with _open(path) as columns:
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
        ShardError: As ``read_shard_index``; no face maps; or another file stands in the shard's
            place, or it was written to, since its index was read.
    """
    if face_map and index.header.face_map_shape is None:
        raise ShardError(
            f"{index.path}: the store keeps no face maps. Run extract with --face-map into a new "
            "store."
        )
    with _open(index.path) as columns:
        yield from _iter_clips(index, columns, rows, context_7x7, face_map)


def check_shard(path: Path) -> ShardIndex:
    """Read all of a shard. Raises ShardError where it contradicts FORMAT.md."""
    with _open(path) as columns:
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


_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError)
"""What h5py and the checks raise where a shard is not as it should be."""

_ACCESS = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
_ACCESS.set_fclose_degree(h5py.h5f.CLOSE_STRONG)


@contextmanager
def _open(path: Path) -> Iterator[Columns]:
    """An open shard, damage told as ShardError."""
    if not path.is_file():
        raise ShardError(f"{path}: no such shard")
    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, fapl=_ACCESS)
    except OSError as error:
        raise ShardError(
            f"{path}: damaged or not HDF5 ({error}). Delete it and run extract: its clips are "
            "extracted again."
        ) from error
    try:
        yield Columns(file)
    except _DAMAGE as error:
        raise ShardError(
            f"{path}: damaged, or not as FORMAT.md says ({error}). Delete it and run extract: its "
            "clips are extracted again."
        ) from error
    finally:
        file.close()


def _read_index(path: Path, columns: Columns) -> ShardIndex:
    state = _read_state(columns)
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
    _check_state(index, columns)
    if not index.checked:
        read.check(index, columns)
        index.checked.update(("frame", "face", "stream"))
    for block in _blocks(index.frame_offset, rows):
        _check_state(index, columns)
        yield from read.clips(index, columns, block, context_7x7, face_map)
    _check_state(index, columns)


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
    streams = {name: columns.find_shape(f"stream/{name}") for name in columns.list_names("stream")}
    if wrong := [name for name, shape in streams.items() if len(shape) != 2]:
        raise ValueError(f"/stream/{wrong[0]} is {streams[wrong[0]]}, expected (frames, values)")
    texts = [read_attribute(columns.file, name, str) for name in _HEADER_TEXTS]
    header = _parse_header(*texts, maps, tuple((name, shape[1]) for name, shape in streams.items()))
    check_clips(clips, header.classes, np.diff(face_offset).tolist())
    return {
        "header": header,
        "columns": clips,
        "frame_offset": frame_offset,
        "face_offset": face_offset,
    }


_HEADER_TEXTS = ("fingerprint", "classes", "config", "weights", "versions")


@lru_cache(maxsize=16)
def _parse_header(
    fingerprint: str,
    classes: str,
    config: str,
    weights: str,
    versions: str,
    face_map_shape: tuple[int, ...] | None,
    streams: tuple[tuple[str, int], ...],
) -> ShardHeader:
    """The header that root attributes tell: of all shards of a store the same."""
    texts = {"classes": classes, "config": config, "weights": weights, "versions": versions}
    # One object of them: what is wrong is then told by its name.
    parts = [f'"{name}": {text}' for name, text in texts.items()]
    described = parse_object(f"{{{', '.join(parts)}}}") | {
        "fingerprint": fingerprint,
        "face_map_shape": face_map_shape and list(face_map_shape),
        "streams": dict(streams),
    }
    header: ShardHeader = build_record(ShardHeader, described)
    return header


def _check_v1(index: ShardIndex, columns: Columns) -> None:
    n_frames, n_faces = int(index.frame_offset[-1]), int(index.face_offset[-1])
    for name, (dtype, shape) in FRAME_COLUMNS.items():
        columns.check(f"frame/{name}", dtype, (n_frames, *shape))
    for name, (dtype, shape) in FACE_COLUMNS.items():
        columns.check(f"face/{name}", dtype, (n_faces, *shape))
    if index.header.face_map_shape is not None:
        columns.check("face/map", "f2", (n_faces, *index.header.face_map_shape))
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
        for name, (dtype, _) in FRAME_COLUMNS.items()
        if context_7x7 or name != "context_7x7"
    }
    face = {
        name: columns.read_rows(f"face/{name}", dtype, faces)
        for name, (dtype, _) in FACE_COLUMNS.items()
    }
    maps = columns.read_rows("face/map", "f2", faces) if face_map else None
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
            context_2x2=frame["context_2x2"][of_frame],
            context_7x7=frame["context_7x7"][of_frame] if context_7x7 else None,
            face_frame=(face["frame"][of_face] - index.frame_offset[row]).astype(np.int32),
            box_px=face["box_px"][of_face],
            score=face["score"][of_face],
            landmarks_px=face["landmarks_px"][of_face],
            track=face["track"][of_face],
            face_vector=face["vector"][of_face],
            face_map=None if maps is None else maps[of_face],
            streams={name: values[of_frame] for name, values in stream.items()},
        )


_READERS = {1: _Reader(_read_index_v1, _check_v1, _read_clips_v1)}


def _read_state(columns: Columns) -> FileState:
    return read_state(columns.file.get_vfd_handle())


def _check_state(index: ShardIndex, columns: Columns) -> None:
    if _read_state(columns) != index.state:
        raise ShardError(f"{index.path}: changed while it was read. Run the same again.")


def _read_row(columns: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    values = {name: columns[name][row] for name in columns if name not in ("id", "status")}
    values["clip_id"] = columns["id"][row]
    for name in ("extra", "notes"):
        values[name] = {} if values[name] == "{}" else json.loads(values[name])
    for name in ("start_s", "end_s"):
        values[name] = None if np.isnan(values[name]) else values[name]
    return values


def _blocks(frame_offset: NDArray[np.int64], rows: Sequence[int]) -> Iterator[list[int]]:
    """Cut rows into runs of neighbours of about _READ_FRAMES frames."""
    block: list[int] = []
    for row in rows:
        full = block and frame_offset[row + 1] - frame_offset[block[0]] > _READ_FRAMES
        if block and (full or row != block[-1] + 1):
            yield block
            block = []
        block.append(row)
    if block:
        yield block
