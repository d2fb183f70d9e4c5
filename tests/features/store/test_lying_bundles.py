"""Bundles whose seal fits and whose content lies: one error, and nothing left on disk."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features.errors import ShardError
from features.fingerprint import hash_json
from features.store.bundle import pack_bundle, read_bundle_info, unpack_bundle, verify_bundle
from features.store.bundle_members import find_members, make_seal, write_member
from features.store.reader import open_store, verify_store
from tests.added_streams import DINO, add_stream
from tests.builders import small_store

Files = dict[str, bytes]
Lie = Callable[[Files], None]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files in a bundle of a small store with a stream beside its shard."""
    folder = tmp_path_factory.mktemp("honest")
    add_stream(small_store(folder / "store"), DINO)
    pack_bundle(folder / "store", folder / "x.bundle")
    with tarfile.open(folder / "x.bundle") as archive:
        names = [name for name in archive.getnames() if name != "bundle.sha256"]
        return {name: archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]


def seal(content: bytes) -> bytes:
    return content + make_seal(hashlib.sha256(content).hexdigest())


def list_files(files: Files, *more: dict[str, Any], **said: Any) -> None:
    """Make bundle.json list the files as they are, and say what it is told to."""
    described = json.loads(files["bundle.json"])
    described["files"] = [
        {"name": name, "n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
        if name != "bundle.json"
    ] + list(more)
    files["bundle.json"] = json.dumps(described | said).encode()


def index(files: Files, **said: Any) -> None:
    """Make store.json list the shards and streams as they are, and say what it is told to."""
    described = json.loads(files["store.json"])
    del described["sha256"]
    for listed in (*described["shards"], *described["added_streams"][0]["shards"]):
        data = files[listed["name"]]
        listed |= {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    described |= said
    files["store.json"] = json.dumps(described | {"sha256": hash_json(described)}).encode()
    list_files(files)


def write_bundle(file: Path, files: Files) -> Path:
    raw = io.BytesIO()
    for name, data in files.items():
        write_member(raw, name, data)
    file.write_bytes(seal(raw.getvalue()))
    return file


def is_noticed(file: Path) -> bool:
    try:
        return verify_bundle(file) != []
    except ShardError:
        return True


def assert_not_unpacked(file: Path, folder: Path) -> None:
    """And nothing is left."""
    before = sorted(folder.rglob("*"))
    for place in (folder / "out", folder / "deep" / "er" / "out"):
        with pytest.raises(ShardError, match=file.name):
            unpack_bundle(file, place)
    assert sorted(folder.rglob("*")) == before


def change_shard(change: Callable[[h5py.File], None], name: str = "shards/0000.h5") -> Lie:
    def lie(files: Files) -> None:
        content = io.BytesIO(files[name])
        with h5py.File(content, "r+") as file:
            change(file)
        files[name] = content.getvalue()
        index(files)

    return lie


def set_label(file: h5py.File) -> None:
    file["clip/label"][0] = "merry"


STREAM = "streams/dino/0000.h5"

LIES: dict[str, Lie] = {
    "nothing in it": lambda files: files.update({"bundle.json": b"null"}),
    "no bundle.json": lambda files: files.__delitem__("bundle.json"),
    "JSON that is deep": lambda files: files.update({"bundle.json": b"[" * 10**6}),
    "a list for an object": lambda files: list_files(files, config=[]),
    "a class that is a number": lambda files: list_files(files, classes=[1]),
    "a count in words": lambda files: list_files(files, n_clips="six"),
    "another version": lambda files: list_files(files, version=2),
    "a listed file that is missing": lambda files: list_files(
        files, {"name": "shards/0001.h5", "n_bytes": 1, "sha256": "0" * 64}
    ),
    "a file listed twice": lambda files: list_files(
        files, {"name": "store.json", "n_bytes": 1, "sha256": "0" * 64}
    ),
    "a listed path": lambda files: list_files(
        files, {"name": "../x", "n_bytes": 1, "sha256": "0" * 64}
    ),
    "a file that is not listed": lambda files: files.update({"shards/0001.h5": b""}),
    "a hash that is another's": lambda files: files.update({"failures.csv": b"clip_id\n"}),
    "no store.json": lambda files: (files.pop("store.json"), list_files(files)),  # type: ignore[func-returns-value]
    "a store.json that is damaged": lambda files: (
        files.update({"store.json": files["store.json"].replace(b"happy", b"merry")}),
        list_files(files),
    )[1],
    "an index of other shards": lambda files: index(files, shards=[]),
    "a path among its files": lambda files: files.update({"../../x": b"x"}),
    "an absolute path among its files": lambda files: files.update({"/tmp/x": b"x"}),
    "more clips than in its shards": lambda files: list_files(files, n_clips=7),
    "another fingerprint": lambda files: list_files(files, fingerprint="other"),
    "expressions that the shards lack": lambda files: list_files(files, expressions=["joy"]),
    "a stream that the index lacks": lambda files: index(files, added_streams=[]),
    "a stream's file of another name": lambda files: (
        files.update({"streams/Dino/0000.h5": files.pop("streams/dino/0000.h5")}),
        list_files(files),
    )[1],
    "a stream's file of no shard": lambda files: (
        files.update({"streams/dino/0001.h5": files["streams/dino/0000.h5"]}),
        list_files(files),
    )[1],
    "a stream of another encoder": lambda files: list_files(
        files, added_streams=[vars(replace(DINO, fingerprint="other"))]
    ),
}  # fmt: skip
LIES_INSIDE: dict[str, Lie] = {
    "failures that are no table": lambda files: (
        files.update({"failures.csv": b"a,b\n1,2\n"}),
        list_files(files),
    )[1],
    "failures that are no text": lambda files: (
        files.update({"failures.csv": b"\xff\xfe\x00"}),
        list_files(files),
    )[1],
    "fewer clips": lambda files: list_files(files, n_clips=5),
    "a label that is not declared": change_shard(set_label),
    "a shard without a column of features": change_shard(lambda file: file.pop("face/vector")),
    "a stream of other clips": change_shard(
        lambda file: file["clip/id"].write_direct(np.array(["c9"] * 6, object)), STREAM
    ),
    "a stream without values": change_shard(lambda file: file.pop("values"), STREAM),
    "a stream that is none": lambda files: (files.update({STREAM: b"none"}), index(files))[1],
    "a shard that is none": lambda files: (
        files.update({"shards/0000.h5": b"none"}),
        index(files),
    )[1],
}  # fmt: skip
"""Verify, which unpacks nothing, does not see these."""


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_bundle_that_lies_is_refused(tmp_path: Path, honest: Files, lie: Lie) -> None:
    files = dict(honest)
    lie(files)
    file = write_bundle(tmp_path / "x.bundle", files)
    assert is_noticed(file)
    assert_not_unpacked(file, tmp_path)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_info_of_a_bundle_that_lies_is_an_error(tmp_path: Path, honest: Files, lie: Lie) -> None:
    files = dict(honest)
    lie(files)
    file = write_bundle(tmp_path / "x.bundle", files)
    with pytest.raises(ShardError, match=file.name):
        read_bundle_info(file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"n_bytes": 9}, r"shards/0000\.h5 has \d+ bytes, expected 9 as in bundle\.json"),
        (
            {"name": "shards/0001.h5"},
            r"shards/0001\.h5 is missing\n.*shards/0000\.h5 is not listed",
        ),
        ({"sha256": "0" * 64}, r"its bundle\.json and its store\.json name other shards"),
    ],
    ids=["size", "listing", "hash"],
)
def test_info_tells_how_bundle_json_contradicts_the_archive(
    tmp_path: Path, honest: Files, change: dict[str, Any], problem: str
) -> None:
    described = json.loads(honest["bundle.json"])
    (shard,) = [file for file in described["files"] if file["name"] == "shards/0000.h5"]
    shard |= change
    files = {**honest, "bundle.json": json.dumps(described).encode()}
    with pytest.raises(ShardError, match=problem):
        read_bundle_info(write_bundle(tmp_path / "x.bundle", files))


@pytest.mark.parametrize("lie", LIES_INSIDE.values(), ids=LIES_INSIDE.keys())
def test_a_bundle_of_files_that_lie_is_not_unpacked(
    tmp_path: Path, honest: Files, lie: Lie
) -> None:
    files = dict(honest)
    lie(files)
    assert_not_unpacked(write_bundle(tmp_path / "x.bundle", files), tmp_path)


def make_member(name: str, kind: bytes, *, size: int = 0, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member.tobuf(tarfile.USTAR_FORMAT)


STRANGE = {
    "a symbolic link": make_member("failures.csv", tarfile.SYMTYPE, link="/etc/passwd"),
    "a hard link": make_member("failures.csv", tarfile.LNKTYPE, link="store.json"),
    "a device": make_member("failures.csv", tarfile.CHRTYPE),
    "a folder": make_member("shards", tarfile.DIRTYPE),
    "a sparse file": make_member("failures.csv", tarfile.GNUTYPE_SPARSE, size=512) + bytes(512),
    "a long extra record": make_member("x", tarfile.XHDTYPE, size=8192) + bytes(8192),
    "a long name": make_member("x", tarfile.GNUTYPE_LONGNAME, size=512) + b"a" * 512,
    "a file cut off": make_member("failures.csv", tarfile.REGTYPE, size=8**11 - 1),
    "the same file again": make_member("store.json", tarfile.REGTYPE),
}


@pytest.mark.parametrize("member", STRANGE.values(), ids=STRANGE.keys())
def test_only_plain_files_are_unpacked(tmp_path: Path, honest: Files, member: bytes) -> None:
    raw = io.BytesIO()
    for name, data in honest.items():
        write_member(raw, name, data)
    file = tmp_path / "x.bundle"
    file.write_bytes(seal(raw.getvalue() + member))
    assert is_noticed(file)
    assert_not_unpacked(file, tmp_path)
    with pytest.raises(ShardError, match=r"x\.bundle: not a bundle, or cut off"):
        read_bundle_info(file)


def test_json_of_much_length_is_not_read(tmp_path: Path, honest: Files) -> None:
    file = write_bundle(tmp_path / "x.bundle", {**honest, "bundle.json": b" " * (70 << 20)})
    with pytest.raises(ShardError, match=r"bundle\.json has 73400320 bytes"):
        read_bundle_info(file)


def test_a_member_of_more_than_eight_gigabytes_is_found(tmp_path: Path) -> None:
    n_bytes = 9 << 30  # its size takes a record of its own
    with (tmp_path / "x.tar").open("w+b") as raw:  # sparse: no disk is taken
        member = tarfile.TarInfo("shards/0000.h5")
        member.size = n_bytes
        raw.write(member.tobuf(tarfile.PAX_FORMAT))
        start = raw.tell()
        raw.seek(n_bytes, 1)
        write_member(raw, "failures.csv", b"after it")
        raw.write(bytes(1024))
        found = find_members(raw)
    assert {name: (m.offset, m.n_bytes) for name, m in found.items()} == {
        "shards/0000.h5": (start, n_bytes),
        "failures.csv": (start + n_bytes + 512, 8),
    }


def test_the_same_files_packed_again_are_the_bundle(tmp_path: Path, honest: Files) -> None:
    files = dict(honest)
    index(files)
    unpack_bundle(write_bundle(tmp_path / "x.bundle", files), tmp_path / "out")
    assert verify_store(tmp_path / "out") == []
    assert len(open_store(tmp_path / "out")) == 6
