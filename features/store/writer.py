"""Writes stores: any number of processes write shards, one lists them; each is seen once whole.

::

    ClipWriter         shards/.0007.h5.partial -> shards/0007.h5     one or more, in any process
    StreamShardWriter  streams/NAME/.0007.h5.partial -> .../0007.h5  the same
    StoreWriter        .lock, store.json                             one a store
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from filelock import FileLock, Timeout

from features.contracts import FACE_VECTOR_SIZE, ClipFeatures
from features.disk import sync_folder, uninterrupted, write_atomically
from features.errors import ConfigError, ShardError
from features.store.clip_writer import ClipWriter
from features.store.index import (
    RELABELLING,
    AddedStream,
    ShardEntry,
    describe_shard,
    find_damage,
    find_shard_files,
    find_stream_files,
    order_shard,
    read_store_index,
    write_store_index,
)
from features.store.reader import Store
from features.store.shard_format import ShardHeader, StreamHeader
from features.store.shard_reader import check_shard, read_shard_index
from features.store.shard_writer import rewrite_clip_columns
from features.store.streams.listing import StreamListing

SHARD_FRAMES = 4096
"""A shard is finished when it has this many frames: what a crash can cost each worker at most."""


class StoreWriter:
    """Holds a store's lock: takes up what is there, lists finished shards, changes labels.

    Use as a context manager; on the way out, whatever the reason, the clips of ``add`` are in a
    finished shard, unless it cannot be written. Those who write to the store beside it have ended
    by then: what they left unfinished goes.
    """

    def __init__(
        self, path: Path, header: ShardHeader, stream_headers: Sequence[StreamHeader] = ()
    ) -> None:
        """Make the folder or take up the store in it.

        Args:
            path: The folder.
            header: Of all its shards.
            stream_headers: Streams beside the shards that the clips of ``add`` have.

        Raises:
            ConfigError: the store there has another fingerprint or other classes, a stream of the
                same name that another encoder made, or another process writes to it.
            ShardError: the store there is damaged.
        """
        self.path = path
        self.header = header
        (path / "shards").mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / ".lock")
        self._stream_headers = tuple(stream_headers)
        self._clips = ClipWriter(path, header, SHARD_FRAMES, stream_headers)
        self._shards: list[ShardEntry] = []
        """By number: of a clip in two of them, the later one counts."""
        self._streams = StreamListing(path, header)

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{self.path}: another extract is writing to this store") from None
        try:
            self._take_up()
            for stream in self._stream_headers:
                self._streams.check(stream)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        failed: OSError | None = None
        try:
            with uninterrupted():
                try:
                    self._finish_shard()
                except OSError as full:
                    failed = full
                remove_unfinished(self.path)
        finally:
            self._lock.release()
        if failed is not None and not isinstance(error, OSError):
            raise failed

    def open(self) -> Store:
        """The finished part of the store, for reading."""
        return Store(self.path, self.header, self._shards, self._streams.listed, verify=False)

    def add(self, clip: ClipFeatures) -> None:
        """Append a clip; finishes the shard when it is full. Raises OSError (a full disk)."""
        self._clips.drop_clip()
        with uninterrupted():
            self._clips.add_rows(clip)
            self._clips.close_clip(clip)
            if self._clips.is_full:
                self._finish_shard()

    def list_shard(self, shard: ShardEntry) -> None:
        """Take a finished shard, and its files of streams, into store.json.

        Raises:
            OSError: a full disk. ShardError, ConfigError: as ``list_stream_file``.
        """
        with uninterrupted():
            bisect.insort(self._shards, shard, key=lambda listed: order_shard(listed.name))
            for name in find_stream_files(self.path, shard.name):
                self._streams.add(name)
            self._write_index()

    def list_stream_file(self, file: Path) -> None:
        """Take a finished file of a stream, whose shard is listed, into store.json.

        It may have taken the place of one in which more clips lacked the stream.

        Args:
            file: ``StreamShardWriter.path``.

        Raises:
            OSError: a full disk.
            ShardError: it is damaged, or its clips and rows are not those of its shard.
            ConfigError: other files of the stream come from another encoder.
        """
        with uninterrupted():
            if f"shards/{file.name}" not in (shard.name for shard in self._shards):
                raise ValueError(f"{file}: the shard of this number is not listed")
            self._streams.add(str(file.relative_to(self.path)))
            self._write_index()

    def missing_streams(self, header: StreamHeader) -> list[str]:
        """The shards, by name and number, that have no file of a stream yet.

        Raises:
            ConfigError: the store has a stream of this name that another encoder made.
        """
        self._streams.check(header)
        there = self._streams.find_shards(header.name)
        return [shard.name for shard in self._shards if shard.name not in there]

    def _finish_shard(self) -> None:
        shard = self._clips.finish()
        if shard is not None:
            self.list_shard(shard)

    def relabel(self, updates: Mapping[str, Mapping[str, str]]) -> None:
        """Change text columns of clips (id -> column -> value) without touching their features.

        No reader sees some old labels and some new: meanwhile the store is refused.

        Raises:
            OSError: a full disk; some shards keep their old labels.
            ShardError: a damaged shard; all do.
        """
        rows = {
            number: {clip_id: updates[clip_id] for clip_id in here}
            for number, shard in enumerate(self._shards)
            if (here := updates.keys() & read_shard_index(self.path / shard.name).columns["id"])
        }
        for shard in (self._shards[number] for number in rows):
            if problem := find_damage(self.path / shard.name, shard):
                raise ShardError(
                    f"{problem} So no labels are changed. Delete the file and run extract: its "
                    "clips are extracted again."
                )
        if not rows:
            return
        names = "".join(f"{self._shards[number].name}\n" for number in rows)
        write_atomically(self.path / RELABELLING, names)
        try:
            for number, changes in rows.items():
                file = self.path / self._shards[number].name
                with uninterrupted():
                    try:
                        rewrite_clip_columns(file, changes)
                    finally:
                        self._shards[number] = describe_shard(self.path, file)
        finally:
            self._end_relabelling()

    def _end_relabelling(self) -> None:
        """Say what the shards are now; from then on the store may be read."""
        with uninterrupted():
            self._write_index()
            (self.path / RELABELLING).unlink(missing_ok=True)
            sync_folder(self.path)

    def _take_up(self) -> None:
        remove_unfinished(self.path)
        known: dict[str, ShardEntry] = {}
        streams: Sequence[AddedStream] = ()
        if (self.path / "store.json").is_file():
            index = read_store_index(self.path, relabelling=True)
            known = {shard.name: shard for shard in index.shards}
            streams = index.added_streams
        if (self.path / RELABELLING).is_file():  # a crash: some have new labels
            for name in (self.path / RELABELLING).read_text().splitlines():
                known.pop(name, None)
        names = find_shard_files(self.path)
        if known.keys() & names:
            self._check_header(index.header)
        # A shard that exists is complete, listed or not: the crash came before the listing.
        self._shards = [known.get(name) or self._adopt(self.path / name) for name in names]
        self._streams.take_up(streams)
        self._end_relabelling()

    def _write_index(self) -> None:
        write_store_index(self.path, self.header, self._shards, self._streams.listed)

    def _adopt(self, file: Path) -> ShardEntry:
        index = check_shard(file)
        self._check_header(index.header)
        return describe_shard(self.path, file, index)

    def _check_header(self, found: ShardHeader) -> None:
        """Raise ConfigError where shards with this header and ours do not make one store."""
        if found.fingerprint != self.header.fingerprint:
            raise ConfigError(
                f"{self.path}: this store has fingerprint {found.fingerprint[:12]}, these settings "
                f"give {self.header.fingerprint[:12]} ({_explain(self.header, found)}). Choose "
                "another --store folder, or the settings the store was made with."
            )
        if found.classes != self.header.classes:
            raise ConfigError(
                f"{self.path}: this store declares the classes {', '.join(found.classes)}; "
                f"asked for: {', '.join(self.header.classes)}. Choose another --store folder."
            )
        if _list_optional(found) != _list_optional(self.header):
            raise ConfigError(
                f"{self.path}: this store keeps {_list_optional(found)}; to be added: "
                f"{_list_optional(self.header)}. Choose another --store folder."
            )


def remove_unfinished(store: Path, shard_name: str = "*") -> None:
    """Remove what writers that are gone left of a shard, or of all. Only under the store's lock.

    Also the files of streams whose shard has not got its name, or is gone: another shard may get
    its number.
    """
    stem = Path(shard_name).stem
    for name in find_stream_files(store, shard_name):
        if not (store / "shards" / Path(name).name).is_file():
            (store / name).unlink(missing_ok=True)
    # A shard's own partial file is the claim to its number: it goes last.
    for folder in ("streams/*", "shards"):
        for leftover in store.glob(f"{folder}/.{stem}.*partial"):
            leftover.unlink(missing_ok=True)


def _explain(here: ShardHeader, there: ShardHeader) -> str:
    """Which setting, weights or library make two fingerprints differ."""
    ours, theirs = (
        {**h.config, **h.weights, "decoder": h.versions.get("decoder")} for h in (here, there)
    )
    names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    return "; ".join(f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in names)


def _list_optional(header: ShardHeader) -> str:
    """What a store may keep beside what every store has, in words."""
    maps = f"face maps {header.face_map_shape}" if header.face_map_shape else "no face maps"
    shown = ", ".join(header.expressions)
    faces = "" if header.keeps_context else "no context, "
    faces += f"face vectors [{header.face_vector_size}]" if header.keeps_face else "no face vectors"
    faces += f", {maps}, expressions ({shown})" if shown else f", {maps}, no expressions"
    streams = [f"{name} [{size}]" for name, size in sorted(header.streams.items())]
    return f"{faces} and {'the streams ' + ', '.join(streams) if streams else 'no extra stream'}"


def write_store(
    path: Path | str,
    clips: Iterable[ClipFeatures],
    *,
    classes: Sequence[str],
    fingerprint: str,
    config: Mapping[str, Any] = MappingProxyType({}),
    face_map_shape: tuple[int, int, int] | None = None,
    face_vector_size: int = FACE_VECTOR_SIZE,
    keeps_context: bool = True,
    keeps_face: bool = True,
    licences: Mapping[str, str] = MappingProxyType({}),
    expressions: Sequence[str] = (),
    streams: Mapping[str, int] = MappingProxyType({}),
    added_streams: Sequence[StreamHeader] = (),
) -> Path:
    """Write features that were made elsewhere as a store, or add them to one.

    Args:
        path: The store's folder.
        clips: In any order, read or made with context_7x7.
        classes: Class names, in order.
        fingerprint: Names how the features were made; only equal ones may be mixed.
        config: Anything that tells how they were made.
        face_map_shape: (C, h, w) where every clip has a face_map.
        face_vector_size: Values of each face's vector.
        keeps_context: Whether every clip has context_2x2 and context_7x7; without them one of
            ``added_streams`` may be named ``context``.
        keeps_face: The same of face_vector, and ``face``.
        licences: ``context`` and ``face`` -> licence of the weights that made them.
        expressions: Names of the K expressions where every clip has a face_expression; without
            names these are left out.
        streams: Extra stream -> values a frame, those that every clip has, in the shards.
        added_streams: Streams of frames or faces that every clip has, in files beside the shards.

    Raises:
        ConfigError, ShardError: as StoreWriter. ValueError: a clip lacks a part.
    """
    header = ShardHeader(
        fingerprint=fingerprint,
        classes=tuple(classes),
        config=dict(config),
        weights={},
        versions={},
        face_map_shape=face_map_shape,
        face_vector_size=face_vector_size,
        keeps_context=keeps_context,
        keeps_face=keeps_face,
        licences=dict(licences),
        expressions=tuple(expressions),
        streams=dict(streams),
    )
    with StoreWriter(Path(path), header, added_streams) as writer:
        for clip in clips:
            writer.add(clip)
    return Path(path)
