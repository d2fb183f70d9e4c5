"""The files of a store beside its shards: store.json and failures.csv."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from features.disk import append_whole, write_atomically
from features.errors import ShardError
from features.fingerprint import dump_json, hash_file, hash_json, hash_text
from features.json_records import JsonFormat
from features.store.shard_format import FORMAT_VERSION, ShardHeader, StreamHeader
from features.store.shard_reader import ShardIndex, read_shard_index

_STORE_JSON = JsonFormat(
    name="caca-rnn-store",
    damaged=ShardError,
    other_version=ShardError,
    remedy="Delete it and run extract: it is made again from the shards.",
)

NO_VERIFY = "or copy it again from where it is whole (--no-verify reads it as it is)"
"""What else can be done about a damaged file."""

FAILURE_COLUMNS = ("clip_id", "path", "step", "reason")
WORKER_STEP = "worker"
"""The step of a clip that ended the process that extracted it, whatever that was doing."""

MOST_FAILURES_BYTES = 1 << 28
"""Of failures.csv: a million clips."""

RELABELLING = ".relabelling"
"""Stands in a store while labels in its shards are changed; names these shards, one a line."""

SHARD_NAME = re.compile(r"shards/[0-9]{1,18}\.h5")
STREAM_FILE_NAME = re.compile(r"streams/[a-z][a-z0-9_]{0,63}/[0-9]{1,18}\.h5")


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard as store.json lists it."""

    name: str
    """Path inside the store, for example ``shards/0000.h5``."""
    sha256: str
    n_bytes: int
    n_clips: int
    n_frames: int
    n_faces: int

    def __post_init__(self) -> None:
        if not SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"shard {self.name!r}: expected a name like shards/0000.h5")
        if min(self.n_bytes, self.n_clips, self.n_frames, self.n_faces) < 0:
            raise ValueError(f"shard {self.name}: a count is below 0")

    @cached_property
    def _json(self) -> str:
        return dump_json(vars(self))


@dataclass(frozen=True, kw_only=True)
class StreamFile:
    """A file of an added stream as store.json lists it."""

    name: str
    """Path inside the store, for example ``streams/dino/0000.h5``, of ``shards/0000.h5``."""
    sha256: str
    n_bytes: int
    n_lacking: int = 0
    """Clips in it that lack the stream."""

    def __post_init__(self) -> None:
        if not STREAM_FILE_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r}: expected a name like streams/dino/0000.h5")
        if min(self.n_bytes, self.n_lacking) < 0:
            raise ValueError(f"{self.name}: {self.n_bytes} bytes, {self.n_lacking} clips lack it")

    @property
    def shard_name(self) -> str:
        """The shard that it belongs to."""
        return f"shards/{Path(self.name).name}"

    @cached_property
    def _json(self) -> str:
        described = {f.name: getattr(self, f.name) for f in fields(self)}
        return dump_json({name: v for name, v in described.items() if name != "n_lacking" or v})


@dataclass(frozen=True, kw_only=True)
class AddedStream(StreamHeader):
    """A stream beside the shards as store.json lists it."""

    shards: tuple[StreamFile, ...] = ()
    """By number. A shard whose file is not there lacks the stream: this is work left to do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {file.name for file in self.shards}
        if len(names) < len(self.shards):
            raise ValueError(f"stream {self.name}: a file is listed twice")
        if wrong := [n for n in names if not n.startswith(f"streams/{self.name}/")]:
            raise ValueError(f"stream {self.name}: {wrong[0]} is a file of another stream")

    @property
    def header(self) -> StreamHeader:
        """Without the files."""
        return StreamHeader(**{f.name: getattr(self, f.name) for f in fields(StreamHeader)})


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """What store.json says."""

    header: ShardHeader
    shards: tuple[ShardEntry, ...]
    """By number."""
    added_streams: tuple[AddedStream, ...] = ()

    def __post_init__(self) -> None:
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed twice")
        names = [*self.header.streams, *(stream.name for stream in self.added_streams)]
        if len(set(names)) < len(names):
            raise ValueError("a stream is listed twice")
        if twice := self.header.own_streams.intersection(names):
            raise ValueError(f"a stream {min(twice)} beside the store's own")
        shards = {shard.name for shard in self.shards}
        for stream in self.added_streams:
            for file in stream.shards:
                if file.shard_name not in shards:
                    raise ValueError(f"{file.name}: {file.shard_name} is not listed")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A clip that could not be used: a row of failures.csv."""

    clip_id: str
    path: str
    step: str
    """``read``, ``decode``, ``detect``, ``embed``, or ``WORKER_STEP``."""
    reason: str


def read_store_index(path: Path, *, relabelling: bool = False) -> StoreIndex:
    """What store.json says: the header that all shards share, the shards, streams beside them.

    Args:
        path: The store's folder.
        relabelling: Read it also while labels are changed: shards need not be as it says then.

    Raises:
        ShardError: no store.json in the folder, or it is damaged or of another version; or labels
            are being changed.
    """
    if not relabelling and (path / RELABELLING).exists():
        raise ShardError(
            f"{path}: its labels are being changed, or this was interrupted. Wait for the extract "
            "that does it; if none runs, run extract again, which completes it."
        )
    file = path / "store.json"
    if not file.is_file():
        raise ShardError(f"{path}: no store.json here. Make a store with: cli.py extract")
    return parse_store_index(file, str(file))


def parse_store_index(source: Path | bytes, where: str) -> StoreIndex:
    """As ``read_store_index``, of a store.json or its content. where: its path, for messages."""
    described = _STORE_JSON.parse(source, where)
    if described.pop("sha256", None) != hash_json(described):
        raise ShardError(
            f"{where}: damaged (its SHA-256 does not fit its content). {_STORE_JSON.remedy}"
        )
    index = _STORE_JSON.build(StoreIndex, described, where)
    shards = sorted(index.shards, key=lambda shard: order_shard(shard.name))
    streams = [
        replace(s, shards=tuple(sorted(s.shards, key=lambda file: order_shard(file.shard_name))))
        for s in index.added_streams
    ]
    return replace(index, shards=tuple(shards), added_streams=tuple(streams))


def write_store_index(
    path: Path,
    header: ShardHeader,
    shards: Sequence[ShardEntry],
    added_streams: Sequence[AddedStream] = (),
) -> None:
    """Replace store.json."""
    described: dict[str, Any] = {
        "format": _STORE_JSON.name,
        "header": vars(header),
        "shard_format_version": FORMAT_VERSION,
        "shards": [],
        "version": _STORE_JSON.version,
    }
    # With 10,000 shards it is written 10,000 times: what is said of a shard is put in words once.
    before, after = dump_json(described).rsplit('"shards":[]', 1)
    said = [shard._json for shard in shards]
    added = [_dump_stream(stream) for stream in added_streams]
    if added:  # the first of all keys, as they are sorted
        before = f'{{"added_streams":[{",".join(added)}],{before[1:]}'
    sha256 = hash_text(f'{before}"shards":[{",".join(said)}]{after}')
    lines = ",\n".join(said)
    text = f'{before}"sha256":"{sha256}",\n"shards":[\n{lines}]{after}\n'
    write_atomically(path / "store.json", text)


def _dump_stream(stream: AddedStream) -> str:
    described: dict[str, Any] = vars(stream.header) | {"shards": []}
    before, after = dump_json(described).rsplit('"shards":[]', 1)
    return f'{before}"shards":[{",".join(file._json for file in stream.shards)}]{after}'


def order_shard(name: str) -> tuple[int, str]:
    """What shards are sorted by: their number, shards/9999.h5 before shards/10000.h5."""
    return int(name.removeprefix("shards/").removesuffix(".h5")), name


def find_shard_files(path: Path) -> list[str]:
    """Names of the finished shards in a store's folder, listed or not, by number.

    What has another name, as a copy that a file manager made, is none.
    """
    names = (f"shards/{file.name}" for file in (path / "shards").glob("[0-9]*.h5"))
    return sorted(filter(SHARD_NAME.fullmatch, names), key=order_shard)


def find_stream_files(path: Path, shard_name: str = "*") -> list[str]:
    """Names of the finished files of streams in a store's folder, listed or not.

    shard_name: Only those of this shard.
    """
    found = path.glob(f"streams/*/{Path(shard_name).name}")
    names = (f"streams/{file.parent.name}/{file.name}" for file in found)
    return sorted(filter(STREAM_FILE_NAME.fullmatch, names))


def describe_shard(store: Path, file: Path, index: ShardIndex | None = None) -> ShardEntry:
    """Hash a finished shard and count what is in it. Raises ShardError where it is damaged.

    index: What was read of it.
    """
    index = index or read_shard_index(file)
    return ShardEntry(
        name=str(file.relative_to(store)),
        sha256=hash_file(file),
        n_bytes=index.state.n_bytes,
        n_clips=len(index),
        n_frames=int(index.frame_offset[-1]),
        n_faces=int(index.face_offset[-1]),
    )


def find_damage(file: Path, entry: ShardEntry | StreamFile) -> str:
    """How a file's bytes differ from those that store.json lists; empty if they do not."""
    if problem := find_wrong_size(file, entry):
        return problem
    found = hash_file(file)
    if found == entry.sha256:
        return ""
    return f"{file}: damaged: SHA-256 {found[:12]}, expected {entry.sha256[:12]} as in store.json."


def find_wrong_size(file: Path, entry: ShardEntry | StreamFile) -> str:
    """The same without a look at its bytes."""
    n_bytes = file.stat().st_size
    if n_bytes == entry.n_bytes:
        return ""
    return f"{file}: damaged: {n_bytes} bytes, expected {entry.n_bytes} as in store.json."


def find_contradiction(index: ShardIndex, header: ShardHeader, shard: ShardEntry) -> str:
    """What a shard says of itself and store.json otherwise; empty if they agree."""
    counts = (len(index), int(index.frame_offset[-1]), int(index.face_offset[-1]))
    said = {
        "fingerprint": (index.header.fingerprint, header.fingerprint),
        "classes": (index.header.classes, header.classes),
        "face maps": (index.header.face_map_shape, header.face_map_shape),
        "context features": (index.header.keeps_context, header.keeps_context),
        "face features": (index.header.keeps_face, header.keeps_face),
        "values of a face's vector": (index.header.face_vector_size, header.face_vector_size),
        "expressions": (index.header.expressions, header.expressions),
        "streams": (dict(index.header.streams), dict(header.streams)),
        "clips, frames and faces": (counts, (shard.n_clips, shard.n_frames, shard.n_faces)),
    }
    for what, (found, expected) in said.items():
        if found != expected:
            return f"{index.path}: its {what}: {found}, expected {expected} as in store.json."
    return ""


def read_failures(path: Path) -> pd.DataFrame:
    """The rows of a store's failures.csv, of a clip the last; none where there is no such file.

    Raises:
        ShardError: It is no such table.
    """
    file = path / "failures.csv"
    if not file.is_file():
        return pd.DataFrame(columns=list(FAILURE_COLUMNS))
    try:
        if file.stat().st_size > MOST_FAILURES_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes")
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        if tuple(table.columns) != FAILURE_COLUMNS:
            raise ValueError(f"columns {', '.join(map(str, table.columns[:9]))}")
    except ValueError as error:
        raise ShardError(
            f"{file}: not a list of failures ({error}), expected a CSV with the columns "
            f"{', '.join(FAILURE_COLUMNS)}. Delete it and run extract."
        ) from error
    return table.drop_duplicates("clip_id", keep="last", ignore_index=True)


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Replace a store's failures.csv."""
    header = ",".join(FAILURE_COLUMNS) + "\n"
    write_atomically(path / "failures.csv", header + _format_rows(failures))


def append_failure(path: Path, failure: Failure) -> None:
    """Add a row to a store's failures.csv, which is there; it counts instead of earlier ones."""
    append_whole(path / "failures.csv", _format_rows([failure]))


def _format_rows(failures: Sequence[Failure]) -> str:
    text = io.StringIO()
    rows = ([f.clip_id, f.path, f.step, f.reason] for f in failures)
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
