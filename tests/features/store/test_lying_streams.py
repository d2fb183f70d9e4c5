"""Streams' files that break FORMAT.md, in stores whose hashes fit: one error, in little memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features.errors import ShardError
from features.fingerprint import hash_file
from features.store.index import read_store_index, write_store_index
from features.store.reader import open_store, verify_store
from features.store.shard_format import Lack
from tests.added_streams import DINO, add_stream, take_away
from tests.builders import small_store
from tests.features.store.test_lying_shards import (
    READ,
    ROOT,
    TEXT,
    ZSTD,
    Lie,
    describe,
    put,
    set_attribute,
    set_values,
)

FILE = "streams/dino/0000.h5"
ROWS = np.zeros((18, 4), np.float16)


def make_hashes_fit(store: Path) -> None:
    index = read_store_index(store)
    (stream,) = index.added_streams
    fitting = replace(
        stream.shards[0], sha256=hash_file(store / FILE), n_bytes=(store / FILE).stat().st_size
    )
    write_store_index(store, index.header, index.shards, [replace(stream, shards=(fitting,))])


def link_values(link: object) -> Lie:
    def lie(file: h5py.File) -> None:
        del file["values"]
        file["values"] = link

    return lie


def lie_outside(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(ROWS.tobytes())
    put("values", None, shape=(18, 4), dtype="f2", external=[(str(secret), 0, 144)])(file)


def lie_virtually(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((18, 4), "f2")
    layout[:] = h5py.VirtualSource("other.h5", "values", (18, 4))
    del file["values"]
    file.create_virtual_dataset("values", layout)


LIES: dict[str, Lie] = {
    "a link into another file": link_values(h5py.ExternalLink("/etc/hostname", "/x")),
    "a soft link": link_values(h5py.SoftLink("/clip/id")),
    "bytes of another file": lie_outside,
    "a virtual column": lie_virtually,
    "no values": lambda file: file.__delitem__("values"),
    "values that are a group": lambda file: (file.pop("values"), file.create_group("values"))[0],
    "flat values": put("values", np.zeros(18, np.float16)),
    "values of another size": put("values", np.zeros((18, 5), np.float16)),
    "values of no size": put("values", np.zeros((18, 0), np.float16)),
    "rows too few": put("values", ROWS[:17]),
    "numbers of another type": put("values", ROWS.astype(np.float32)),
    "gzip": put("values", ROWS, compression="gzip"),
    "a group for offsets": lambda file: (
        file.pop("row_offset"), file.create_group("row_offset")
    )[0],
    "no offsets": put("row_offset", np.zeros(0, np.int64)),
    "offsets that fall": set_values("row_offset", 2, 1),
    "offsets that begin late": set_values("row_offset", 0, 1),
    "another clip": set_values("clip/id", 1, "c9"),
    "an id that is a path": set_values("clip/id", 1, "../c1"),
    "ids too few": put("clip/id", ["c0"], dtype=TEXT),
    "another clip file": set_values("clip/sha256", 1, "0"),
    "no format": set_attribute("format", None),
    "the format of a shard": set_attribute("format", "caca-rnn-shard"),
    "a newer version": set_attribute("format_version", 3),
    "version 2 without the clips that lack it": set_attribute("format_version", 2),
    "another name": set_attribute("name", "dinosaur"),
    "a reserved name": set_attribute("name", "face"),
    "rows of frames": set_attribute("rows", "frame"),
    "rows of words": set_attribute("rows", "word"),
    "another fingerprint": set_attribute("fingerprint", "other"),
    "an encoder in a list": set_attribute("encoder", "[1]"),
    "an encoder that is no number": set_attribute("encoder", '{"a": NaN}'),
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    add_stream(small_store(tmp_path / "s"), DINO)
    return tmp_path / "s"


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_streams_file_that_lies_is_refused(store: Path, lie: Lie) -> None:
    with h5py.File(store / FILE, "r+") as file:
        lie(file)
    make_hashes_fit(store)
    with pytest.raises(ShardError, match=r"streams/dino/0000\.h5"):
        list(open_store(store))
    assert "streams/dino/0000.h5" in verify_store(store)[0]
    assert len(list(open_store(store).iter_clips(streams=()))) == 6


def test_an_honest_file_is_read(store: Path) -> None:
    """The same way as the lies."""
    make_hashes_fit(store)
    assert len(list(open_store(store))) == 6
    assert verify_store(store) == []


def chunk_of_a_gigabyte(file: h5py.File) -> None:
    del file["values"]
    file.create_dataset(
        "values", (18, 4), "f2", chunks=(1 << 27, 4), maxshape=(None, 4), **ZSTD
    )[:] = 0  # fmt: skip


def wide_rows(file: h5py.File) -> None:
    """36 GB in a chunk of a few kilobytes each."""
    n = 10**9
    del file["values"]
    values = file.create_dataset("values", (18, n), "f2", chunks=(1, 1 << 24), **ZSTD)
    values[0, : 1 << 24] = 0
    packed = values.id.read_direct_chunk((0, 0))[1]
    for row in range(18):
        for first in range(0, n, 1 << 24):
            values.id.write_direct_chunk((row, first), packed)


BOMBS: dict[str, tuple[Lie, str]] = {
    "rows that are not there": (
        put("values", None, shape=(18, 10**9), dtype="f2", chunks=(1, 1 << 20)),
        "has not stored all",
    ),
    "long offsets": (
        put("row_offset", None, shape=(10**9,), dtype="i8", chunks=(1 << 20,)),
        "has not stored all",
    ),
    "a large chunk": (chunk_of_a_gigabyte, "chunks of 1073741824 bytes"),
    "zeros, well packed": (wide_rows, "too many for this file"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux tells it")
@pytest.mark.parametrize(("lie", "reason"), BOMBS.values(), ids=BOMBS.keys())
def test_a_small_file_does_not_ask_for_much_memory(store: Path, lie: Lie, reason: str) -> None:
    with h5py.File(store / FILE, "r+") as file:
        lie(file)
    make_hashes_fit(store)
    command = [sys.executable, "-c", READ, str(store)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "refused:" in result.stderr
    assert reason in result.stderr


LACKING: dict[str, Lie] = {
    "no such column": lambda file: file["clip"].__delitem__("lacks"),
    "a value that means nothing": set_values("clip/lacks", 0, 3),
    "values too few": put("clip/lacks", np.ones(1, np.uint8)),
    "words": put("clip/lacks", ["no", "no", "no", "no", "no", "no"], dtype=TEXT),
    "another number than listed": set_values("clip/lacks", 0, 1),
}


@pytest.mark.parametrize("lie", LACKING.values(), ids=LACKING.keys())
def test_a_file_that_tells_wrongly_which_clips_lack_the_stream_is_refused(
    store: Path, lie: Lie
) -> None:
    take_away(store, "dino", {"c1": Lack.FINAL})
    with h5py.File(store / FILE, "r+") as file:
        lie(file)
    make_hashes_fit(store)
    with pytest.raises(ShardError, match=r"streams/dino/0000\.h5"):
        list(open_store(store))
    assert "streams/dino/0000.h5" in verify_store(store)[0]


def test_a_clip_that_lacks_a_stream_and_has_values_of_it_is_damage(store: Path) -> None:
    take_away(store, "dino", {"c1": Lack.FINAL})
    with h5py.File(store / FILE, "r+") as file:
        file["values"][3] = 1
    make_hashes_fit(store)
    assert "clip c1 lacks the stream, but has values" in verify_store(store)[0]


def change_stream(store: Path, **changed: Any) -> dict[str, Any]:
    (stream,) = read_store_index(store).added_streams
    listed = [vars(file) for file in stream.shards]
    return vars(stream.header) | {"shards": listed} | changed


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        pytest.param({"name": "face_map"}, "stream 'face_map'", id="a reserved name"),
        pytest.param(
            {"name": "face", "shards": []}, "a stream face beside the store's own", id="its own"
        ),
        pytest.param({"name": "context", "shards": []}, "those of frames", id="rows of another"),
        pytest.param({"name": "x" * 65}, "more than 64 letters", id="a long name"),
        pytest.param({"name": "other"}, "is a file of another stream", id="another name"),
        pytest.param({"rows": "word"}, "rows 'word', expected", id="rows of words"),
        pytest.param({"size": 0}, "0 values a row", id="no values"),
        pytest.param({"encoder": 1}, "encoder is 1, expected an object", id="no encoder"),
        pytest.param({"shards": [{"name": "../x"}]}, "sha256 is missing", id="no hash"),
        pytest.param(
            {"shards": [{"name": FILE, "sha256": "", "n_bytes": 1, "n_lacking": -1}]},
            "-1 clips lack it",
            id="fewer than no clips",
        ),
        pytest.param(
            {"shards": [{"name": "streams/dino/../0000.h5", "sha256": "", "n_bytes": 1}]},
            "expected a name like streams/",
            id="a path",
        ),
        pytest.param(
            {"shards": [{"name": "streams/dino/0007.h5", "sha256": "", "n_bytes": 1}]},
            "shards/0007.h5 is not listed",
            id="of no shard",
        ),
        pytest.param(
            {"shards": [{"name": FILE, "sha256": "", "n_bytes": 1}] * 2},
            "a file is listed twice",
            id="a file twice",
        ),
    ],
)
def test_an_index_that_lists_streams_wrongly_is_refused(
    store: Path, changed: dict[str, Any], problem: str
) -> None:
    describe(store, added_streams=[change_stream(store, **changed)])
    with pytest.raises(ShardError, match=rf"store\.json: damaged \(.*{problem}"):
        open_store(store)


def test_an_index_that_lists_a_stream_twice_is_refused(store: Path) -> None:
    describe(store, added_streams=[change_stream(store)] * 2)
    with pytest.raises(ShardError, match="a stream is listed twice"):
        open_store(store)
