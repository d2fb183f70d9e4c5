"""Which files of streams a store has, as store.json is to list them."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from features.errors import ConfigError, ShardError
from features.fingerprint import hash_file
from features.store.index import (
    AddedStream,
    StreamFile,
    find_damage,
    find_stream_files,
    order_shard,
)
from features.store.shard_format import ShardHeader, StreamHeader
from features.store.shard_reader import read_shard_index
from features.store.streams.index import (
    STREAM_REMEDY,
    check_listed,
    check_stream_file,
    read_stream_index,
)


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

        A file in which clips lack the stream may have been written anew, and not listed.

        Raises as ``add``; what is not listed is read as a whole.
        """
        names = dict.fromkeys(find_stream_files(self._store))
        for stream in listed:
            files = tuple(
                file
                for file in stream.shards
                if file.name in names
                and not (file.n_lacking and find_damage(self._store / file.name, file))
            )
            if files:
                self._streams[stream.name] = replace(stream, shards=files)
            for file in files:
                del names[file.name]
        for name in names:
            check_stream_file(self._store / name)
            self.add(name)

    def add(self, name: str) -> None:
        """Add a finished file to its stream, or what took its place. name: its path in the store.

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
        added = StreamFile(
            name=name,
            sha256=hash_file(file),
            n_bytes=index.state.n_bytes,
            n_lacking=index.n_lacking,
        )
        stream = self._streams.get(folder) or AddedStream(**vars(header))
        files = [listed for listed in stream.shards if listed.name != name]
        bisect.insort(files, added, key=lambda file: order_shard(file.shard_name))
        self._streams[folder] = replace(stream, shards=tuple(files))
