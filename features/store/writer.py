"""Writes stores: one process a store, a shard for each worker, each visible once it is whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from filelock import FileLock, Timeout

from features.contracts import SPLITS, ClipFeatures
from features.disk import uninterrupted
from features.errors import ConfigError, ShardError
from features.store.index import (
    ShardEntry,
    describe_shard,
    find_shard_files,
    read_store_index,
    write_store_index,
)
from features.store.reader import Store, find_damage
from features.store.shard_format import ShardHeader
from features.store.shard_reader import find_shard_problems, read_shard_index
from features.store.shard_writer import ShardWriter, rewrite_clip_columns

SHARD_FRAMES = 4096
"""A shard is finished when it has this many frames: what a crash can cost each worker at most."""


class StoreWriter:
    """The one writer of a store: resumes what is there, adds clips, finishes shards.

    Use as a context manager: it holds the store's lock, and on the way out, whatever the reason,
    finishes each shard at hand with the clips it has, or abandons it where it cannot be written.
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
        self._writers: dict[int, ShardWriter] = {}
        """Number of a worker -> the shard at hand."""
        self._shards: list[ShardEntry] = []

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
        failed: Exception | None = None
        try:
            with uninterrupted():
                for worker in list(self._writers):
                    try:
                        self._finish_shard(worker)
                    except OSError as full:  # a full disk: another shard may need less
                        failed = full
        finally:
            self._lock.release()
        if failed is not None and not isinstance(error, OSError):
            raise failed

    def open(self) -> Store:
        """The finished part of the store, for reading."""
        return Store(self.path, self.header, self._shards, verify=False)

    def add(self, clip: ClipFeatures) -> None:
        """Append a clip; finishes the shard when it is full. Raises OSError (a full disk)."""
        self.drop_clip()
        with uninterrupted():
            self.add_rows(clip)
            self.close_clip(clip)

    def add_rows(self, part: ClipFeatures, worker: int = 0) -> None:
        """Write rows of the clip at hand; ``close_clip`` or ``drop_clip`` ends it.

        So a clip of any length passes through in pieces, and clips that are made at the same time
        do so side by side.

        Args:
            part: Frames that follow those before.
            worker: Who made them, by number; each has a shard and a clip at hand of its own.

        Raises:
            OSError: a full disk.
        """
        if part.label and part.label not in self.header.classes:
            raise ValueError(f"clip {part.clip_id}: label {part.label!r} is not a declared class")
        if part.split not in SPLITS:
            raise ValueError(f"clip {part.clip_id}: split {part.split!r} is not one of {SPLITS}")
        with uninterrupted():
            if worker not in self._writers:
                self._writers[worker] = ShardWriter(self._next_path(), self.header)
            self._writers[worker].add_rows(part)

    def close_clip(self, clip: ClipFeatures, worker: int = 0) -> bool:
        """End the clip at hand; finishes the shard when it is full. Raises OSError.

        Args:
            clip: Any part of it, for all that is not rows. At least one part was added.
            worker: Whose clip at hand.

        Returns:
            Whether the shard was finished: all clips in it are done.
        """
        with uninterrupted():
            self._writers[worker].close_clip(clip)
            is_full = self._writers[worker].frame_offset[-1] >= SHARD_FRAMES
            if is_full:
                self._finish_shard(worker)
        return is_full

    def drop_clip(self, worker: int = 0) -> None:
        """Forget the rows of the clip at hand."""
        if worker in self._writers:
            self._writers[worker].drop_clip()

    def _finish_shard(self, worker: int) -> None:
        """Give the shard at hand its final name and list it; without clips it goes."""
        writer = self._writers.pop(worker)
        if len(writer.frame_offset) == 1:  # only rows of a clip that has not ended
            writer.abandon()
            return
        try:
            writer.finish()
        except BaseException:  # HDF5 must not find it open when the process ends
            writer.abandon()
            raise
        self._shards.append(describe_shard(self.path, writer.path))
        write_store_index(self.path, self.header, self._shards)

    def relabel(self, updates: Mapping[str, Mapping[str, str]]) -> None:
        """Change text columns of clips (id -> column -> value) without touching their features.

        Raises OSError (a full disk), ShardError (a damaged shard); it then keeps its old labels.
        """
        for number, shard in enumerate(self._shards):
            file = self.path / shard.name
            here = set(read_shard_index(file).columns["id"]) & updates.keys()
            if here:
                if problem := find_damage(file, shard):
                    raise ShardError(
                        f"{problem} So its labels are not changed. Delete the file and run "
                        "extract: its clips are extracted again."
                    )
                # Not listed while it changes: after a crash in between it is hashed again.
                others = [other for other in self._shards if other is not shard]
                write_store_index(self.path, self.header, others)
                rewrite_clip_columns(file, {clip_id: updates[clip_id] for clip_id in here})
                self._shards[number] = describe_shard(self.path, file)
                write_store_index(self.path, self.header, self._shards)

    def _take_up(self) -> None:
        for leftover in (self.path / "shards").glob(".*.partial"):
            leftover.unlink()
        known = {}
        if (self.path / "store.json").is_file():
            known = {shard.name: shard for shard in read_store_index(self.path)[1]}
        for name in find_shard_files(self.path):
            # A shard that exists is complete, listed or not: the crash came before the listing.
            entry = known.get(name) or self._adopt(self.path / name)
            found = read_shard_index(self.path / name).header
            if found.fingerprint != self.header.fingerprint:
                raise ConfigError(
                    f"{self.path}: this store has fingerprint {found.fingerprint[:12]}, these "
                    f"settings give {self.header.fingerprint[:12]} ({self._explain(found)}). "
                    "Choose another --store folder, or the settings the store was made with."
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
            self._shards.append(entry)
        write_store_index(self.path, self.header, self._shards)

    def _adopt(self, file: Path) -> ShardEntry:
        problems = find_shard_problems(file)
        if problems:
            raise ShardError(problems[0])
        return describe_shard(self.path, file)

    def _explain(self, found: ShardHeader) -> str:
        """Which setting, weights or library make two fingerprints differ."""
        ours, theirs = (
            {**dict(h.config), **dict(h.weights), "decoder": h.versions.get("decoder")}
            for h in (self.header, found)
        )
        names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
        return "; ".join(f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in names)

    def _next_path(self) -> Path:
        at_hand = [str(writer.path) for writer in self._writers.values()]
        names = [*find_shard_files(self.path), *at_hand]
        number = max((int(Path(name).stem) for name in names), default=-1) + 1
        return self.path / "shards" / f"{number:04d}.h5"


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
