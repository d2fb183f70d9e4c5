"""Bundles: a store packed into one file that travels, and notices one flipped byte.

A bundle is a plain tar archive, so ``tar xf`` opens it without this project::

    bundle.json      what is inside: each file's size and SHA-256, config, weights' hashes
    store.json, failures.csv, shards/0000.h5 ...
    bundle.sha256    SHA-256 of every byte of the archive before this member
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from features.disk import Progress, ignore_progress, partial_path, publish
from features.errors import ConfigError, ShardError
from features.fingerprint import hash_file
from features.json_records import MOST_JSON_BYTES
from features.store.bundle_members import (
    BUNDLE_JSON,
    SEAL,
    BundleFile,
    BundleInfo,
    Member,
    find_members,
    iter_blocks,
    make_seal,
    write_member,
)
from features.store.index import parse_store_index, read_failures
from features.store.reader import open_store, verify_store

_OWN = {"bundle.json", SEAL}


def pack_bundle(store: Path, file: Path, *, progress: Progress = ignore_progress) -> BundleInfo:
    """Pack a store into one file; the same store gives the same bytes.

    Paths of the machine that made the store stay behind.

    Raises:
        ShardError: the store is damaged; nothing is written.
        ConfigError: the file exists.
        OSError: it cannot be written; nothing is left.
    """
    if file.exists():
        raise ConfigError(f"{file}: exists already. Name another file, or delete it first")
    problems = verify_store(store, progress=lambda done, n_bytes: progress(done, 4 * n_bytes))
    if problems:
        raise ShardError("\n".join([f"{store}: damaged, not packed", *problems]))
    opened = open_store(store)
    failures = _failures_without_paths(store)
    members: list[tuple[str, Path | bytes]] = [
        ("store.json", store / "store.json"),
        ("failures.csv", failures),
        *((shard.name, store / shard.name) for shard in opened.shards),
        *((file.name, store / file.name) for file in opened.streams_beside.find_files()),
    ]
    n_bytes = sum(shard.n_bytes for shard in opened.shards) + opened.streams_beside.count_bytes()
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
        expressions=opened.header.expressions,
        licences=dict(opened.header.licences),
        added_streams=tuple(stream.header for stream in opened.streams_beside.listed.values()),
    )
    progress(2 * n_bytes, 4 * n_bytes)
    partial = partial_path(file)
    try:
        with partial.open("wb") as raw:
            for name, content in [("bundle.json", BUNDLE_JSON.dump(info).encode()), *members]:
                write_member(raw, name, content)
                progress(2 * n_bytes + min(raw.tell(), n_bytes), 4 * n_bytes)
        seal = hash_file(partial)
        progress(4 * n_bytes, 4 * n_bytes)
        with partial.open("ab") as raw:
            raw.write(make_seal(seal))
        publish(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return info


def verify_bundle(file: Path, *, progress: Progress = ignore_progress) -> list[str]:
    """All damage in a bundle, a line each; empty where every byte is as written.

    That the files are those that bundle.json lists, and fit each other, is checked too. What is
    inside the shards is looked at when the bundle is unpacked.

    Raises:
        ShardError: the file is no bundle, or of a version that this code does not read.
    """
    n_sealed = file.stat().st_size - len(make_seal("0" * 64)) if file.is_file() else 0
    if n_sealed <= 0:
        raise ShardError(f"{file}: no such bundle, or cut off")
    with file.open("rb") as raw:
        digest = hashlib.sha256()
        for block in iter_blocks(raw, n_sealed):
            digest.update(block)
            progress(raw.tell(), 2 * n_sealed)
        whole = raw.read() == make_seal(digest.hexdigest())
        try:
            members = find_members(raw)
            info = _parse_info(file, raw, members)
        except (ShardError, ValueError) as error:
            if not whole:
                return [f"{file}: damaged or cut off ({error})"]
            raise ShardError(
                f"{file}: {error}".replace(f"{file}: {file}: ", f"{file}: ")
            ) from error
        problems = _compare_listing(members, info)
        for listed in info.files:
            problems += _compare_hash(raw, members, listed)
            progress(n_sealed + min(raw.tell(), n_sealed), 2 * n_sealed)
        if not problems and whole:
            problems = _compare_index(raw, members, info)
    if not problems and not whole:
        problems = ["damaged between its files, or cut off"]
    return [f"{file}: {problem}" for problem in problems]


def unpack_bundle(file: Path, folder: Path, *, progress: Progress = ignore_progress) -> BundleInfo:
    """Unpack a bundle into a store at ``folder``, which appears only when all of it is right.

    Raises:
        ShardError: the bundle is damaged (see ``verify_bundle``), or its shards are not as
            FORMAT.md says; nothing is left on disk.
        ConfigError: the folder exists and is not empty.
        OSError: it cannot be written; nothing is left.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty. Name another folder")
    problems = verify_bundle(file, progress=lambda done, n_all: progress(done, n_all * 3 // 2))
    if problems:
        raise ShardError("\n".join([f"{file}: damaged, not unpacked", *problems]))
    partial = partial_path(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "shards").mkdir(parents=True)
        with file.open("rb") as raw:
            n_bytes = file.stat().st_size
            members = find_members(raw)
            info = _parse_info(file, raw, members)
            for listed in info.files:
                (partial / listed.name).parent.mkdir(parents=True, exist_ok=True)
                with (partial / listed.name).open("wb") as out:
                    for block in _iter_member(raw, members[listed.name]):
                        out.write(block)
                progress(2 * n_bytes + raw.tell(), 3 * n_bytes)
        _check_unpacked(file, partial, info)
        if folder.exists():
            folder.rmdir()
        publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise
    return info


def read_bundle_info(file: Path) -> BundleInfo:
    """What a bundle says about itself; only ``verify_bundle`` reads its shards.

    Raises:
        ShardError: the file is no bundle, or of a version that this code does not read; or its
            bundle.json contradicts the archive: its files, their sizes, store.json.
    """
    try:
        with file.open("rb") as raw:
            members = find_members(raw)
            info = _parse_info(file, raw, members)
            problems = _compare_listing(members, info)
            for listed in info.files:
                if listed.name in ("store.json", "failures.csv"):
                    problems += _compare_hash(raw, members, listed)
            problems = problems or _compare_index(raw, members, info)
    except (OSError, ValueError) as error:
        raise ShardError(f"{file}: not a bundle, or cut off ({error})") from error
    if problems:
        raise ShardError("\n".join(f"{file}: {problem}" for problem in problems))
    return info


def _parse_info(file: Path, raw: IO[bytes], members: Mapping[str, Member]) -> BundleInfo:
    """bundle.json. Raises ShardError, ValueError where there is none."""
    text = _read_member(raw, members, "bundle.json")
    return BUNDLE_JSON.read(BundleInfo, text, f"{file}: its bundle.json")


def _compare_listing(members: Mapping[str, Member], info: BundleInfo) -> list[str]:
    """Files that are not there, of another size, or not listed."""
    found = {name: member.n_bytes for name, member in members.items() if name not in _OWN}
    listed = {file.name: file.n_bytes for file in info.files}
    return [
        *(f"{name} is missing" for name in listed if name not in found),
        *(
            f"{name} has {found[name]} bytes, expected {n_bytes} as in bundle.json"
            for name, n_bytes in listed.items()
            if found.get(name, n_bytes) != n_bytes
        ),
        *(f"{name} is not listed in bundle.json" for name in sorted(found.keys() - listed.keys())),
    ]


def _compare_hash(raw: IO[bytes], members: Mapping[str, Member], listed: BundleFile) -> list[str]:
    """What is wrong with the content of a file that is as long as listed."""
    member = members.get(listed.name)
    if member is None or member.n_bytes != listed.n_bytes:
        return []
    digest = hashlib.sha256()
    for block in _iter_member(raw, member):
        digest.update(block)
    differs = digest.hexdigest() != listed.sha256
    return [f"{listed.name} is damaged (SHA-256 differs)"] if differs else []


def _compare_index(raw: IO[bytes], members: Mapping[str, Member], info: BundleInfo) -> list[str]:
    """Where store.json says otherwise than bundle.json."""
    try:
        text = _read_member(raw, members, "store.json")
        index = parse_store_index(text, "store.json")
    except (ShardError, ValueError) as error:
        return [f"{error}"]
    header, shards = index.header, index.shards
    files, streams = (
        {(f.name, f.n_bytes, f.sha256) for f in info.files if f.name.startswith(folder)}
        for folder in ("shards/", "streams/")
    )
    said = {
        "fingerprint": (header.fingerprint, info.fingerprint),
        "classes": (header.classes, info.classes),
        "expressions": (header.expressions, info.expressions or header.expressions),
        "licences": (dict(header.licences), dict(info.licences or header.licences)),
        "shards": ({(s.name, s.n_bytes, s.sha256) for s in shards}, files),
    }
    problems = [
        f"its bundle.json and its store.json name other {what}"
        for what, (stored, listed) in said.items()
        if stored != listed
    ]
    # A file of a stream may be missing: this is work left to do. None may be another's.
    beside = {
        (file.name, file.n_bytes, file.sha256)
        for stream in index.added_streams
        for file in stream.shards
    }
    headers = [stream.header for stream in index.added_streams]
    if not streams <= beside or any(header not in headers for header in info.added_streams):
        problems.append("its bundle.json and its store.json name other streams")
    for what in ("n_clips", "n_frames", "n_faces"):
        # Fewer are right: of a clip that was extracted again only the newest counts.
        most = sum(getattr(shard, what) for shard in shards)
        if getattr(info, what) > most:
            problems.append(f"its bundle.json says {what} {getattr(info, what)}, its shards {most}")
    return problems


def _check_unpacked(file: Path, folder: Path, info: BundleInfo) -> None:
    """Raise ShardError unless the store that was unpacked can be used: all but its features."""
    try:
        store = open_store(folder, verify=False)
        store.check_columns()
        _ = store.failures
        clips = store.clips
    except ShardError as error:
        said = str(error).replace(f"{folder}/", "")
        raise ShardError(f"{file}: not unpacked, it holds no store: {said}") from error
    found = (len(store), int(clips["n_frames"].sum()), int(clips["n_faces"].sum()))
    if found != (info.n_clips, info.n_frames, info.n_faces):
        raise ShardError(
            f"{file}: not unpacked, it holds {found[0]} clips, {found[1]} frames and {found[2]} "
            f"faces, but its bundle.json says {info.n_clips}, {info.n_frames} and {info.n_faces}"
        )


def _read_member(raw: IO[bytes], members: Mapping[str, Member], name: str) -> bytes:
    """A small file. Raises ValueError where it is not there, or large."""
    member = members.get(name)
    if member is None:
        raise ValueError(f"no {name}")
    if member.n_bytes > MOST_JSON_BYTES:
        raise ValueError(f"{name} has {member.n_bytes} bytes")
    return b"".join(_iter_member(raw, member))


def _iter_member(raw: IO[bytes], member: Member) -> Iterator[bytes]:
    raw.seek(member.offset)
    return iter_blocks(raw, member.n_bytes)


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
