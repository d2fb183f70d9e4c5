"""Streams beside the shards: for each shard a file with a row for each of its frames or faces."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.contracts import CLIP_ID
from features.disk import FileState, Progress, ignore_progress
from features.errors import ConfigError, ShardError
from features.fingerprint import hash_file
from features.json_records import build_record, parse_object
from features.store.hdf5_files import iter_rows, open_columns, read_open_state
from features.store.index import (
    NO_VERIFY,
    AddedStream,
    StreamFile,
    find_damage,
    find_stream_files,
    find_wrong_size,
    order_shard,
)
from features.store.shard_checks import Columns, check_offsets, read_attribute
from features.store.shard_format import (
    STREAM_FORMAT_NAME,
    STREAM_FORMAT_VERSION,
    ShardHeader,
    StreamHeader,
)
from features.store.shard_reader import ShardIndex, read_shard_index

STREAM_REMEDY = "Delete it and run extract with the same encoder: this stream is extracted again"


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamIndex:
    """All of a stream's file but its values."""

    path: Path
    header: StreamHeader
    clip_ids: Sequence[str]
    """[N] As in its shard, and in the order of its shard."""
    sha256s: Sequence[str]
    """[N] Of the clips' files."""
    row_offset: NDArray[np.int64]
    """[N+1] Clip i has rows row_offset[i]..row_offset[i+1]-1."""
    state: FileState
    """Of the file that all this was read from."""


class StreamListing:
    """The streams beside the shards, as store.json is to list them: their files that are whole."""

    def __init__(self, store: Path, header: ShardHeader) -> None:
        """None is known yet. header: of the store's shards."""
        self._store = store
        self._in_shards = {*header.streams, *header.own_streams}
        self._streams: dict[str, AddedStream] = {}

    @property
    def listed(self) -> tuple[AddedStream, ...]:
        """Those that have a file."""
        return tuple(self._streams.values())

    def find_shards(self, name: str) -> set[str]:
        """The shards that have a file of a stream."""
        stream = self._streams.get(name)
        return {file.shard_name for file in stream.shards} if stream else set()

    def check(self, header: StreamHeader) -> None:
        """Raise ConfigError where the store has another stream of this name."""
        if header.name in self._in_shards:
            raise ConfigError(
                f"{self._store}: the store has a stream {header.name} in its shards. Give the "
                "encoder's stream another name, or choose another --store folder."
            )
        there = self._streams.get(header.name)
        for what in ("rows", "size", "fingerprint") if there else ():
            found, asked = getattr(there, what), getattr(header, what)
            if found != asked:
                raise ConfigError(
                    f"{self._store}: its stream {header.name} has the {what} {found}, this "
                    f"encoder's has {asked}. Give the encoder's stream another name, or delete the "
                    f"folder streams/{header.name} there: the stream is then made anew."
                )

    def take_up(self, listed: Sequence[AddedStream]) -> None:
        """Know what a store.json lists, where it is still there, and take in what it does not.

        Raises as ``add``; what is not listed is read as a whole.
        """
        names = dict.fromkeys(find_stream_files(self._store))
        for stream in listed:
            files = tuple(file for file in stream.shards if file.name in names)
            if files:
                self._streams[stream.name] = replace(stream, shards=files)
            for file in files:
                del names[file.name]
        for name in names:
            check_stream_file(self._store / name)
            self.add(name)

    def add(self, name: str) -> None:
        """Add a finished file to its stream. name: its path in the store.

        Raises:
            ShardError: it is damaged, or its clips and rows are not those of its shard.
            ConfigError: as ``check``.
        """
        file = self._store / name
        index = read_stream_index(file)
        header, folder = index.header, file.parent.name
        if header.name != folder:
            raise ShardError(
                f"{file}: its stream is {header.name!r}, expected {folder!r} as its folder is "
                f"named. {STREAM_REMEDY}."
            )
        check_listed(index, header, read_shard_index(self._store / "shards" / file.name))
        self.check(header)
        added = StreamFile(name=name, sha256=hash_file(file), n_bytes=index.state.n_bytes)
        stream = self._streams.get(folder) or AddedStream(**vars(header))
        files = list(stream.shards)
        bisect.insort(files, added, key=lambda file: order_shard(file.shard_name))
        self._streams[folder] = replace(stream, shards=tuple(files))


class StreamReader:
    """Reads the streams beside the shards of a store; their files are checked when first read."""

    def __init__(
        self, store: Path, listed: Sequence[AddedStream], shards: Sequence[str], *, verify: bool
    ) -> None:
        """Nothing is read yet.

        Args:
            store: The store's folder.
            listed: Its streams beside the shards.
            shards: Names of its shards.
            verify: Hash each file, all of it, before anything of it is read.
        """
        self.listed = {stream.name: stream for stream in listed}
        """By name."""
        self._store = store
        self._shards = tuple(shards)
        self._verify = verify
        self._files = {
            (stream.name, Path(file.name).name): file for stream in listed for file in stream.shards
        }
        self._indices: dict[str, StreamIndex] = {}
        """By name of the file."""

    def find_lacking(self, name: str) -> list[str]:
        """The shards that have no file of a stream."""
        files = self.listed[name].shards
        there = {file.shard_name for file in files if (self._store / file.name).is_file()}
        return [shard for shard in self._shards if shard not in there]

    def check_sizes(self) -> None:
        """Raise ShardError where a file is not as long as listed; one may be missing."""
        for file in self.find_files():
            if problem := find_wrong_size(self._store / file.name, file):
                raise ShardError(f"{problem} {STREAM_REMEDY}, {NO_VERIFY}.")

    def count_bytes(self, name: str | None = None) -> int:
        """Of all files that are there, as listed. name: only those of this stream."""
        return sum(file.n_bytes for file in self.find_files(name))

    def verify(
        self, shards: Mapping[str, ShardIndex], *, progress: Progress = ignore_progress
    ) -> list[str]:
        """All damage in the files, a line each. shards: Those that are whole, by name."""
        problems = []
        n_done, n_all = 0, self.count_bytes()
        for entry in self.find_files():
            file = self._store / entry.name
            if problem := find_damage(file, entry):
                problems.append(f"{problem} {STREAM_REMEDY}")
            elif entry.shard_name in shards:
                try:
                    stream = self.listed[file.parent.name]
                    check_listed(check_stream_file(file), stream, shards[entry.shard_name])
                except ShardError as error:
                    problems.append(f"{error}")
            n_done += entry.n_bytes
            progress(n_done, n_all)
        names = {file.name for stream in self.listed.values() for file in stream.shards}
        return problems + [
            f"{self._store / name}: not listed in store.json. Run extract, which takes it in, or "
            "removes it where its shard is gone"
            for name in find_stream_files(self._store)
            if name not in names
        ]

    def find_files(self, name: str | None = None) -> list[StreamFile]:
        """Those that are there. name: only those of this stream."""
        streams = self.listed.values() if name is None else [self.listed[name]]
        files = (file for stream in streams for file in stream.shards)
        return [file for file in files if (self._store / file.name).is_file()]

    def check_columns(self, shards: Sequence[ShardIndex]) -> None:
        """Check all files that are there, not their values. Raises ShardError."""
        there = {file.name for file in self.find_files()}
        for name, stream in self.listed.items():
            names = {Path(file.name).name for file in stream.shards if file.name in there}
            for shard in shards:
                if shard.path.name in names:
                    self._read_index(name, shard)

    def find_complete(self) -> dict[str, StreamHeader]:
        """The streams that every shard has a file of, by name."""
        return {n: stream.header for n, stream in self.listed.items() if not self.find_lacking(n)}

    def iter_rows(
        self, name: str, shard: ShardIndex, rows: Sequence[int]
    ) -> Iterator[NDArray[np.float16]]:
        """Yield the values [n, D] of a stream of some clips of a shard. rows: of the clips.

        Raises:
            ShardError: The file is damaged, is not of this stream or shard, or was replaced since
                it was first read.
        """
        index = self._read_index(name, shard)
        with open_columns(index.path, STREAM_REMEDY) as columns:
            yield from iter_rows(index.path, index.state, columns, "values", index.row_offset, rows)

    def _read_index(self, name: str, shard: ShardIndex) -> StreamIndex:
        stream = self.listed[name]
        entry = self._files[name, shard.path.name]
        if entry.name not in self._indices:
            file = self._store / entry.name
            if self._verify and (problem := find_damage(file, entry)):
                raise ShardError(f"{problem} {STREAM_REMEDY}, {NO_VERIFY}.")
            index = read_stream_index(file)
            check_listed(index, stream, shard)
            self._indices[entry.name] = index
        return self._indices[entry.name]


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
        for _ in iter_rows(path, index.state, columns, "values", index.row_offset, rows):
            pass
    return index


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
    if version != STREAM_FORMAT_VERSION:
        raise ShardError(
            f"{path}: stream format {version}, but this code reads {STREAM_FORMAT_VERSION}. "
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
        row_offset=row_offset,
        state=state,
    )
