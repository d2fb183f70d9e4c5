"""Reads the values of streams beside the shards, and which clips lack one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.disk import Progress, ignore_progress
from features.errors import ShardError
from features.store.hdf5_files import iter_rows, open_columns
from features.store.index import (
    NO_VERIFY,
    AddedStream,
    StreamFile,
    find_damage,
    find_stream_files,
    find_wrong_size,
)
from features.store.shard_format import Lack, StreamHeader
from features.store.shard_reader import ShardIndex
from features.store.streams.index import (
    STREAM_REMEDY,
    StreamIndex,
    check_listed,
    check_stream_file,
    read_stream_index,
)


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

    def find_missing(self, name: str) -> list[str]:
        """The shards that have no file of a stream."""
        files = self.listed[name].shards
        there = {file.shard_name for file in files if (self._store / file.name).is_file()}
        return [shard for shard in self._shards if shard not in there]

    def find_lacking(self, name: str, shard: ShardIndex, rows: Sequence[int]) -> dict[str, Lack]:
        """Which of some clips of a shard lack a stream, by id; rows: of the clips.

        Only a file that has such clips is read. Raises ShardError as ``iter_rows``.
        """
        ids = shard.columns["id"]
        entry = self._files.get((name, shard.path.name))
        if entry is None or not (self._store / entry.name).is_file():
            return {ids[row]: Lack.RETRIED for row in rows}
        if not entry.n_lacking:
            return {}
        lacks = self._read_index(name, shard).lacks
        return {ids[row]: lacks[row] for row in rows if lacks[row]}

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
                    index = check_stream_file(file)
                    self._check(index, entry, shards[entry.shard_name])
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
        return {n: stream.header for n, stream in self.listed.items() if not self.find_missing(n)}

    def iter_rows(
        self, name: str, shard: ShardIndex, rows: Sequence[int]
    ) -> Iterator[NDArray[np.float16]]:
        """Yield the values [n, D] of a stream of some clips of a shard. rows: of the clips.

        Zeros of a clip that lacks it.

        Raises:
            ShardError: The file is damaged, is not of this stream or shard, or was replaced since
                it was first read.
        """
        index = self._read_index(name, shard)
        with open_columns(index.path, STREAM_REMEDY) as columns:
            yield from iter_rows(index.path, index.state, columns, "values", index.row_offset, rows)

    def _read_index(self, name: str, shard: ShardIndex) -> StreamIndex:
        entry = self._files[name, shard.path.name]
        if entry.name not in self._indices:
            file = self._store / entry.name
            if self._verify and (problem := find_damage(file, entry)):
                raise ShardError(f"{problem} {STREAM_REMEDY}, {NO_VERIFY}.")
            index = read_stream_index(file)
            self._check(index, entry, shard)
            self._indices[entry.name] = index
        return self._indices[entry.name]

    def _check(self, index: StreamIndex, entry: StreamFile, shard: ShardIndex) -> None:
        check_listed(index, self.listed[index.path.parent.name], shard)
        if index.n_lacking != entry.n_lacking:
            raise ShardError(
                f"{index.path}: {index.n_lacking} clips lack the stream, expected "
                f"{entry.n_lacking} as in store.json. {STREAM_REMEDY}."
            )
