"""Streams beside the shards outlive crashes: what is whole is taken in, leftovers go."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import features.store.writer
from features.contracts import MEC_CLASSES
from features.errors import ShardError
from features.store.reader import open_store, verify_store
from features.store.shard_reader import read_shard_index
from features.store.shard_writer import StreamShardWriter
from features.store.writer import StoreWriter, remove_unfinished, write_store
from tests.added_streams import DINO, HEADER, PLACES, add_stream, make_rows, with_streams
from tests.added_streams import write_stream_file as write_file
from tests.builders import clip_features, small_store

ROOT = Path(__file__).parents[3]
DIE = """
import os, signal, sys
from pathlib import Path
from features.store import index, shard_writer
from features.store.writer import StoreWriter
from tests.added_streams import DINO, HEADER, add_stream, with_streams
from tests.builders import clip_features

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

store = Path(sys.argv[1])
"""
ADD_CLIP = """
with StoreWriter(store, HEADER, [DINO]) as writer:
    writer.add(with_streams(clip_features("new"), DINO))
"""


def die_in(code: str, store: Path) -> None:
    command = [sys.executable, "-c", DIE + code, str(store)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL


def list_files(store: Path) -> set[str]:
    """Finished or not."""
    files = (f for folder in ("shards", "streams") for f in (store / folder).rglob("*"))
    return {str(file.relative_to(store)) for file in files if file.is_file()}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six clips in three shards, with a stream."""
    monkeypatch.setattr(features.store.writer, "SHARD_FRAMES", 6)
    add_stream(small_store(tmp_path / "store"), DINO)
    return tmp_path / "store"


def test_a_stream_whose_shard_never_got_its_name_goes(store: Path) -> None:
    before = list_files(store)
    die_in("shard_writer.ShardWriter.finish = die\n" + ADD_CLIP, store)
    assert "streams/dino/0003.h5" in list_files(store) - before
    assert len(open_store(store)) == 6
    with StoreWriter(store, HEADER):
        assert list_files(store) == before
    assert verify_store(store) == []


def test_a_shard_that_was_not_listed_is_taken_in_with_its_streams(store: Path) -> None:
    die_in("StoreWriter.list_shard = die\n" + ADD_CLIP, store)
    with StoreWriter(store, HEADER) as writer:
        assert writer.missing_streams(DINO) == []
    clip = open_store(store).read_clip(6)
    np.testing.assert_array_equal(clip.face_streams["dino"], make_rows(clip, DINO))
    assert verify_store(store) == []


def test_a_second_pass_goes_on_where_it_was_killed(store: Path) -> None:
    """In the middle of the second of three files, or before that one is listed."""
    die_in("""
from dataclasses import replace
places = replace(DINO, name="places")
close_clip = shard_writer.StreamShardWriter.close_clip
n_clips = 0

def close_and_die(self, clip_id, sha256):
    global n_clips
    close_clip(self, clip_id, sha256)
    n_clips += 1
    if n_clips == 3:
        die()

shard_writer.StreamShardWriter.close_clip = close_and_die
add_stream(store, places)
""", store)  # fmt: skip
    places = replace(DINO, name="places")
    assert "streams/places/.0001.h5.partial" in list_files(store)
    assert open_store(store).streams == {"dino": DINO}
    with StoreWriter(store, HEADER) as writer:
        assert writer.missing_streams(places) == ["shards/0001.h5", "shards/0002.h5"]
        assert not [name for name in list_files(store) if "partial" in name]
        write_file(store, places, "shards/0001.h5")  # finished, and never listed
    with StoreWriter(store, HEADER) as writer:
        assert writer.missing_streams(places) == ["shards/0002.h5"]
    add_stream(store, places)
    assert open_store(store).streams.keys() == {"dino", "places"}
    assert verify_store(store) == []


def test_what_a_dead_worker_left_of_a_shard_goes_and_nothing_else(store: Path) -> None:
    before = list_files(store)
    for name in (".0007.h5.partial", "0007.h5", ".0008.h5.partial"):
        (store / "streams/dino" / name).touch()
    for name in (".0007.h5.partial", ".0008.h5.partial"):
        (store / "shards" / name).touch()
    remove_unfinished(store, "shards/0007.h5")
    assert list_files(store) - before == {
        "streams/dino/.0008.h5.partial", "shards/.0008.h5.partial"
    }  # fmt: skip


def test_a_shard_that_takes_the_number_of_a_lost_one_takes_none_of_its_streams(
    store: Path,
) -> None:
    """Its clips have the same ids and lengths, so nothing else would tell."""
    (store / "shards/0002.h5").unlink()
    clips = [clip_features(f"c{i}", box_px=np.ones((3, 4), np.float32)) for i in (4, 5)]
    write_store(store, clips, classes=MEC_CLASSES, fingerprint="test")
    opened = open_store(store)
    assert [shard.name for shard in opened.shards][-1] == "shards/0002.h5"
    assert opened.streams == {}
    with StoreWriter(store, HEADER) as writer:
        assert writer.missing_streams(DINO) == ["shards/0002.h5"]


def test_a_full_disk_while_a_stream_is_finished_leaves_nothing_of_the_shard(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list_files(store)

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.store.shard_writer.ShardWriter, "finish", fail)
    clip = with_streams(clip_features("new"), DINO, PLACES)
    with pytest.raises(OSError, match="No space"), StoreWriter(store, HEADER, [DINO, PLACES]) as w:
        w.add(clip)
    assert list_files(store) == before
    assert verify_store(store) == []


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_lost_file_of_a_stream_is_work_left_to_do(store: Path, is_listed: bool) -> None:
    (store / "streams/dino/0001.h5").unlink()
    if not is_listed:
        with StoreWriter(store, HEADER):
            pass
    assert open_store(store).streams == {}
    assert verify_store(store) == []
    add_stream(store, DINO)
    assert open_store(store).streams == {"dino": DINO}


WRONG = {
    "another id": (["c2", "c9"], [3, 3], "its clips, row 1: 'c9', expected 'c3'"),
    "another order": (["c3", "c2"], [3, 3], "its clips, row 0: 'c3', expected 'c2'"),
    "a clip too few": (["c2"], [3], "its number of clips: 1, expected 2"),
    "other offsets": (["c2", "c3"], [2, 4], "its offsets, row 1: 2, expected 3"),
    "rows too few": (["c2", "c3"], [3, 2], "its offsets, row 2: 5, expected 6"),
}


@pytest.mark.parametrize(("ids", "n_rows", "problem"), WRONG.values(), ids=WRONG)
def test_a_file_with_other_clips_than_its_shard_is_refused(
    store: Path, ids: list[str], n_rows: list[int], problem: str
) -> None:
    writer = StreamShardWriter(store, PLACES, "shards/0001.h5")
    for clip_id, n in zip(ids, n_rows, strict=True):
        writer.add_rows(np.zeros((n, 3), np.float16))
        writer.close_clip(clip_id, "")
    writer.finish()
    with pytest.raises(ShardError, match=rf"streams/places/0001\.h5: {problem}.*Delete it and run"):
        StoreWriter(store, HEADER).__enter__()
    writer.path.rename(writer.path.with_name("kept"))
    with StoreWriter(store, HEADER) as store_writer:
        writer.path.with_name("kept").rename(writer.path)
        with pytest.raises(ShardError, match=problem):
            store_writer.list_stream_file(writer.path)


def test_a_file_of_another_clip_file_is_refused(store: Path) -> None:
    index = read_shard_index(store / "shards/0000.h5")
    writer = StreamShardWriter(store, PLACES, "shards/0000.h5")
    for clip_id in index.columns["id"]:
        writer.add_rows(np.zeros((3, 3), np.float16))
        writer.close_clip(clip_id, "f" * 64)
    writer.finish()
    with pytest.raises(ShardError, match="its SHA-256 of clips' files, row 0: 'ffff"):
        StoreWriter(store, HEADER).__enter__()


def test_a_file_whose_shard_is_not_listed_is_not_listed(store: Path) -> None:
    with StoreWriter(store, HEADER) as writer, pytest.raises(ValueError, match="not listed"):
        writer.list_stream_file(store / "streams/dino/0009.h5")


def test_two_encoders_never_share_a_stream(store: Path) -> None:
    (store / "streams/dino/0001.h5").unlink()
    write_file(store, replace(DINO, fingerprint="o" * 64), "shards/0001.h5")
    (store / "store.json").unlink()
    with pytest.raises(features.errors.ConfigError, match="its stream dino has the fingerprint"):
        StoreWriter(store, HEADER).__enter__()


def test_a_file_in_the_folder_of_another_stream_is_refused(store: Path) -> None:
    (store / "streams/dino").rename(store / "streams/other")
    with pytest.raises(ShardError, match="its stream is 'dino', expected 'other'"):
        StoreWriter(store, HEADER).__enter__()


def test_verify_tells_of_a_file_that_is_not_listed(store: Path) -> None:
    write_file(store, PLACES, "shards/0001.h5")
    (problem,) = verify_store(store)
    assert "streams/places/0001.h5: not listed in store.json" in problem


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 1.0])
def test_one_flipped_byte_in_a_stream_is_noticed(store: Path, where: float) -> None:
    file = store / "streams/dino/0001.h5"
    content = bytearray(file.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    file.write_bytes(content)
    (problem,) = verify_store(store)
    assert "streams/dino/0001.h5: damaged: SHA-256" in problem
    with pytest.raises(ShardError, match=r"damaged: SHA-256.*this stream is extracted again"):
        list(open_store(store))
    assert len(list(open_store(store).iter_clips(streams=()))) == 6


def test_a_stream_that_was_cut_off_is_noticed_when_the_store_is_opened(store: Path) -> None:
    file = store / "streams/dino/0001.h5"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"0001\.h5: damaged: .* bytes, expected"):
        open_store(store)


def test_a_stream_replaced_while_it_is_read_is_noticed(store: Path) -> None:
    opened = open_store(store)
    list(opened)
    file = store / "streams/dino/0000.h5"
    with h5py.File(file, "r+") as changed:
        changed["values"][0] = 7
    with pytest.raises(ShardError, match="changed while it was read"):
        opened.read_clip(0)
