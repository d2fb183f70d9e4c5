"""Reads shards: ragged clips as flat arrays with offsets (FORMAT.md).

With ``features.store.shard_checks`` and ``features.store.shard_writer`` the only door to h5py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - HDF5 then reads columns packed by zstd
import numpy as np
from numpy.typing import NDArray

from features.contracts import CONTEXT_CHANNELS, ClipFeatures
from features.disk import FileState, read_state
from features.errors import ShardError
from features.json_records import build_record, parse_object
from features.store.shard_checks import (
    Columns,
    check_clip,
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
    state: FileState | None = None
    """Of the file that all this was read from."""

    def __len__(self) -> int:
        return len(self.frame_offset) - 1


def read_shard_index(path: Path) -> ShardIndex:
    """Read a shard's header, clip columns and offsets.

    Raises:
        ShardError: not there, damaged, not a shard, or of a version that this code does not read.
    """
    with _open(path) as (file, read):
        state = _read_state(file)
        return replace(read.index(path, file), state=state)


def iter_shard_clips(
    index: ShardIndex,
    rows: Sequence[int],
    *,
    context_7x7: bool = False,
    face_map: bool = False,
) -> Iterator[ClipFeatures]:
    """Yield the clips of some rows of a shard, in order.

    Raises:
        ShardError: As ``read_shard_index``; no face maps; or another file stands in the shard's
            place, or it was written to, since its index was read.
    """
    if face_map and index.header.face_map_shape is None:
        raise ShardError(
            f"{index.path}: the store keeps no face maps. Run extract with --face-map into a new "
            "store."
        )
    with _open(index.path) as (file, read):
        for block in _blocks(index.frame_offset, rows):
            _check_state(index, file)
            yield from read.clips(index, file, block, context_7x7, face_map)
        _check_state(index, file)


def find_shard_problems(path: Path) -> list[str]:
    """What contradicts FORMAT.md inside a shard; empty if nothing does. Reads all of it."""
    try:
        index = read_shard_index(path)
        has_map = index.header.face_map_shape is not None
        for _ in iter_shard_clips(index, range(len(index)), context_7x7=True, face_map=has_map):
            pass
    except ShardError as error:
        return [str(error)]
    return []


@dataclass(frozen=True)
class _Reader:
    """How one format version is read; an old reader is never edited."""

    index: Callable[[Path, h5py.File], ShardIndex]
    clips: Callable[[ShardIndex, h5py.File, Sequence[int], bool, bool], Iterator[ClipFeatures]]


class _open:  # noqa: N801
    """Context manager: an open shard and the reader of its version, damage told as ShardError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[h5py.File, _Reader]:
        if not self.path.is_file():
            raise ShardError(f"{self.path}: no such shard")
        try:
            self.file = h5py.File(self.path, "r")
        except OSError as error:
            raise ShardError(
                f"{self.path}: damaged or not HDF5 ({error}). Delete it and run extract: its clips "
                "are extracted again."
            ) from error
        try:
            return self.file, self._find_reader()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, _DAMAGE):
            raise ShardError(
                f"{self.path}: damaged, or not as FORMAT.md says ({error}). Delete it and run "
                "extract: its clips are extracted again."
            ) from error

    def _find_reader(self) -> _Reader:
        name = read_attribute(self.file, "format", str)
        if name != FORMAT_NAME:
            raise ShardError(f"{self.path}: root attribute 'format' is {name!r}, not a shard")
        version = read_attribute(self.file, "format_version", int)
        if version not in _READERS:
            raise ShardError(
                f"{self.path}: shard format {version}, but this code reads {sorted(_READERS)}. "
                "Update the code if the shard is newer; run extract again if it is older."
            )
        return _READERS[version]


_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError)
"""What h5py and the checks raise where a shard is not as it should be."""


def _read_index_v1(path: Path, file: h5py.File) -> ShardIndex:
    columns = Columns(file)
    frame_offset = columns.read("clip/frame_offset", "i8", None)
    n_clips = len(frame_offset) - 1
    if n_clips < 0:
        raise ValueError("/clip/frame_offset is empty")
    face_offset = columns.read("clip/face_offset", "i8", n_clips + 1)
    check_offsets(frame_offset, "clip/frame_offset")
    check_offsets(face_offset, "clip/face_offset")
    n_frames, n_faces = int(frame_offset[-1]), int(face_offset[-1])
    for name, (dtype, shape) in FRAME_COLUMNS.items():
        columns.check(f"frame/{name}", dtype, (n_frames, *shape))
    for name, (dtype, shape) in FACE_COLUMNS.items():
        columns.check(f"face/{name}", dtype, (n_faces, *shape))
    face_map_shape = None
    if "map" in columns.list_names("face"):
        maps = columns.check("face/map", "f2", (n_faces, CONTEXT_CHANNELS, None, None))
        face_map_shape = list(maps[1:])
    streams = {
        name: columns.check(f"stream/{name}", "f2", (n_frames, None))[1]
        for name in columns.list_names("stream")
    }
    clips: dict[str, Sequence[Any]] = {
        name: columns.read_texts(f"clip/{name}", n_clips) for name in TEXT_COLUMNS
    }
    present = columns.list_names("clip")
    for name, missing in OPTIONAL_COLUMNS.items():
        found = columns.read_texts(f"clip/{name}", n_clips) if name in present else None
        clips[name] = found or [missing] * n_clips
    for name, dtype in NUMBER_COLUMNS.items():
        clips[name] = columns.read(f"clip/{name}", dtype, n_clips).tolist()
    texts = {
        name: read_attribute(file, name, str)
        for name in ("fingerprint", "classes", "config", "weights", "versions")
    }
    # One object of them: what is wrong is then told by its name.
    parts = [f'"{name}": {texts[name]}' for name in texts if name != "fingerprint"]
    described = parse_object(f"{{{', '.join(parts)}}}") | {
        "fingerprint": texts["fingerprint"],
        "face_map_shape": face_map_shape,
        "streams": streams,
    }
    header: ShardHeader = build_record(ShardHeader, described)
    for row, n_clip_faces in enumerate(np.diff(face_offset).tolist()):
        values = {name: column[row] for name, column in clips.items()}
        check_clip(values, header.classes, n_faces=n_clip_faces)
    return ShardIndex(
        path=path,
        header=header,
        columns=clips,
        frame_offset=frame_offset,
        face_offset=face_offset,
    )


def _read_clips_v1(
    index: ShardIndex, file: h5py.File, rows: Sequence[int], context_7x7: bool, face_map: bool
) -> Iterator[ClipFeatures]:
    """The clips of neighbouring rows, whose arrays are read at once."""
    first, last = rows[0], rows[-1] + 1
    frame_0, face_0 = int(index.frame_offset[first]), int(index.face_offset[first])
    frames = slice(frame_0, int(index.frame_offset[last]))
    faces = slice(face_0, int(index.face_offset[last]))
    names = [name for name in FRAME_COLUMNS if context_7x7 or name != "context_7x7"]
    frame = _read_columns(file, "frame", names, frames)
    face = _read_columns(file, "face", [*FACE_COLUMNS, *["map"] * face_map], faces)
    stream = _read_columns(file, "stream", list(index.header.streams), frames)
    for row in rows:
        of_frame = slice(*(index.frame_offset[row : row + 2] - frame_0))
        check_phases(frame["phase"][of_frame], index.columns["n_phases"][row])
        of_face = slice(*(index.face_offset[row : row + 2] - face_0))
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
            face_map=face["map"][of_face] if face_map else None,
            streams={name: values[of_frame] for name, values in stream.items()},
        )


_READERS = {1: _Reader(_read_index_v1, _read_clips_v1)}


def _read_columns(
    file: h5py.File, group: str, names: Sequence[str], rows: slice
) -> dict[str, NDArray[Any]]:
    columns = file[group] if names else {}
    return {name: columns[name][rows] for name in names}


def _read_state(file: h5py.File) -> FileState:
    return read_state(file.id.get_vfd_handle())


def _check_state(index: ShardIndex, file: h5py.File) -> None:
    if index.state is not None and _read_state(file) != index.state:
        raise ShardError(f"{index.path}: changed while it was read. Run the same again.")


def _read_row(columns: Mapping[str, Sequence[Any]], row: int) -> dict[str, Any]:
    values = {name: columns[name][row] for name in columns if name not in ("id", "status")}
    values["clip_id"] = columns["id"][row]
    for name in ("extra", "notes"):
        values[name] = json.loads(values[name])
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
