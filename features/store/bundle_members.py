"""What a bundle is made of: its bundle.json, and the members of a tar archive of anybody's.

Only what a bundle is made of is read: plain files, each name once, all of it inside the archive. So
links, devices, sparse files and names that lead elsewhere are refused before anything is unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from features.errors import ShardError
from features.json_records import JsonFormat
from features.store.index import SHARD_NAME, STREAM_FILE_NAME
from features.store.shard_format import StreamHeader

BUNDLE_JSON = JsonFormat(
    name="caca-rnn-bundle",
    damaged=ShardError,
    other_version=ShardError,
    remedy="Copy the bundle again from where it is whole, or pack it again.",
)
SEAL = "bundle.sha256"
ADMITTED = re.compile(rf"store\.json|failures\.csv|{SHARD_NAME.pattern}|{STREAM_FILE_NAME.pattern}")
"""Names of a store's files."""
BLOCK = 1 << 20
"""Bytes read at a time."""

_MOST_RECORD_BYTES = 1 << 12
"""Of the extra record that tells the size of a member of 8 GiB and more."""
_SIZE_RECORD = re.compile(rb"(?:[0-9]+ [a-z]+=[^\n]*\n)*?[0-9]+ size=([0-9]{1,18})\n")


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """A file inside a bundle."""

    name: str
    n_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not ADMITTED.fullmatch(self.name):
            raise ValueError(f"it lists {self.name!r}, which no store has")


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What a bundle says about itself."""

    fingerprint: str
    classes: tuple[str, ...]
    n_clips: int
    n_frames: int
    n_faces: int
    config: Mapping[str, Any]
    weights: Mapping[str, str]
    versions: Mapping[str, str]
    files: tuple[BundleFile, ...]
    expressions: tuple[str, ...] = ()
    licences: Mapping[str, str] = field(default_factory=dict)
    added_streams: tuple[StreamHeader, ...] = ()
    """Streams beside the shards, as store.json lists them."""

    def __post_init__(self) -> None:
        if len({listed.name for listed in self.files}) < len(self.files):
            raise ValueError("it lists a file twice")


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where the bytes of a file lie in the archive."""

    offset: int
    n_bytes: int


def find_members(raw: IO[bytes]) -> Mapping[str, Member]:
    """The files in an archive, by name, in its order.

    Raises:
        ValueError: It is no tar archive, cut off, or holds what no bundle does.
    """
    raw.seek(0, os.SEEK_END)
    n_bytes = raw.tell()
    members: dict[str, Member] = {}
    at, size = 0, None
    while True:
        raw.seek(at)
        block = raw.read(tarfile.BLOCKSIZE)
        if block == bytes(tarfile.BLOCKSIZE):
            return members
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise ValueError(f"no member at byte {at} ({error})") from error
        at += tarfile.BLOCKSIZE
        member = Member(offset=at, n_bytes=header.size if size is None else size)
        if member.n_bytes < 0 or at + member.n_bytes > n_bytes:
            raise ValueError(f"{header.name!r} is cut off")
        at += member.n_bytes + -member.n_bytes % tarfile.BLOCKSIZE
        if header.type == tarfile.XHDTYPE and size is None:
            if member.n_bytes > _MOST_RECORD_BYTES:
                raise ValueError(f"an extra record of {member.n_bytes} bytes")
            found = _SIZE_RECORD.match(raw.read(member.n_bytes))
            size = int(found[1]) if found else None
            continue
        size = None
        if header.type != tarfile.REGTYPE:
            raise ValueError(f"{header.name!r} is no plain file")
        if header.name not in ("bundle.json", SEAL) and not ADMITTED.fullmatch(header.name):
            raise ValueError(f"holds {header.name!r}, which no store has")
        if header.name in members:
            raise ValueError(f"holds {header.name!r} twice")
        members[header.name] = member


def write_member(raw: IO[bytes], name: str, content: Path | bytes) -> None:
    """Append a file."""
    n_bytes = len(content) if isinstance(content, bytes) else content.stat().st_size
    raw.write(_make_header(name, n_bytes))
    if isinstance(content, bytes):
        raw.write(content)
    else:
        with content.open("rb") as source:
            shutil.copyfileobj(source, raw, BLOCK)
    raw.write(bytes(-n_bytes % tarfile.BLOCKSIZE))


def make_seal(sha256: str) -> bytes:
    """The archive's last bytes, which follow from the hash of all bytes before them."""
    content = f"{sha256}\n".encode()
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return _make_header(SEAL, len(content)) + content + padding + bytes(2 * tarfile.BLOCKSIZE)


def iter_blocks(raw: IO[bytes], n_bytes: int) -> Iterator[bytes]:
    """The next bytes, at most as many as there are, a block at a time."""
    while n_bytes > 0:
        block = raw.read(min(BLOCK, n_bytes))
        if not block:
            return
        n_bytes -= len(block)
        yield block


def _make_header(name: str, n_bytes: int) -> bytes:
    """A tar header without owner and time, so that equal stores give equal bundles."""
    member = tarfile.TarInfo(name)
    member.size = n_bytes
    member.mode = 0o644
    return member.tobuf(tarfile.PAX_FORMAT)
