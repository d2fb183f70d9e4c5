"""The files of a store beside its shards: store.json and failures.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from features.disk import write_atomically
from features.errors import ShardError
from features.fingerprint import hash_file, hash_json
from features.shards import FORMAT_VERSION, ShardHeader, read_shard_index

STORE_FORMAT = "caca-rnn-store"
STORE_VERSION = 1

_REMEDY = "Delete it and run extract: it is made again from the shards."

FAILURE_COLUMNS = ("clip_id", "path", "step", "reason")


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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A clip that could not be used: a row of failures.csv."""

    clip_id: str
    path: str
    step: str
    """``read``, ``decode``, ``detect`` or ``embed``."""
    reason: str


def read_store_index(path: Path) -> tuple[ShardHeader, list[ShardEntry]]:
    """What store.json says: the header that all shards share, and the shards.

    Raises:
        ShardError: no store.json in the folder, or it is damaged or of another version.
    """
    file = path / "store.json"
    if not file.is_file():
        raise ShardError(f"{path}: no store.json here. Make a store with: cli.py extract")
    try:
        described = json.loads(file.read_bytes())
        if not isinstance(described, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ShardError(f"{file}: damaged ({error}). {_REMEDY}") from error
    if described.get("format") != STORE_FORMAT or described.get("version") != STORE_VERSION:
        raise ShardError(
            f"{file}: format {described.get('format')!r} version {described.get('version')!r}, "
            f"but this code reads {STORE_FORMAT!r} version {STORE_VERSION}. Update the code if "
            "the store is newer."
        )
    if described.pop("sha256", None) != hash_json(described):
        raise ShardError(f"{file}: damaged (its SHA-256 does not fit its content). {_REMEDY}")
    return _read_header(described["header"]), [ShardEntry(**e) for e in described["shards"]]


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
    """Names of the finished shards in a store's folder, listed or not, in order."""
    return sorted(f"shards/{file.name}" for file in (path / "shards").glob("[0-9]*.h5"))


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
    """The rows of a store's failures.csv; no rows where there is no such file."""
    file = path / "failures.csv"
    if not file.is_file():
        return pd.DataFrame(columns=list(FAILURE_COLUMNS))
    return pd.read_csv(file, dtype=str, keep_default_na=False)


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
    shape = described["face_map_shape"]
    return ShardHeader(
        fingerprint=described["fingerprint"],
        classes=tuple(described["classes"]),
        config=MappingProxyType(described["config"]),
        weights=MappingProxyType(described["weights"]),
        versions=MappingProxyType(described["versions"]),
        face_map_shape=None if shape is None else (shape[0], shape[1], shape[2]),
        streams=MappingProxyType(described.get("streams", {})),
    )
