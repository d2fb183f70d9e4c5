"""Writes stores: any number of processes write shards, one lists them; each is seen once whole.

::

    ClipWriter    shards/.0007.h5.partial -> shards/0007.h5    one or more, in any process
    StoreWriter   .lock, store.json                            one a store
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from filelock import FileLock, Timeout

from features.contracts import SPLITS, ClipFeatures
from features.disk import partial_path, sync_folder, uninterrupted, write_atomically
from features.errors import ConfigError, ShardError
from features.store.index import (
    RELABELLING,
    ShardEntry,
    describe_shard,
    find_shard_files,
    order_shard,
    read_store_index,
    write_store_index,
)
from features.store.reader import Store, find_damage
from features.store.shard_format import ShardHeader
from features.store.shard_reader import check_shard, read_shard_index
from features.store.shard_writer import ShardWriter, rewrite_clip_columns

SHARD_FRAMES = 4096
"""A shard is finished when it has this many frames: what a crash can cost each worker at most."""


class ClipWriter:
    """Writes clips to shards of its own, one shard after another; lists none in store.json.

    Any number of these, in any processes, may write to a store at once: two never write to shards
    of one name. Only while one process holds the lock of the store, which is not taken here.
    """

    def __init__(self, store: Path, header: ShardHeader, shard_frames: int) -> None:
        """No shard is begun yet.

        Args:
            store: The folder; its folder ``shards`` is there.
            header: Of all its shards.
            shard_frames: A shard is full when it has as many.
        """
        self.shard_frames = shard_frames
        self._store = store
        self._header = header
        self._shard: ShardWriter | None = None
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
        if self._shard is None:
            self._shard = ShardWriter(self._claim_shard(), self._header)
        self._shard.add_rows(part)

    def close_clip(self, clip: ClipFeatures) -> None:
        """End the clip at hand. clip: any part of it, for all that is not rows."""
        if self._shard is None:
            raise ValueError(f"clip {clip.clip_id} has ended without a row")
        self._shard.close_clip(clip)

    def drop_clip(self) -> None:
        """Forget the rows of the clip at hand."""
        if self._shard is not None:
            self._shard.drop_clip()

    def finish(self) -> ShardEntry | None:
        """Give the shard at hand its final name; without clips it goes. Raises OSError.

        Returns:
            What store.json is to say of it; None: it had no clip, or there was none.
        """
        shard, self._shard = self._shard, None
        if shard is None:
            return None
        if len(shard.frame_offset) == 1:  # only rows of a clip that has not ended
            shard.abandon()
            return None
        try:
            shard.finish()
        except BaseException:  # HDF5 must not find it open when the process ends
            shard.abandon()
            raise
        return describe_shard(self._store, shard.path)

    def _claim_shard(self) -> Path:
        """The path of a shard; its partial file is made, which nobody else can do.

        Its number is above those of all shards that were finished when this writer began.
        """
        if self._next_number is None:
            names = find_shard_files(self._store)
            self._next_number = order_shard(names[-1])[0] + 1 if names else 0
        while True:
            path = self._store / "shards" / f"{self._next_number:04d}.h5"
            self._next_number += 1
            try:
                partial_path(path).touch(exist_ok=False)
            except FileExistsError:
                continue  # another was faster
            if not path.exists():
                return path
            partial_path(path).unlink()  # another began and finished it meanwhile


class StoreWriter:
    """Holds a store's lock: takes up what is there, lists finished shards, changes labels.

    Use as a context manager; on the way out, whatever the reason, the clips of ``add`` are in a
    finished shard, unless it cannot be written. Those who write to the store beside it have ended
    by then: what they left unfinished goes.
    """

    def __init__(self, path: Path, header: ShardHeader) -> None:
        """Make the folder or take up the store in it.

        Raises:
            ConfigError: the store there has another fingerprint or other classes, or another
                process writes to it.
            ShardError: the store there is damaged.
        """
        self.path = path
        self.header = header
        (path / "shards").mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / ".lock")
        self._clips = ClipWriter(path, header, SHARD_FRAMES)
        self._shards: list[ShardEntry] = []
        """By number: of a clip in two of them, the later one counts."""

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{self.path}: another extract is writing to this store") from None
        try:
            self._take_up()
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
        return Store(self.path, self.header, self._shards, verify=False)

    def add(self, clip: ClipFeatures) -> None:
        """Append a clip; finishes the shard when it is full. Raises OSError (a full disk)."""
        self._clips.drop_clip()
        with uninterrupted():
            self._clips.add_rows(clip)
            self._clips.close_clip(clip)
            if self._clips.is_full:
                self._finish_shard()

    def list_shard(self, shard: ShardEntry) -> None:
        """Take a finished shard into store.json. Raises OSError (a full disk)."""
        with uninterrupted():
            bisect.insort(self._shards, shard, key=lambda listed: order_shard(listed.name))
            write_store_index(self.path, self.header, self._shards)

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
            write_store_index(self.path, self.header, self._shards)
            (self.path / RELABELLING).unlink(missing_ok=True)
            sync_folder(self.path)

    def _take_up(self) -> None:
        remove_unfinished(self.path)
        known: dict[str, ShardEntry] = {}
        if (self.path / "store.json").is_file():
            header, shards = read_store_index(self.path, relabelling=True)
            known = {shard.name: shard for shard in shards}
        if (self.path / RELABELLING).is_file():  # a crash: some have new labels
            for name in (self.path / RELABELLING).read_text().splitlines():
                known.pop(name, None)
        names = find_shard_files(self.path)
        if known.keys() & names:
            self._check_header(header)
        # A shard that exists is complete, listed or not: the crash came before the listing.
        self._shards = [known.get(name) or self._adopt(self.path / name) for name in names]
        self._end_relabelling()

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
    """Remove what writers that are gone left of a shard, or of all. Only under the store's lock."""
    for leftover in (store / "shards").glob(f".{Path(shard_name).stem}.*partial"):
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
    streams = [f"{name} [{size}]" for name, size in sorted(header.streams.items())]
    return f"{maps} and {'the streams ' + ', '.join(streams) if streams else 'no extra stream'}"


def write_store(
    path: Path | str,
    clips: Iterable[ClipFeatures],
    *,
    classes: Sequence[str],
    fingerprint: str,
    config: Mapping[str, Any] = MappingProxyType({}),
    face_map_shape: tuple[int, int, int] | None = None,
    streams: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """Write features that were made elsewhere as a store, or add them to one.

    Args:
        path: The store's folder.
        clips: In any order; context_7x7 must be there.
        classes: Class names, in order.
        fingerprint: Names how the features were made; only equal ones may be mixed.
        config: Anything that tells how they were made.
        face_map_shape: (512, h, w) where every clip has a face_map.
        streams: Extra stream -> values a frame, those that every clip has.

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
        streams=dict(streams),
    )
    with StoreWriter(Path(path), header) as writer:
        for clip in clips:
            writer.add(clip)
    return Path(path)
