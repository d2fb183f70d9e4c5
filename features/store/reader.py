"""A store: a folder of shards that share one fingerprint, their index, and who failed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.contracts import ClipFeatures
from features.disk import Progress, ignore_progress, read_state
from features.errors import ShardError
from features.store.index import (
    NO_VERIFY,
    AddedStream,
    ShardEntry,
    find_contradiction,
    find_damage,
    find_shard_files,
    find_wrong_size,
    read_failures,
    read_store_index,
)
from features.store.shard_format import Lack, ShardHeader, StreamHeader
from features.store.shard_reader import (
    ShardIndex,
    check_shard,
    iter_expressions,
    iter_shard_clips,
    read_shard_index,
)
from features.store.streams.reader import StreamReader

_REMEDY = "Delete the file and run extract: its clips are extracted again"

_CLIP_COLUMNS = (
    "id", "label", "split", "subject", "source", "status", "n_phases", "start_s", "end_s",
    "decoder", "sha256", "extra", "notes",
)  # fmt: skip


class Store:
    """A store opened for reading; holds its index, reads features when asked."""

    def __init__(
        self,
        path: Path,
        header: ShardHeader,
        shards: Sequence[ShardEntry],
        added_streams: Sequence[AddedStream] = (),
        *,
        verify: bool = True,
    ) -> None:
        """verify: hash each shard, all of it, before anything of it is read."""
        self.path = path
        self.header = header
        self.shards = tuple(shards)
        self._verify = verify
        names = [shard.name for shard in shards]
        self.streams_beside = StreamReader(path, added_streams, names, verify=verify)
        """Also those that some clips lack."""
        self._splits: Mapping[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        return self.header.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    @cached_property
    def streams(self) -> Mapping[str, StreamHeader]:
        """The extra streams, in the shards and beside them, by name: of all shards.

        Single clips may lack one (``find_lacking``): their features do not hold it.
        """
        inside = {
            name: StreamHeader(
                name=name, rows="frame", size=size, fingerprint=self.fingerprint, encoder={}
            )
            for name, size in self.header.streams.items()
        }
        return inside | self.streams_beside.find_complete()

    def find_lacking(self, name: str) -> dict[str, Lack]:
        """The clips that lack a stream, by id, in the store's order; also where a shard does.

        Raises:
            ShardError: A file of the stream that says so is damaged.
        """
        lacking: dict[str, Lack] = {}
        for number, places in groupby(self._places, key=itemgetter(0)):
            if name not in self.header.streams:
                rows, index = [row for _, row in places], self._indices[number]
                lacking |= self.streams_beside.find_lacking(name, index, rows)
        return lacking

    def with_splits(self, splits: Mapping[str, str]) -> Store:
        """The same store on disk, with other splits; clips that are not named are not there.

        No feature of a clip that is left out is read.

        Args:
            splits: Clip id -> split; ids that the store lacks are passed over.
        """
        store = Store(self.path, self.header, self.shards)
        store._splits = splits
        store.streams_beside = self.streams_beside
        store._indices = self._indices  # read, and hashed, once
        return store

    @cached_property
    def _indices(self) -> tuple[ShardIndex, ...]:
        return tuple(self._read_index(shard) for shard in self.shards)

    def _read_index(self, shard: ShardEntry) -> ShardIndex:
        file = self.path / shard.name
        before = read_state(file)
        if self._verify and (problem := find_damage(file, shard)):
            raise ShardError(f"{problem} {_REMEDY}, {NO_VERIFY}.")
        index = read_shard_index(file)
        if index.state != before:
            raise ShardError(f"{file}: changed while it was read. Run the same again.")
        if problem := find_contradiction(index, self.header, shard):
            raise ShardError(f"{problem} {_REMEDY}.")
        return index

    @cached_property
    def _places(self) -> tuple[tuple[int, int], ...]:
        """(shard, row) of each clip; of a clip that was extracted again, only the newest."""
        newest: dict[str, tuple[int, int]] = {}
        for number, index in enumerate(self._indices):
            for row, clip_id in enumerate(index.columns["id"]):
                if self._splits is None or clip_id in self._splits:
                    newest[clip_id] = (number, row)
        return tuple(sorted(newest.values()))

    @cached_property
    def clips(self) -> pd.DataFrame:
        """One row a clip, in the store's order, without features: id, label, counts and so on."""
        names = (*_CLIP_COLUMNS, "n_frames", "n_faces", "shard")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, places in groupby(self._places, key=itemgetter(0)):
            rows, index = [row for _, row in places], self._indices[number]
            for name in _CLIP_COLUMNS:
                values = index.columns[name]
                columns[name] += [values[row] for row in rows]
            columns["n_frames"] += np.diff(index.frame_offset)[rows].tolist()
            columns["n_faces"] += np.diff(index.face_offset)[rows].tolist()
            columns["shard"] += [self.shards[number].name] * len(rows)
        if self._splits is not None:
            columns["split"] = [self._splits[clip_id] for clip_id in columns["id"]]
        return pd.DataFrame(columns).rename(columns={"id": "clip_id"})

    def check_columns(self) -> None:
        """Check all columns of all shards and streams, not what is in them. Raises ShardError."""
        for index in self._indices:
            deque(iter_shard_clips(index, ()), maxlen=0)
        self.streams_beside.check_columns(self._indices)

    def sum_notes(self) -> dict[str, dict[str, float]]:
        """Name of a note (FORMAT.md) -> how many clips have it, and the sum of their amounts."""
        sums: dict[str, dict[str, float]] = {}
        for notes in map(json.loads, self.clips["notes"]):
            for name, amount in notes.items():
                note = sums.setdefault(name, {"clips": 0, "total": 0})
                note["clips"] += 1
                note["total"] += amount
        return dict(sorted(sums.items()))

    def sum_expressions(self) -> NDArray[np.float64]:
        """[len(self), K] Probabilities of ``header.expressions``, summed over each clip's faces."""
        n_names = len(self.header.expressions)
        sums = [
            values.sum(axis=0, dtype=np.float64)
            for number, places in groupby(self._places if n_names else (), key=itemgetter(0))
            for values in iter_expressions(self._indices[number], [row for _, row in places])
        ]
        if not np.isfinite(sums).all():
            raise ShardError(f"{self.path}: its /face/expression holds values that are no numbers.")
        return np.array(sums).reshape(len(self), n_names)

    @property
    def failures(self) -> pd.DataFrame:
        """The rows of failures.csv."""
        return read_failures(self.path)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[ClipFeatures]:
        """The clips in the store's order, without context_7x7 and face maps."""
        return self.iter_clips()

    def iter_clips(
        self,
        *,
        context_7x7: bool = False,
        face_map: bool = False,
        streams: Collection[str] | None = None,
    ) -> Iterator[ClipFeatures]:
        """The clips in the store's order, shard by shard; a block of frames is in memory at a time.

        Args:
            context_7x7: Whether to read these, which are large.
            face_map: The same.
            streams: Names of ``streams`` to be read; None: all.

        Raises:
            ShardError: a shard or a stream's file is damaged, or the store keeps no face maps, or
                not all of its clips have such a stream.
        """
        names = self._choose_streams(streams)
        for number, places in groupby(self._places, key=itemgetter(0)):
            rows, index = [row for _, row in places], self._indices[number]
            clips = iter_shard_clips(index, rows, context_7x7=context_7x7, face_map=face_map)
            for clip in self._put_streams(clips, index, rows, names):
                yield self._put_in_split(clip)

    def read_clip(
        self,
        i: int,
        *,
        context_7x7: bool = False,
        face_map: bool = False,
        streams: Collection[str] | None = None,
    ) -> ClipFeatures:
        """Clip i of ``clips``. Arguments and ShardError as of ``iter_clips``; raises IndexError."""
        names = self._choose_streams(streams)
        number, row = self._places[i]
        index = self._indices[number]
        clips = iter_shard_clips(index, [row], context_7x7=context_7x7, face_map=face_map)
        (clip,) = self._put_streams(clips, index, [row], names)
        return self._put_in_split(clip)

    def _choose_streams(self, names: Collection[str] | None) -> Collection[str]:
        if names is None:
            return self.streams.keys()
        for name in sorted(set(names) - self.streams.keys()):
            raise ShardError(
                f"{self.path}: not all clips have the stream {name!r}, but "
                f"{', '.join(self.streams) or 'no extra stream'}. Run extract with its encoder."
            )
        return names

    def _put_streams(
        self,
        clips: Iterator[ClipFeatures],
        index: ShardIndex,
        rows: Sequence[int],
        names: Collection[str],
    ) -> Iterator[ClipFeatures]:
        """The clips of some rows of a shard with these streams and no other."""
        if set(names) == self.header.streams.keys():
            yield from clips
            return
        beside = [self.streams[name] for name in names if name not in self.header.streams]
        values = [self.streams_beside.iter_rows(s.name, index, rows) for s in beside]
        lacks = {s.name: self.streams_beside.find_lacking(s.name, index, rows) for s in beside}
        for clip, *of_clip in zip(clips, *values, strict=True):
            pairs = zip(beside, of_clip, strict=True)
            found = [(s, rows) for s, rows in pairs if clip.clip_id not in lacks[s.name]]
            inside = {name: rows for name, rows in clip.streams.items() if name in names}
            yield replace(
                clip,
                streams=inside | {s.name: rows for s, rows in found if s.rows == "frame"},
                face_streams={s.name: rows for s, rows in found if s.rows == "face"},
            )

    def _put_in_split(self, clip: ClipFeatures) -> ClipFeatures:
        return clip if self._splits is None else replace(clip, split=self._splits[clip.clip_id])


def open_store(path: Path | str, *, verify: bool = True) -> Store:
    """Open a store for reading.

    Args:
        path: Its folder.
        verify: Hash each shard, all of it, before anything of it is read: one flipped bit is then
            a ShardError, never another label. False reads shards as they are.

    Raises:
        ShardError: no store there, store.json damaged or of another version, a shard missing or
            of another size, or a stream's file is. Reading then raises ShardError where a file is
            damaged.
    """
    path = Path(path)
    index = read_store_index(path)
    for shard in index.shards:
        if not (path / shard.name).is_file():
            raise ShardError(
                f"{path / shard.name}: missing, though store.json lists it. Run extract: it "
                "extracts the clips of that shard again"
            )
        if verify and (problem := find_wrong_size(path / shard.name, shard)):
            raise ShardError(f"{problem} {_REMEDY}, {NO_VERIFY}.")
    store = Store(path, index.header, index.shards, index.added_streams, verify=verify)
    if verify:
        store.streams_beside.check_sizes()
    return store


def verify_store(path: Path, *, progress: Progress = ignore_progress) -> list[str]:
    """All damage in a store, a line each; empty where every byte of every shard is as written.

    Args:
        path: Its folder.
        progress: Told after each shard.

    Raises:
        ShardError: there is no store to speak of.
    """
    store = open_store(path, verify=False)
    problems: list[str] = []
    n_done, n_shards = 0, sum(shard.n_bytes for shard in store.shards)
    n_all = n_shards + store.streams_beside.count_bytes()
    whole: dict[str, ShardIndex] = {}
    for shard in store.shards:
        file = path / shard.name
        if problem := find_damage(file, shard):
            problems.append(f"{problem} {_REMEDY}")
        else:
            try:
                whole[shard.name] = check_shard(file)
                if problem := find_contradiction(whole[shard.name], store.header, shard):
                    problems.append(f"{problem} {_REMEDY}")
            except ShardError as error:
                problems.append(f"{error}")
        n_done += shard.n_bytes
        progress(n_done, n_all)
    problems += store.streams_beside.verify(
        whole, progress=lambda n_done, _: progress(n_shards + n_done, n_all)
    )
    listed = {shard.name for shard in store.shards}
    problems += [
        f"{path / name}: not listed in store.json. Run extract, which takes finished shards in"
        for name in find_shard_files(path)
        if name not in listed
    ]
    return problems
