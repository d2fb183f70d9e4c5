"""One file of a stream, read and checked: its clips, which of them lack the stream, its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.contracts import CLIP_ID
from features.disk import FileState
from features.errors import ShardError
from features.json_records import build_record, parse_object
from features.store.hdf5_files import check_state, iter_rows, open_columns, read_open_state
from features.store.shard_checks import Columns, check_offsets, read_attribute
from features.store.shard_format import (
    LACKING_STREAM_VERSION,
    STREAM_FORMAT_NAME,
    STREAM_FORMAT_VERSION,
    Lack,
    StreamHeader,
)
from features.store.shard_reader import ShardIndex

STREAM_REMEDY = "Delete it and run extract with the same encoder: this stream is extracted again"
_PART_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamIndex:
    """All of a stream's file but its values."""

    path: Path
    header: StreamHeader
    clip_ids: Sequence[str]
    """[N] As in its shard, and in the order of its shard."""
    sha256s: Sequence[str]
    """[N] Of the clips' files."""
    lacks: Sequence[Lack]
    """[N] Which clips lack the stream: their rows are zeros."""
    row_offset: NDArray[np.int64]
    """[N+1] Clip i has rows row_offset[i]..row_offset[i+1]-1."""
    state: FileState
    """Of the file that all this was read from."""

    @property
    def n_lacking(self) -> int:
        """Clips that lack the stream."""
        return sum(map(bool, self.lacks))


def read_stream_index(path: Path) -> StreamIndex:
    """Read what a stream's file says of itself, its clips and offsets; values are not read.

    Raises:
        ShardError: not there, damaged, not such a file, or of a version that this code does not
            read.
    """
    with open_columns(path, STREAM_REMEDY) as columns:
        return _read_index(path, columns)


def check_stream_file(path: Path) -> StreamIndex:
    """Read all of a stream's file. Raises ShardError where it contradicts FORMAT.md."""
    with open_columns(path, STREAM_REMEDY) as columns:
        index = _read_index(path, columns)
        rows = range(len(index.clip_ids))
        of_clips = iter_rows(path, index.state, columns, "values", index.row_offset, rows)
        for clip_id, lack, values in zip(index.clip_ids, index.lacks, of_clips, strict=True):
            if lack and values.any():
                raise ValueError(f"clip {clip_id} lacks the stream, but has values")
    return index


def iter_clip_parts(index: StreamIndex, row: int) -> Iterator[NDArray[np.float16]]:
    """Yield the rows of one clip of a stream's file, some at a time. Raises ShardError."""
    first, last = index.row_offset[row : row + 2].tolist()
    with open_columns(index.path, STREAM_REMEDY) as columns:
        check_state(index.path, index.state, columns)
        for start in range(first, last, _PART_ROWS):
            yield columns.read_rows("values", "f2", slice(start, min(start + _PART_ROWS, last)))


def check_listed(index: StreamIndex, listed: StreamHeader, shard: ShardIndex) -> None:
    """Raise ShardError unless a stream's file is of a stream and a shard.

    Args:
        index: What was read of the file.
        listed: What store.json says of the stream.
        shard: The clips, and their rows, that the file is to have, in this order.
    """
    of_faces = listed.rows == "face"
    offset = shard.face_offset if of_faces else shard.frame_offset
    found = index.header
    said: dict[str, tuple[Any, Any]] = {
        "name": (found.name, listed.name),
        "rows": (found.rows, listed.rows),
        "size": (found.size, listed.size),
        "fingerprint": (found.fingerprint, listed.fingerprint),
        "number of clips": (len(index.clip_ids), len(shard)),
        "clips": (index.clip_ids, shard.columns["id"]),
        "SHA-256 of clips' files": (index.sha256s, shard.columns["sha256"]),
        "offsets": (index.row_offset.tolist(), offset.tolist()),
    }
    for what, (has, expected) in said.items():
        if has == expected:
            continue
        if isinstance(has, list):
            row = [a == b for a, b in zip(has, expected, strict=True)].index(False)
            what, has, expected = f"{what}, row {row}", has[row], expected[row]
        raise ShardError(
            f"{index.path}: its {what}: {has!r}, expected {expected!r} as in store.json and "
            f"shards/{shard.path.name}. {STREAM_REMEDY}."
        )


def _read_index(path: Path, columns: Columns) -> StreamIndex:
    state = read_open_state(columns)
    name = read_attribute(columns.file, "format", str)
    if name != STREAM_FORMAT_NAME:
        raise ShardError(f"{path}: root attribute 'format' is {name!r}, not a stream's file")
    version = read_attribute(columns.file, "format_version", int)
    if version not in _VERSIONS:
        raise ShardError(
            f"{path}: stream format {version}, but this code reads {list(_VERSIONS)}. "
            "Update the code if the file is newer."
        )
    row_offset = columns.read("row_offset", "i8", None)
    if len(row_offset) == 0:
        raise ValueError("/row_offset is empty")
    check_offsets(row_offset, "row_offset")
    n_clips = len(row_offset) - 1
    clip_ids, sha256s = (columns.read_texts(f"clip/{name}", n_clips) for name in ("id", "sha256"))
    if wrong := [clip_id for clip_id in clip_ids if not CLIP_ID.fullmatch(clip_id)]:
        raise ValueError(f"/clip/id is {wrong[0]!r}")
    shape = columns.find_shape("values")
    if len(shape) != 2:
        raise ValueError(f"/values is {shape}, expected (rows, values)")
    described = {
        "name": read_attribute(columns.file, "name", str),
        "rows": read_attribute(columns.file, "rows", str),
        "size": shape[1],
        "fingerprint": read_attribute(columns.file, "fingerprint", str),
        "encoder": parse_object(read_attribute(columns.file, "encoder", str)),
    }
    columns.check("values", "f2", (int(row_offset[-1]), None))
    return StreamIndex(
        path=path,
        header=build_record(StreamHeader, described),
        clip_ids=clip_ids,
        sha256s=sha256s,
        lacks=_VERSIONS[version](columns, n_clips),
        row_offset=row_offset,
        state=state,
    )


def _read_no_lacks(_: Columns, n_clips: int) -> list[Lack]:
    """Version 1: every clip has the stream."""
    return [Lack.NO] * n_clips


def _read_lacks(columns: Columns, n_clips: int) -> list[Lack]:
    return [Lack(value) for value in columns.read("clip/lacks", "u1", n_clips).tolist()]


_VERSIONS = {STREAM_FORMAT_VERSION: _read_no_lacks, LACKING_STREAM_VERSION: _read_lacks}
