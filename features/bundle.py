"""Bundles: a store packed into one file that travels, and notices one flipped byte.

A bundle is a plain tar archive, so ``tar xf`` opens it without this project::

    bundle.json      what is inside: each file's size and SHA-256, config, weights' hashes
    store.json, failures.csv, shards/0000.h5 ...
    bundle.sha256    SHA-256 of every byte of the archive before this member
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from features.disk import partial_path, publish
from features.errors import ConfigError, ShardError
from features.fingerprint import hash_file
from features.store import open_store, verify_store
from features.store_index import read_failures

BUNDLE_FORMAT = "caca-rnn-bundle"
BUNDLE_VERSION = 1
_SEAL = "bundle.sha256"
_BLOCK = 1 << 20
_ADMITTED = re.compile(r"store\.json|failures\.csv|shards/[0-9]+\.h5")


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """A file inside a bundle."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What a bundle says about itself."""

    fingerprint: str
    classes: tuple[str, ...]
    n_clips: int
    n_frames: int
    n_faces: int
    config: dict[str, Any]
    weights: dict[str, str]
    versions: dict[str, str]
    files: tuple[BundleFile, ...]


def pack_bundle(store: Path, file: Path) -> BundleInfo:
    """Pack a store into one file; the same store gives the same bytes.

    Paths of the machine that made the store stay behind.

    Raises:
        ShardError: the store is damaged; nothing is written.
        ConfigError: the file exists.
        OSError: it cannot be written; nothing is left.
    """
    if file.exists():
        raise ConfigError(f"{file}: exists already. Name another file, or delete it first")
    problems = verify_store(store)
    if problems:
        raise ShardError("\n".join([f"{store}: damaged, not packed", *problems]))
    opened = open_store(store)
    failures = _failures_without_paths(store)
    members: list[tuple[str, Path | bytes]] = [
        ("store.json", store / "store.json"),
        ("failures.csv", failures),
        *((shard.name, store / shard.name) for shard in opened.shards),
    ]
    info = BundleInfo(
        fingerprint=opened.fingerprint,
        classes=opened.classes,
        n_clips=len(opened),
        n_frames=int(opened.clips["n_frames"].sum()),
        n_faces=int(opened.clips["n_faces"].sum()),
        config=dict(opened.header.config),
        weights=dict(opened.header.weights),
        versions=dict(opened.header.versions),
        files=tuple(_describe(name, content) for name, content in members),
    )
    described = {"format": BUNDLE_FORMAT, "version": BUNDLE_VERSION, **asdict(info)}
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    partial = partial_path(file)
    try:
        with partial.open("wb") as raw:
            for name, content in [("bundle.json", text.encode()), *members]:
                _write_member(raw, name, content)
        seal = hash_file(partial)
        with partial.open("ab") as raw:
            raw.write(_sealing(seal))
        publish(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return info


def verify_bundle(file: Path) -> list[str]:
    """All damage in a bundle, a line each; empty where every byte is as written.

    Raises:
        ShardError: the file is no bundle, or of a version that this code does not read.
    """
    n_sealed = file.stat().st_size - len(_sealing("0" * 64)) if file.is_file() else 0
    if n_sealed <= 0:
        raise ShardError(f"{file}: no such bundle, or cut off")
    digest = hashlib.sha256()
    with file.open("rb") as raw:
        for block in _iter_blocks(raw, n_sealed):
            digest.update(block)
        whole = raw.read() == _sealing(digest.hexdigest())
    if whole:
        read_bundle_info(file)
        return []
    try:
        with tarfile.open(file, "r:") as archive:
            info = _read_info(file, archive)
            problems = [problem for _, problem in _iter_members(archive, info) if problem]
    except tarfile.TarError as error:
        problems = [f"the archive breaks off or is damaged ({error})"]
    return [f"{file}: {p}" for p in problems or ["damaged between its files, or cut off"]]


def unpack_bundle(file: Path, folder: Path) -> BundleInfo:
    """Unpack a bundle into a store at ``folder``, which appears only when all of it is right.

    Raises:
        ShardError: the bundle is damaged (see ``verify_bundle``).
        ConfigError: the folder exists and is not empty.
        OSError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty. Name another folder")
    problems = verify_bundle(file)
    if problems:
        raise ShardError("\n".join([f"{file}: damaged, not unpacked", *problems]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "shards").mkdir(parents=True)
    try:
        with tarfile.open(file, "r:") as archive:
            info = _read_info(file, archive)
            for listed in info.files:
                with (partial / listed.name).open("wb") as out:
                    shutil.copyfileobj(_open_member(archive, listed.name), out, _BLOCK)
        if folder.exists():
            folder.rmdir()
        publish(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return info


def read_bundle_info(file: Path) -> BundleInfo:
    """What a bundle says about itself, without checking the rest; see ``verify_bundle``.

    Raises:
        ShardError: the file is no bundle, or of a version that this code does not read.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            return _read_info(file, archive)
    except (OSError, tarfile.TarError) as error:
        raise ShardError(f"{file}: not a bundle, or cut off ({error})") from error


def _read_info(file: Path, archive: tarfile.TarFile) -> BundleInfo:
    try:
        described = json.loads(_open_member(archive, "bundle.json").read())
        version = described.pop("format"), described.pop("version")
        if version == (BUNDLE_FORMAT, BUNDLE_VERSION):
            files = tuple(BundleFile(**listed) for listed in described.pop("files"))
            classes = tuple(described.pop("classes"))
            info = BundleInfo(files=files, classes=classes, **described)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{file}: its bundle.json is missing or damaged ({error})") from error
    if version != (BUNDLE_FORMAT, BUNDLE_VERSION):
        raise ShardError(
            f"{file}: bundle format {version[0]!r} version {version[1]!r}, but this code reads "
            f"{BUNDLE_FORMAT!r} version {BUNDLE_VERSION}. Update the code if the bundle is newer."
        )
    for listed in info.files:
        if not _ADMITTED.fullmatch(listed.name):
            raise ShardError(f"{file}: lists {listed.name!r}, which no store has")
    return info


def _iter_members(archive: tarfile.TarFile, info: BundleInfo) -> Iterator[tuple[str, str]]:
    """Each listed file with what is wrong with it, or an empty text."""
    for listed in info.files:
        try:
            digest = hashlib.sha256()
            for block in _iter_blocks(_open_member(archive, listed.name), listed.n_bytes):
                digest.update(block)
        except (KeyError, OSError, tarfile.TarError):
            yield listed.name, f"{listed.name} is missing or cut off"
            continue
        differs = digest.hexdigest() != listed.sha256
        yield listed.name, f"{listed.name} is damaged (SHA-256 differs)" if differs else ""


def _open_member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    opened = archive.extractfile(name)
    if opened is None:
        raise KeyError(f"{name} is not a file")
    return opened


def _write_member(raw: IO[bytes], name: str, content: Path | bytes) -> None:
    n_bytes = len(content) if isinstance(content, bytes) else content.stat().st_size
    raw.write(_member_header(name, n_bytes))
    if isinstance(content, bytes):
        raw.write(content)
    else:
        with content.open("rb") as source:
            shutil.copyfileobj(source, raw, _BLOCK)
    raw.write(bytes(-n_bytes % tarfile.BLOCKSIZE))


def _member_header(name: str, n_bytes: int) -> bytes:
    """A tar header without owner and time, so that equal stores give equal bundles."""
    member = tarfile.TarInfo(name)
    member.size = n_bytes
    member.mode = 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _sealing(seal: str) -> bytes:
    """The archive's last bytes, which follow from the hash of all bytes before them."""
    content = f"{seal}\n".encode()
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return _member_header(_SEAL, len(content)) + content + padding + bytes(2 * tarfile.BLOCKSIZE)


def _iter_blocks(raw: IO[bytes], n_bytes: int) -> Iterator[bytes]:
    while n_bytes > 0:
        block = raw.read(min(_BLOCK, n_bytes))
        if not block:
            return
        n_bytes -= len(block)
        yield block


def _describe(name: str, content: Path | bytes) -> BundleFile:
    if isinstance(content, bytes):
        return BundleFile(
            name=name, n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
    return BundleFile(name=name, n_bytes=content.stat().st_size, sha256=hash_file(content))


def _failures_without_paths(store: Path) -> bytes:
    table = read_failures(store)
    table["path"] = ""
    return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL).encode()
