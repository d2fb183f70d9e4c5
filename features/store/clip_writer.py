"""Writes clips to shards, and their added streams to files beside these; lists none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.contracts import SPLITS, ClipFeatures
from features.disk import partial_path
from features.store.index import ShardEntry, describe_shard, find_shard_files, order_shard
from features.store.shard_format import ShardHeader, StreamHeader, name_number
from features.store.shard_writer import ShardWriter, StreamShardWriter

Rows = NDArray[np.float16]


class ClipWriter:
    """Writes clips to shards of its own, one shard after another; lists none in store.json.

    Any number of these, in any processes, may write to a store at once: two never write to shards
    of one name. Only while one process holds the lock of the store, which is not taken here.
    """

    def __init__(
        self,
        store: Path,
        header: ShardHeader,
        shard_frames: int,
        stream_headers: Sequence[StreamHeader] = (),
    ) -> None:
        """No shard is begun yet.

        Args:
            store: The folder; its folder ``shards`` is there.
            header: Of all its shards.
            shard_frames: A shard is full when it has as many.
            stream_headers: Streams that every clip has beside those of ``header``: their files
                have their names before the shard has its own.
        """
        self.shard_frames = shard_frames
        self._store = store
        self._header = header
        self._stream_headers = tuple(stream_headers)
        self._shard: ShardWriter | None = None
        self._streams: list[StreamShardWriter] = []
        """Of the shard at hand."""
        self._next_number: int | None = None

    @property
    def shard_name(self) -> str | None:
        """What the shard at hand will be named in store.json; None: there is none at hand."""
        return None if self._shard is None else f"shards/{self._shard.path.name}"

    @property
    def is_full(self) -> bool:
        """Whether it is time to finish the shard at hand."""
        return self._shard is not None and self._shard.frame_offset[-1] >= self.shard_frames

    def add_rows(self, part: ClipFeatures) -> None:
        """Write rows of the clip at hand; ``close_clip`` or ``drop_clip`` ends it.

        part: Frames that follow those before. Raises OSError (a full disk).
        """
        if part.label and part.label not in self._header.classes:
            raise ValueError(f"clip {part.clip_id}: label {part.label!r} is not a declared class")
        if part.split not in SPLITS:
            raise ValueError(f"clip {part.clip_id}: split {part.split!r} is not one of {SPLITS}")
        added, rest = self._take_streams(part)
        if self._shard is None:
            self._begin_shard()
        assert self._shard is not None
        self._shard.add_rows(rest)
        for stream in self._streams:
            stream.add_rows(added[stream.header.name])

    def close_clip(self, clip: ClipFeatures) -> None:
        """End the clip at hand. clip: any part of it, for all that is not rows."""
        if self._shard is None:
            raise ValueError(f"clip {clip.clip_id} has ended without a row")
        self._shard.close_clip(clip)
        for stream in self._streams:
            stream.close_clip(clip.clip_id, clip.sha256)

    def drop_clip(self) -> None:
        """Forget the rows of the clip at hand."""
        if self._shard is not None:
            self._shard.drop_clip()
        for stream in self._streams:
            stream.drop_clip()

    def finish(self) -> ShardEntry | None:
        """Give the shard at hand its final name; without clips it goes. Raises OSError.

        Returns:
            What store.json is to say of it; None: it had no clip, or there was none.
        """
        shard, self._shard = self._shard, None
        streams, self._streams = self._streams, []
        if shard is None:
            return None
        if len(shard.frame_offset) == 1:  # only rows of a clip that has not ended
            _abandon(shard, streams)
            return None
        try:
            for stream in streams:
                stream.finish()
            shard.finish()
        except BaseException:  # HDF5 must not find it open when the process ends
            _abandon(shard, streams)
            raise
        return describe_shard(self._store, shard.path)

    def _begin_shard(self) -> None:
        path = self._claim_shard()
        self._shard = ShardWriter(path, self._header)
        try:
            for header in self._stream_headers:
                self._streams.append(StreamShardWriter(self._store, header, path.name))
        except BaseException:
            shard, self._shard = self._shard, None
            streams, self._streams = self._streams, []
            _abandon(shard, streams)
            raise

    def _claim_shard(self) -> Path:
        """The path of a shard; its partial file is made, which nobody else can do.

        Its number is above those of all shards that were finished when this writer began.
        """
        if self._next_number is None:
            names = find_shard_files(self._store)
            self._next_number = order_shard(names[-1])[0] + 1 if names else 0
        while True:
            number = self._next_number
            path = self._store / "shards" / name_number(number)
            self._next_number += 1
            try:
                partial_path(path).touch(exist_ok=False)
            except FileExistsError:
                continue  # another was faster
            if not path.exists():
                return path
            partial_path(path).unlink()  # another began and finished it meanwhile

    def _take_streams(self, part: ClipFeatures) -> tuple[dict[str, Rows], ClipFeatures]:
        """The rows of the streams beside the shard, by name, and the part without these."""
        if not self._stream_headers:
            return {}, part
        added: dict[str, Rows] = {}
        left = {"frame": dict(part.streams), "face": dict(part.face_streams)}
        for header in self._stream_headers:
            rows = left[header.rows].pop(header.name, None)
            if rows is None:
                raise ValueError(
                    f"clip {part.clip_id}: it has no stream {header.name} with a row a "
                    f"{header.rows}, which the store is to have"
                )
            added[header.name] = rows
        return added, replace(part, streams=left["frame"], face_streams=left["face"])


def _abandon(shard: ShardWriter, streams: Sequence[StreamShardWriter]) -> None:
    """Remove all that there is of a shard that has not got its name."""
    for stream in streams:
        stream.abandon()
        stream.path.unlink(missing_ok=True)
    shard.abandon()
