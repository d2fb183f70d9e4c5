"""Writes the files of streams that join a finished shard, or take the places of some."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.store.shard_format import Lack, StreamHeader
from features.store.shard_writer import StreamShardWriter
from features.store.streams.index import StreamIndex, iter_clip_parts, read_stream_index


class AddedFiles:
    """The files of one shard at a time, one for each stream that it is to get.

    Where a stream has a file of the shard already, as clips in it lack the stream, the rows of all
    other clips are copied.
    """

    def __init__(self, store: Path, headers: Sequence[StreamHeader]) -> None:
        """Nothing is written yet. headers: Of all streams that may be written."""
        self._store = store
        self._headers = {header.name: header for header in headers}
        self._writers: dict[str, StreamShardWriter] = {}
        self._before: dict[str, StreamIndex] = {}
        """The file that is there, by stream."""

    def add_rows(self, shard_name: str, values: Mapping[str, NDArray[np.float16]]) -> None:
        """Write rows of the clip at hand. values: stream -> [n, D]. Raises as ``end_clip``."""
        for name, rows in values.items():
            self._find_writer(name, shard_name).add_rows(rows)

    def end_clip(
        self,
        shard_name: str,
        clip: tuple[str, str],
        *,
        n_rows: Mapping[str, int],
        streams: Collection[str],
        wanted: Collection[str],
        lacks: Lack,
    ) -> None:
        """End a clip in all files of the shard.

        Args:
            shard_name: Of the shard, in store.json.
            clip: Its id, and the SHA-256 of its file, as in the shard.
            n_rows: ``frame`` or ``face`` -> how many it has.
            streams: That the shard is to get.
            wanted: Those of which the clip was to get rows. In the others its rows are those that
                are there, else zeros.
            lacks: Whether it has not got them: what was added is dropped.

        Raises:
            ShardError: a file that is there is damaged. OSError: a full disk.
        """
        for name in streams:
            writer, before = self._find_writer(name, shard_name), self._before.get(name)
            lack = Lack.NO
            if name in wanted:
                lack = lacks
            elif before is not None:
                row = len(writer.lacks)
                lack = before.lacks[row]
                for rows in iter_clip_parts(before, row):
                    writer.add_rows(rows)
            if (name in wanted and lack) or (name not in wanted and before is None):
                writer.drop_clip()
                writer.add_zeros(n_rows[writer.header.rows])
            writer.close_clip(*clip, lack)

    def finish(self) -> list[str]:
        """Give the files of the shard their names; what they are in the store. Raises OSError.

        A file in which the same clips lack the stream as before is not needed, and not among them.
        """
        writers, self._writers = self._writers, {}
        before, self._before = self._before, {}
        done: list[str] = []
        try:
            for name in list(writers):
                if name not in before or writers[name].lacks != before[name].lacks:
                    writers[name].finish()
                    done.append(str(writers.pop(name).path.relative_to(self._store)))
        finally:
            _abandon(writers.values())
        return done

    def abandon(self) -> None:
        """Remove what there is of the files of the shard at hand. Never raises OSError."""
        writers, self._writers, self._before = self._writers, {}, {}
        _abandon(writers.values())

    def _find_writer(self, name: str, shard_name: str) -> StreamShardWriter:
        if name not in self._writers:
            writer = StreamShardWriter(self._store, self._headers[name], shard_name)
            self._writers[name] = writer
            if writer.path.exists():
                self._before[name] = read_stream_index(writer.path)
        return self._writers[name]


def _abandon(writers: Iterable[StreamShardWriter]) -> None:
    """HDF5 must not find them open when the process ends."""
    for writer in writers:
        writer.abandon()
