"""The files of a store beside its shards: store.json and failures.csv."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from features.disk import write_atomically
from features.errors import ShardError
from features.fingerprint import hash_file, hash_json
from features.json_text import MOST_JSON_BYTES, check_object, parse_object
from features.store.shard_reader import FORMAT_VERSION, ShardHeader, read_shard_index

STORE_FORMAT = "caca-rnn-store"
STORE_VERSION = 1

_REMEDY = "Delete it and run extract: it is made again from the shards."

FAILURE_COLUMNS = ("clip_id", "path", "step", "reason")
WORKER_STEP = "worker"
"""The step of a clip that ended the process that extracted it, whatever that was doing."""

MOST_FAILURES_BYTES = 1 << 28
"""Of failures.csv: a million clips."""

SHARD_NAME = re.compile(r"shards/[0-9]+\.h5")
_ENTRY = {
    "name": str,
    "sha256": str,
    "n_bytes": int,
    "n_clips": int,
    "n_frames": int,
    "n_faces": int,
}
_HEADER = {
    "fingerprint": str,
    "classes": list,
    "config": dict,
    "weights": dict,
    "versions": dict,
}


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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A clip that could not be used: a row of failures.csv."""

    clip_id: str
    path: str
    step: str
    """``read``, ``decode``, ``detect``, ``embed``, or ``WORKER_STEP``."""
    reason: str


def read_store_index(path: Path) -> tuple[ShardHeader, list[ShardEntry]]:
    """What store.json says: the header that all shards share, and the shards.

    Raises:
        ShardError: no store.json in the folder, or it is damaged or of another version.
    """
    file = path / "store.json"
    if not file.is_file():
        raise ShardError(f"{path}: no store.json here. Make a store with: cli.py extract")
    with file.open("rb") as opened:
        return parse_store_index(opened.read(MOST_JSON_BYTES + 1), str(file))


def parse_store_index(text: bytes, where: str) -> tuple[ShardHeader, list[ShardEntry]]:
    """As ``read_store_index``, of a store.json's content. where: its path, for messages."""
    try:
        described = parse_object(text)
    except ValueError as error:
        raise ShardError(f"{where}: damaged ({error}). {_REMEDY}") from error
    if described.get("format") != STORE_FORMAT or described.get("version") != STORE_VERSION:
        raise ShardError(
            f"{where}: format {described.get('format')!r} version {described.get('version')!r}, "
            f"but this code reads {STORE_FORMAT!r} version {STORE_VERSION}. Update the code if "
            "the store is newer."
        )
    if described.pop("sha256", None) != hash_json(described):
        raise ShardError(f"{where}: damaged (its SHA-256 does not fit its content). {_REMEDY}")
    try:
        check_object(described, {"header": dict, "shards": list})
        header = _read_header(check_object(described["header"], _HEADER))
        shards = [
            ShardEntry(**{key: check_object(entry, _ENTRY)[key] for key in _ENTRY})
            for entry in described["shards"]
        ]
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("a shard is listed twice")
    except (TypeError, ValueError) as error:
        raise ShardError(f"{where}: not as FORMAT.md says ({error}). {_REMEDY}") from error
    return header, shards


def write_store_index(path: Path, header: ShardHeader, shards: Sequence[ShardEntry]) -> None:
    """Replace store.json."""
    described: dict[str, Any] = {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "shard_format_version": FORMAT_VERSION,
        "header": _describe_header(header),
        "shards": [asdict(shard) for shard in shards],
    }
    described["sha256"] = hash_json(described)
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path / "store.json", text)


def find_shard_files(path: Path) -> list[str]:
    """Names of the finished shards in a store's folder, listed or not, in order.

    What has another name, as a copy that a file manager made, is none.
    """
    names = (f"shards/{file.name}" for file in (path / "shards").glob("[0-9]*.h5"))
    return sorted(filter(SHARD_NAME.fullmatch, names))


def describe_shard(store: Path, file: Path) -> ShardEntry:
    """Hash a finished shard and count what is in it. Raises ShardError where it is damaged."""
    index = read_shard_index(file)
    return ShardEntry(
        name=str(file.relative_to(store)),
        sha256=hash_file(file),
        n_bytes=file.stat().st_size,
        n_clips=len(index),
        n_frames=int(index.frame_offset[-1]),
        n_faces=int(index.face_offset[-1]),
    )


def read_failures(path: Path) -> pd.DataFrame:
    """The rows of a store's failures.csv; no rows where there is no such file.

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
    return table


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Replace a store's failures.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FAILURE_COLUMNS)
    writer.writerows([f.clip_id, f.path, f.step, f.reason] for f in failures)
    write_atomically(path / "failures.csv", text.getvalue())


def _describe_header(header: ShardHeader) -> dict[str, Any]:
    return {
        "fingerprint": header.fingerprint,
        "classes": list(header.classes),
        "config": dict(header.config),
        "weights": dict(header.weights),
        "versions": dict(header.versions),
        "face_map_shape": header.face_map_shape and list(header.face_map_shape),
        "streams": dict(header.streams),
    }


def _read_header(described: Mapping[str, Any]) -> ShardHeader:
    shape = described.get("face_map_shape")
    streams = described.get("streams", {})
    if shape is not None and [type(n) for n in shape] != [int] * 3:
        raise ValueError(f"face_map_shape is {shape!r}")
    if not isinstance(streams, dict) or not all(type(n) is int for n in streams.values()):
        raise ValueError(f"streams is {streams!r}")
    return ShardHeader(
        fingerprint=described["fingerprint"],
        classes=tuple(described["classes"]),
        config=MappingProxyType(described["config"]),
        weights=MappingProxyType(described["weights"]),
        versions=MappingProxyType(described["versions"]),
        face_map_shape=None if shape is None else (shape[0], shape[1], shape[2]),
        streams=MappingProxyType(streams),
    )
