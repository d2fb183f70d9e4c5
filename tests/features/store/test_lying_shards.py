"""Shards that break FORMAT.md, in stores whose hashes fit: one error, in little memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from features.contracts import MEC_CLASSES
from features.errors import ShardError
from features.fingerprint import hash_file, hash_json
from features.store.index import read_store_index, write_store_index
from features.store.reader import open_store, verify_store
from tests.builders import small_store

ROOT = Path(__file__).parents[3]
Lie = Callable[[h5py.File], None]


def make_hashes_fit(store: Path) -> None:
    index = read_store_index(store)
    header, (entry,) = index.header, index.shards
    shard = store / entry.name
    fitting = replace(entry, sha256=hash_file(shard), n_bytes=shard.stat().st_size)
    write_store_index(store, header, [fitting])


def put(name: str, data: Any, **options: Any) -> Lie:
    """A lie: another dataset in a column's place."""

    def lie(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, data=data, **options)

    return lie


def put_link(link: object) -> Lie:
    def lie(file: h5py.File) -> None:
        del file["frame/pts_s"]
        file["frame/pts_s"] = link

    return lie


def lie_outside(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(np.arange(18.0).tobytes())
    put("frame/pts_s", None, shape=(18,), dtype="f8", external=[(str(secret), 0, 144)])(file)


def lie_virtually(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((18,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "frame/pts_s", (18,))
    del file["frame/pts_s"]
    file.create_virtual_dataset("frame/pts_s", layout)


def set_values(name: str, at: Any, value: Any) -> Lie:
    def lie(file: h5py.File) -> None:
        file[name][at] = value

    return lie


def set_attribute(name: str, value: Any) -> Lie:
    def lie(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return lie


def refer_to_objects(file: h5py.File) -> None:
    put("clip/label", [file["frame"].ref] * 6, dtype=h5py.ref_dtype)(file)


def drop_group(file: h5py.File) -> None:
    del file["face"]
    file["face"] = np.zeros(3)


TEXT = h5py.string_dtype("utf-8")
ZSTD = dict(hdf5plugin.Zstd(clevel=3))
LIES: dict[str, Lie] = {
    "a link into another file": put_link(h5py.ExternalLink("/etc/hostname", "/x")),
    "a soft link": put_link(h5py.SoftLink("/face/score")),
    "bytes of another file": lie_outside,
    "a virtual column": lie_virtually,
    "references for texts": refer_to_objects,
    "a dataset for a group": drop_group,
    "a missing column": lambda file: file.__delitem__("face/track"),
    "too few labels": put("clip/label", ["sad"] * 3, dtype=TEXT),
    "texts of fixed length": put("clip/label", np.array([b"sad"] * 6)),
    "texts in chunks": put("clip/label", ["sad"] * 6, dtype=TEXT, chunks=(6,)),
    "a text that is no UTF-8": put("clip/id", [b"\xff\xfe"] * 6, dtype=TEXT),
    "numbers of another type": put("face/score", np.zeros(18)),
    "numbers in another order": put("clip/start_s", np.zeros(6, ">f8")),
    "a number for a column": put("clip/n_phases", 1),
    "an empty column": put("clip/end_s", h5py.Empty("f8")),
    "another shape": put("face/box_px", np.zeros((18, 5), np.float32)),
    "gzip": put("face/score", np.zeros(18, np.float32), compression="gzip"),
    "no offsets": put("clip/frame_offset", np.zeros(0, np.int64)),
    "offsets that begin late": set_values("clip/frame_offset", 0, 1),
    "offsets that fall": set_values("clip/frame_offset", 2, 1),
    "offsets below zero": set_values("clip/face_offset", 1, -(2**63)),
    "offsets that end early": set_values("clip/face_offset", 6, 17),
    "a face in a frame of another clip": set_values("face/frame", 4, 1),
    "a face in no frame": set_values("face/frame", 17, 2**40),
    "time that runs back": set_values("frame/pts_s", 1, 9.0),
    "a time that is no number": set_values("frame/pts_s", 1, np.nan),
    "a phase beyond the last": set_values("frame/phase", 1, 1),
    "a phase below 0": set_values("frame/phase", 1, -1),
    "no phases": set_values("clip/n_phases", 1, 0),
    "an endless start": set_values("clip/start_s", 1, np.inf),
    "a label that is not declared": set_values("clip/label", 1, "merry"),
    "a split that is none": set_values("clip/split", 1, "dev"),
    "an id that is a path": set_values("clip/id", 1, "../c1"),
    "no face in a clip with three": set_values("clip/status", 1, "no-face"),
    "an extra that is a list": set_values("clip/extra", 1, "[1]"),
    "an extra with a number": set_values("clip/extra", 1, '{"a": 1}'),
    "an extra that is deep": set_values("clip/extra", 1, '{"a": ' + "[" * 100_000),
    "no format": set_attribute("format", None),
    "a format of several": set_attribute("format", ["caca-rnn-shard"] * 2),
    "a version in words": set_attribute("format_version", "one"),
    "weights in a list": set_attribute("weights", "[1]"),
    "weights that are numbers": set_attribute("weights", '{"face": 1}'),
    "classes that are numbers": set_attribute("classes", "[1, 2]"),
    "a class twice": set_attribute("classes", '["sad", "sad"]'),
    "a config that is deep": set_attribute("config", '{"a":' * 10_000 + "1" + "}" * 10_000),
    "a config that is no number": set_attribute("config", '{"rate": NaN}'),
    "a config that is half a character": set_attribute("config", '{"rate": "\\ud800"}'),
    "another fingerprint": set_attribute("fingerprint", "other"),
    "classes in another order": set_attribute(
        "classes", json.dumps(MEC_CLASSES[::-1])
    ),
    "a stream of a reserved name": put("stream/face", np.zeros((18, 2), np.float16)),
    "a stream without values": put("stream/audio", np.zeros(18, np.float16)),
    "a stream that store.json does not list": put("stream/audio", np.zeros((18, 2), np.float16)),
    "a stream that is a group": lambda file: file.create_group("stream/audio") and None,
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_shard_that_lies_is_refused(tmp_path: Path, lie: Lie) -> None:
    store = small_store(tmp_path / "s")
    with h5py.File(store / "shards/0000.h5", "r+") as file:
        lie(file)
    make_hashes_fit(store)
    with pytest.raises(ShardError, match=r"0000\.h5"):
        list(open_store(store).iter_clips(context_7x7=True))
    assert "0000.h5" in verify_store(store)[0]


@pytest.mark.parametrize(
    "change",
    [{"n_clips": 5}, {"n_frames": 2**40}, {"n_faces": 0}],
    ids=lambda change: next(iter(change)),
)
def test_an_index_that_counts_otherwise_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    store = small_store(tmp_path / "s")
    index = read_store_index(store)
    header, (entry,) = index.header, index.shards
    write_store_index(store, header, [replace(entry, **change)])
    with pytest.raises(ShardError, match="its clips, frames and faces"):
        list(open_store(store))
    assert "its clips, frames and faces" in verify_store(store)[0]


def describe(store: Path, **changed: Any) -> None:
    """A store.json with a hash that fits, whatever it says."""
    said = json.loads((store / "store.json").read_text()) | changed
    del said["sha256"]
    (store / "store.json").write_text(json.dumps({**said, "sha256": hash_json(said)}))


COUNTS = ("n_bytes", "n_clips", "n_frames", "n_faces")
LONG = f"shards/{'9' * 5000}.h5"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        pytest.param({"header": None}, "header is None, expected an object", id="no header"),
        pytest.param(
            {"header": {"classes": 3}}, "header.fingerprint is missing", id="no fingerprint"
        ),
        pytest.param({"shards": {}}, "shards is {}, expected a list", id="shards that are no list"),
        pytest.param({"shards": [7]}, "shards[0] is 7, expected an object", id="a shard: a number"),
        pytest.param(
            {"shards": [{"name": "shards/0000.h5"}]}, "shards[0].sha256 is missing", id="no hash"
        ),
        pytest.param(
            {"shards": [dict.fromkeys(COUNTS, 0) | {"name": LONG, "sha256": ""}]},
            f"shard '{LONG}'",
            id="a number of 5000 digits",
        ),
    ],
)
def test_an_index_of_another_make_is_refused(
    tmp_path: Path, changed: dict[str, Any], problem: str
) -> None:
    store = small_store(tmp_path / "s")
    describe(store, **changed)
    with pytest.raises(ShardError, match=rf"store\.json: damaged \({re.escape(problem)}"):
        open_store(store)


@pytest.mark.parametrize("name", ["../../s/shards/0000.h5", "/etc/passwd", "shards/x/0000.h5"])
def test_an_index_leads_to_no_other_file(tmp_path: Path, name: str) -> None:
    store = small_store(tmp_path / "s")
    (entry,) = json.loads((store / "store.json").read_text())["shards"]
    describe(store, shards=[entry | {"name": name}])
    with pytest.raises(ShardError, match="expected a name like shards/"):
        open_store(store)


def claim_frames(file: h5py.File, n: int) -> None:
    """A clip of n frames of which nothing is stored."""
    for name in file["frame"]:
        file[f"frame/{name}"].resize(n, axis=0)
    file["clip/frame_offset"][6] = n


def chunk_of_a_gigabyte(file: h5py.File) -> None:
    del file["face/vector"]
    file.create_dataset(
        "face/vector", (18, 512), "f2", chunks=(1 << 20, 512), maxshape=(None, 512), **ZSTD
    )[:] = 0  # fmt: skip


def unpack_to_much(file: h5py.File) -> None:
    """A chunk whose zstd frame says that it holds 3 GB."""
    place = file["face/score"].id.get_chunk_info(0).byte_offset
    file.flush()
    with Path(file.filename).open("r+b") as raw:
        raw.seek(place)
        head = bytearray(raw.read(16))
        assert head[:4] == b"\x28\xb5\x2f\xfd"
        head[4] = 2 << 6  # the size takes four bytes
        head[6:10] = (3 * 10**9).to_bytes(4, "little")
        raw.seek(place)
        raw.write(head)


def share_a_text(file: h5py.File) -> None:
    """Six texts that are one and the same, together longer than the file."""
    put("clip/source", ["x" * 60_000] + [""] * 5, dtype=TEXT)(file)
    place = file["clip/source"].id.get_offset()
    file.flush()
    with Path(file.filename).open("r+b") as raw:
        raw.seek(place)
        reference = raw.read(16)
        raw.seek(place)
        raw.write(reference * 6)


def many_zeros(file: h5py.File) -> None:
    """40 GB of zeros, all stored, in a file of a few megabytes."""
    n = 40 * 10**9 // 1024
    del file["face/vector"]
    vector = file.create_dataset(
        "face/vector", shape=(n, 512), dtype="f2", chunks=(1 << 16, 512), **ZSTD
    )
    vector[: 1 << 16] = 0
    packed = vector.id.read_direct_chunk((0, 0))[1]
    for first in range(1 << 16, n, 1 << 16):
        vector.id.write_direct_chunk((first, 0), packed)
    for name in ("frame", "box_px", "score", "landmarks_px", "track"):
        file[f"face/{name}"].resize(n, axis=0)
    file["clip/face_offset"][6] = n


BOMBS: dict[str, tuple[Lie, str]] = {
    "frames that are not there": (lambda file: claim_frames(file, 10**9), "has not stored all"),
    "a long column": (put("clip/start_s", None, shape=(10**9,), dtype="f8", chunks=(1 << 20,)),
                      "expected float64"),
    "a large chunk": (chunk_of_a_gigabyte, "chunks of 1073741824 bytes"),
    "a chunk that unpacks to much": (unpack_to_much, "unpacks to 3000000000 bytes"),
    "one text for all": (share_a_text, "too long for this file"),
    "zeros, well packed": (many_zeros, "face/"),
}  # fmt: skip

READ = """
import resource, sys
from pathlib import Path
from features.errors import ShardError
from features.store.reader import open_store
import h5py, pandas
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
try:
    list(open_store(sys.argv[1]).iter_clips(context_7x7=True))
except ShardError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")
@pytest.mark.parametrize(("lie", "reason"), BOMBS.values(), ids=BOMBS.keys())
def test_a_small_shard_does_not_ask_for_much_memory(tmp_path: Path, lie: Lie, reason: str) -> None:
    store = small_store(tmp_path / "s")
    shard = store / "shards/0000.h5"
    with h5py.File(shard, "r+") as file:
        lie(file)
    make_hashes_fit(store)
    with h5py.File(shard) as file:
        counts = len(file["frame/pts_s"]), len(file["face/score"])
    index = read_store_index(store)
    header, (entry,) = index.header, index.shards
    write_store_index(store, header, [replace(entry, n_frames=counts[0], n_faces=counts[1])])
    command = [sys.executable, "-c", READ, str(store)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("refused: ")
    assert reason in result.stderr
