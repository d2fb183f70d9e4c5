"""A store keeps what was written, notices damage, and outlives crashes of its writer."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import features.store.clip_writer
import features.store.shard_writer
import features.store.writer
from features.contracts import MEC_CLASSES, ClipFeatures
from features.errors import ConfigError, ShardError
from features.store.clip_writer import ClipWriter
from features.store.hdf5_files import Hdf5Output
from features.store.reader import open_store, verify_store
from features.store.shard_format import ShardHeader
from features.store.shard_reader import check_shard, read_shard_index
from features.store.shard_writer import rewrite_clip_columns
from features.store.writer import StoreWriter, write_store
from tests.builders import clip_features, small_store

ROOT = Path(__file__).parents[3]
HEADER = ShardHeader(fingerprint="test", classes=MEC_CLASSES, config={}, weights={}, versions={})
ARRAYS = (
    "pts_s", "phase", "context_2x2", "context_7x7", "face_frame", "box_px", "score",
    "landmarks_px", "track", "face_vector",
)  # fmt: skip


def assert_same_clip(found: ClipFeatures, expected: ClipFeatures) -> None:
    assert (found.clip_id, found.label, found.split) == (
        expected.clip_id, expected.label, expected.split,
    )  # fmt: skip
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_a_store_gives_back_every_array_whatever_the_clips_lengths(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]]
) -> None:
    clips = [clip_features(f"c{i}", n_frames=f, n_faces=a) for i, (f, a) in enumerate(sizes)]
    path = tmp_path_factory.mktemp("s") / "store"
    store = open_store(write_store(path, clips, classes=MEC_CLASSES, fingerprint="x"))
    for i, (found, expected) in enumerate(
        zip(store.iter_clips(context_7x7=True), clips, strict=True)
    ):
        assert_same_clip(found, expected)
        assert_same_clip(store.read_clip(i, context_7x7=True), expected)
    assert verify_store(path) == []


def test_labels_paths_and_unknown_columns_survive(tmp_path: Path) -> None:
    clip = clip_features(
        "a-1", subject="演员", source="影片", extra={"note": "a, “b”"}, start_s=1.5, end_s=2.5,
        n_phases=5,
    )  # fmt: skip
    store = open_store(write_store(tmp_path / "s", [clip], classes=MEC_CLASSES, fingerprint="x"))
    found = store.read_clip(0)
    assert (found.subject, found.source, found.extra) == (clip.subject, clip.source, clip.extra)
    assert (found.start_s, found.end_s, found.n_phases) == (1.5, 2.5, 5)


def test_reading_without_7x7_leaves_it_out(tmp_path: Path) -> None:
    assert next(iter(open_store(small_store(tmp_path / "s")))).context_7x7 is None


def test_a_clip_without_faces_is_marked(tmp_path: Path) -> None:
    path = write_store(
        tmp_path / "s", [clip_features(n_faces=0)], classes=MEC_CLASSES, fingerprint="x"
    )
    assert open_store(path).clips["status"].tolist() == ["no-face"]


def test_a_clip_extracted_again_replaces_the_old_one(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", [clip_features("a"), clip_features("b")],
                       classes=MEC_CLASSES, fingerprint="x")  # fmt: skip
    newer = clip_features("a", n_frames=5)
    write_store(path, [newer], classes=MEC_CLASSES, fingerprint="x")
    store = open_store(path)
    assert sorted(store.clips["clip_id"]) == ["a", "b"]
    assert [c.n_frames for c in store if c.clip_id == "a"] == [5]


def test_relabelling_changes_the_labels_and_no_feature(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    before = list(open_store(path).iter_clips(context_7x7=True))
    with StoreWriter(path, HEADER) as writer:
        writer.relabel({"c1": {"label": "neutral", "subject": "anna"}})
    after = list(open_store(path).iter_clips(context_7x7=True))
    assert (after[1].label, after[1].subject) == ("neutral", "anna")
    for found, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(found.context_7x7, expected.context_7x7)
        assert found.clip_id == "c1" or found.label == expected.label
    assert verify_store(path) == []


def test_while_labels_change_no_reader_opens_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_store(tmp_path / "s")
    rewrite = features.store.writer.rewrite_clip_columns

    def read_meanwhile(shard: Path, updates: dict[str, dict[str, str]]) -> None:
        rewrite(shard, updates)
        with pytest.raises(ShardError, match=r"labels are being changed.*run extract again"):
            open_store(path)

    monkeypatch.setattr(features.store.writer, "rewrite_clip_columns", read_meanwhile)
    with StoreWriter(path, HEADER) as writer:
        writer.relabel({"c1": {"label": "neutral"}})
        assert open_store(path).read_clip(1).label == "neutral"


RELABEL_AND_DIE = """
import os, signal, sys
from pathlib import Path
import features.store.writer
from features.store.writer import StoreWriter
from tests.features.store.test_store import HEADER
rewrite = features.store.writer.rewrite_clip_columns
n_left = int(sys.argv[2])

def rewrite_and_die(file, updates):
    global n_left
    rewrite(file, updates)
    n_left -= 1
    if n_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

features.store.writer.rewrite_clip_columns = rewrite_and_die
with StoreWriter(Path(sys.argv[1]), HEADER) as writer:
    writer.relabel({f"c{i}": {"label": "neutral"} for i in range(6)})
"""


def relabel_and_die(path: Path, n_shards: int) -> None:
    command = [sys.executable, "-c", RELABEL_AND_DIE, str(path), str(n_shards)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL


def test_a_crash_while_labels_change_is_mended_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features.store.writer, "SHARD_FRAMES", 6)
    path = small_store(tmp_path / "s")
    relabel_and_die(path, 2)
    with pytest.raises(ShardError, match="its labels are being changed"):
        open_store(path)
    with StoreWriter(path, HEADER) as writer:
        labels = [clip.label for clip in writer.open()]
        assert labels[:4] == ["neutral"] * 4
        assert "neutral" not in labels[4:]
        writer.relabel({"c5": {"label": "neutral"}})
    assert len(open_store(path)) == 6
    assert verify_store(path) == []


def test_a_full_disk_while_labels_change_leaves_a_store_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features.store.writer, "SHARD_FRAMES", 6)
    path = small_store(tmp_path / "s")
    rewrite = features.store.writer.rewrite_clip_columns

    def fill_up(shard: Path, updates: dict[str, dict[str, str]]) -> None:
        if shard.name == "0001.h5":
            raise OSError(errno.ENOSPC, "No space left on device")
        rewrite(shard, updates)

    monkeypatch.setattr(features.store.writer, "rewrite_clip_columns", fill_up)
    with pytest.raises(OSError, match="No space"), StoreWriter(path, HEADER) as writer:
        writer.relabel({f"c{i}": {"label": "neutral"} for i in range(6)})
    assert [clip.label == "neutral" for clip in open_store(path)] == [True] * 2 + [False] * 4
    assert verify_store(path) == []


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_verify_notices_one_flipped_byte_anywhere(tmp_path: Path, where: float) -> None:
    path = small_store(tmp_path / "s")
    shard = path / "shards" / "0000.h5"
    content = bytearray(shard.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    shard.write_bytes(content)
    assert "0000.h5" in verify_store(path)[0]


def test_verify_notices_a_truncated_shard(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    shard = path / "shards" / "0000.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "bytes, expected" in verify_store(path)[0]


def test_a_shard_that_contradicts_itself_is_not_taken_in(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    shard = path / "shards" / "0000.h5"
    with h5py.File(shard, "r+") as file:
        file["clip/face_offset"][-1] += 1
    (path / "store.json").unlink()
    with pytest.raises(ShardError, match="/face/"), StoreWriter(path, HEADER):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "caca-rnn-store", "version": 1}'])
def test_a_damaged_index_is_said_with_the_remedy(tmp_path: Path, content: str) -> None:
    path = small_store(tmp_path / "s")
    (path / "store.json").write_text(content)
    with pytest.raises(ShardError, match=r"store\.json: damaged .* run extract"):
        open_store(path)


def test_a_newer_store_is_refused_with_advice(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    text = (path / "store.json").read_text().replace('"version":1', '"version":2')
    (path / "store.json").write_text(text)
    with pytest.raises(ShardError, match="Update the code"):
        open_store(path)


def test_a_newer_shard_is_refused_with_advice(tmp_path: Path) -> None:
    shard = small_store(tmp_path / "s") / "shards" / "0000.h5"
    with h5py.File(shard, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(ShardError, match=r"format 99, but this code reads \[1\]"):
        read_shard_index(shard)


def test_a_shard_finished_before_a_crash_but_not_listed_is_taken_in(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    (path / "store.json").unlink()
    with StoreWriter(path, HEADER) as writer:
        assert len(writer.open()) == 6
    assert verify_store(path) == []


def test_shards_are_ordered_by_number(tmp_path: Path) -> None:
    """Of a clip in two shards the later one counts, also after 9999."""
    path = small_store(tmp_path / "s", n_clips=1)
    (path / "shards/0000.h5").rename(path / "shards/9999.h5")
    (path / "store.json").unlink()
    for n_frames in (4, 5):
        write_store(
            path,
            [clip_features("c0", n_frames=n_frames)],
            classes=MEC_CLASSES,
            fingerprint="test",
        )
    store = open_store(path)
    assert [shard.name for shard in store.shards] == [
        "shards/9999.h5",
        "shards/10000.h5",
        "shards/10001.h5",
    ]
    assert [clip.n_frames for clip in store] == [5]


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_writers_side_by_side_never_share_a_number(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whoever begins, finishes or disappears when."""
    path = tmp_path_factory.mktemp("s")
    names = []
    with StoreWriter(path, HEADER) as store_writer:
        writers = [ClipWriter(path, HEADER, 4096) for _ in range(3)]
        kinds = st.sampled_from(["add", "finish", "die"])
        steps = st.lists(st.tuples(st.integers(0, 2), kinds))
        for number, step in data.draw(steps):
            if step == "add":
                clip = clip_features(f"{len(names)}-{number}", n_frames=1)
                writers[number].add_rows(clip)
                writers[number].close_clip(clip)
            elif step == "finish":
                if entry := writers[number].finish():
                    names.append(entry.name)
                    store_writer.list_shard(entry)
            else:
                writers[number] = ClipWriter(path, HEADER, 4096)
    assert len(set(names)) == len(names)
    assert sorted(names) == [shard.name for shard in open_store(path).shards]
    assert verify_store(path) == []
    assert list((path / "shards").glob(".*")) == []


def test_a_number_that_another_takes_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look into the folder and the claim another begins, or begins and finishes."""
    path = small_store(tmp_path / "s")
    find = features.store.clip_writer.find_shard_files

    def find_late(store: Path) -> list[str]:
        found = find(store)
        (path / "shards/.0001.h5.partial").touch()
        (path / "shards/0002.h5").touch()
        return found

    monkeypatch.setattr(features.store.clip_writer, "find_shard_files", find_late)
    writer = ClipWriter(path, HEADER, 4096)
    writer.add_rows(clip_features("new"))
    assert writer.shard_name == "shards/0003.h5"


def test_a_writer_looks_into_the_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_store(tmp_path / "s")
    writer = ClipWriter(path, HEADER, 4096)
    names = []
    for clip in (clip_features("a"), clip_features("b")):
        writer.add_rows(clip)
        writer.close_clip(clip)
        names.append(writer.shard_name)
        writer.finish()
        monkeypatch.delattr(features.store.clip_writer, "find_shard_files", raising=False)
    assert names == ["shards/0001.h5", "shards/0002.h5"]


def test_the_table_of_clips_does_not_look_at_features(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    with h5py.File(path / "shards/0000.h5", "r+") as file:
        del file["frame/context_7x7"]
    store = open_store(path, verify=False)
    assert len(store.clips) == 6
    with pytest.raises(ShardError, match="/frame/context_7x7 is missing"):
        store.read_clip(0)


def test_a_copy_beside_the_shards_is_passed_over(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    shutil.copy(path / "shards/0000.h5", path / "shards/0000 (copy).h5")
    with StoreWriter(path, HEADER) as writer:
        writer.add(clip_features("new"))
    assert len(open_store(path)) == 7
    assert verify_store(path) == []


def test_a_damaged_shard_that_is_not_listed_is_named_once(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    (path / "store.json").unlink()
    shard = path / "shards" / "0000.h5"
    with h5py.File(shard, "r+") as file:
        file["frame/phase"][...] = 99
    with pytest.raises(ShardError) as raised, StoreWriter(path, HEADER):
        pass
    assert str(raised.value).count(str(shard)) == str(raised.value).count("run extract") == 1


def test_an_unfinished_shard_of_a_crash_is_not_seen_and_goes(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    leftover = path / "shards" / ".0001.h5.partial"
    leftover.write_bytes(b"half a shard")
    assert len(open_store(path)) == 6
    with StoreWriter(path, HEADER):
        pass
    assert not leftover.exists()


def test_an_interrupt_keeps_the_clips_that_are_done(tmp_path: Path) -> None:
    def add_then_interrupt() -> None:
        with StoreWriter(tmp_path / "s", HEADER) as writer:
            writer.add(clip_features("a"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_then_interrupt()
    assert open_store(tmp_path / "s").clips["clip_id"].tolist() == ["a"]
    assert verify_store(tmp_path / "s") == []


def test_a_full_disk_loses_the_shard_at_hand_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_store(tmp_path / "s")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Hdf5Output, "put_rows", fail)
    with pytest.raises(OSError, match="No space"), StoreWriter(path, HEADER) as writer:
        writer.add(clip_features("new"))
    assert len(open_store(path)) == 6
    assert verify_store(path) == []
    assert list((path / "shards").glob(".*")) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from features.store.shard_format import ShardHeader
from features.store.writer import StoreWriter
from features.contracts import MEC_CLASSES
from tests.builders import clip_features
header = ShardHeader(fingerprint="test", classes=MEC_CLASSES, config={}, weights={}, versions={})
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with StoreWriter(Path(sys.argv[1]), header) as writer:
        for i in range(200):
            writer.add(clip_features(f"new{i}", n_frames=40))
except OSError as error:
    sys.exit(f"refused: {error.strerror}")
"""


def test_hdf5_survives_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "refused: File too large\n")
    assert len(open_store(path)) == 6
    assert verify_store(path) == []
    assert list((path / "shards").glob(".*")) == []


ROOM_AT_THE_END = """
import resource, sys
from pathlib import Path
from features.store.writer import StoreWriter
from tests.builders import clip_features
from tests.features.store.test_store import HEADER
no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
try:
    with StoreWriter(Path(sys.argv[1]), HEADER) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, no_limit[1]))
        try:
            for i in range(200):
                writer.add(clip_features(f"new{i}", n_frames=40))
        except OSError:
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
            raise
except OSError as error:
    sys.exit(f"{i} clips, then {error.strerror}")
"""


def test_clips_that_are_done_stay_where_a_full_disk_has_room_to_finish_them(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", ROOM_AT_THE_END, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    n_clips, _, reason = result.stderr.partition(" clips, then ")
    assert reason == "File too large\n"
    assert int(n_clips) > 2
    clips = list(open_store(tmp_path).iter_clips(context_7x7=True))
    assert len(clips) == int(n_clips)
    for i, clip in enumerate(clips):
        assert_same_clip(clip, clip_features(f"new{i}", n_frames=40))
    assert verify_store(tmp_path) == []


def test_room_to_finish_a_shard_is_set_aside_while_it_is_written(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, HEADER) as writer:
        writer.add(clip_features("a"))
        (reserve,) = (tmp_path / "shards").glob("*.reserve.partial")
        assert reserve.stat().st_size == 8 << 20
    assert [file.name for file in (tmp_path / "shards").iterdir()] == ["0000.h5"]


def test_a_damaged_shard_is_not_relabelled(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    shard = path / "shards" / "0000.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with StoreWriter(path, HEADER) as writer, pytest.raises(ShardError, match="damaged"):
        writer.relabel({"c1": {"label": "neutral"}})
    assert "damaged" in verify_store(path)[0]


@pytest.mark.parametrize("wrong", [{"label": "joyful"}, {"split": "dev"}])
def test_an_undeclared_label_or_split_is_not_written(tmp_path: Path, wrong: dict[str, str]) -> None:
    with StoreWriter(tmp_path / "s", HEADER) as writer, pytest.raises(ValueError, match="not "):
        writer.add(clip_features("a", **wrong))


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    other = ShardHeader(
        fingerprint="other", classes=MEC_CLASSES, config={"phases": 3}, weights={}, versions={}
    )
    with pytest.raises(ConfigError, match="phases: None there, 3 here"), StoreWriter(path, other):
        pass


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = small_store(tmp_path / "s")
    with (
        StoreWriter(path, HEADER),
        pytest.raises(ConfigError, match="another extract"),
        StoreWriter(path, HEADER),
    ):
        pass


def test_full_shards_are_finished_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features.store.writer, "SHARD_FRAMES", 4)
    store = open_store(small_store(tmp_path / "s", n_clips=5))
    assert [shard.n_clips for shard in store.shards] == [2, 2, 1]
    assert [c.clip_id for c in store] == ["c0", "c1", "c2", "c3", "c4"]


def test_face_maps_are_kept_where_asked_and_missed_where_not(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((3, 512, 2, 3)).astype(np.float16)
    path = write_store(tmp_path / "s", [clip_features(face_map=maps)], classes=MEC_CLASSES,
                       fingerprint="x", face_map_shape=(512, 2, 3))  # fmt: skip
    np.testing.assert_array_equal(open_store(path).read_clip(0, face_map=True).face_map, maps)
    with pytest.raises(ShardError, match="--face-map"):
        open_store(small_store(tmp_path / "t")).read_clip(0, face_map=True)


def test_a_clip_that_fails_while_being_added_leaves_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Hdf5Output.put_rows

    def fail_at_faces(self: Hdf5Output, name: str, first: int, rows: np.ndarray) -> None:
        if name == "face/vector" and first > 0:
            raise ValueError("broken")
        put(self, name, first, rows)

    monkeypatch.setattr(Hdf5Output, "put_rows", fail_at_faces)
    with StoreWriter(tmp_path / "s", HEADER) as writer:
        writer.add(clip_features("a"))
        with pytest.raises(ValueError, match="broken"):
            writer.add(clip_features("b"))
    assert open_store(tmp_path / "s").clips["clip_id"].tolist() == ["a"]
    assert verify_store(tmp_path / "s") == []


def test_a_signal_waits_until_the_clip_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Hdf5Output.put_rows

    def signal_once(self: Hdf5Output, name: str, first: int, rows: np.ndarray) -> None:
        if name == "frame/phase":
            signal.raise_signal(signal.SIGINT)
        put(self, name, first, rows)

    def add() -> None:
        with StoreWriter(tmp_path / "s", HEADER) as writer:
            writer.add(clip_features("a"))

    monkeypatch.setattr(Hdf5Output, "put_rows", signal_once)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with pytest.raises(KeyboardInterrupt):
        add()
    assert open_store(tmp_path / "s").clips["clip_id"].tolist() == ["a"]
    assert verify_store(tmp_path / "s") == []


def split_rows(clip: ClipFeatures, at: int) -> list[ClipFeatures]:
    """A clip with a face a frame as two parts."""
    return [
        replace(
            clip,
            **{name: getattr(clip, name)[rows] for name in ARRAYS if name != "face_frame"},
            face_frame=np.arange(len(clip.pts_s[rows]), dtype=np.int32),
        )
        for rows in (slice(at), slice(at, None))
    ]


def test_clips_in_parts_and_side_by_side_are_the_clips_that_they_were(tmp_path: Path) -> None:
    clips = [clip_features(f"c{i}", n_frames=5) for i in range(4)]
    with StoreWriter(tmp_path / "s", HEADER) as store_writer:
        writers = [ClipWriter(tmp_path / "s", HEADER, 4096) for _ in range(2)]
        for pair in (clips[:2], clips[2:]):
            for parts in zip(
                *(split_rows(clip, 2 + i) for i, clip in enumerate(pair)), strict=True
            ):
                for writer, part in zip(writers, parts, strict=True):
                    writer.add_rows(part)
            for writer, clip in zip(writers, pair, strict=True):
                writer.close_clip(clip)
        writers[0].add_rows(clip_features("never ends"))
        for writer in reversed(writers):
            entry = writer.finish()
            assert entry is not None
            store_writer.list_shard(entry)
    store = open_store(tmp_path / "s")
    assert [shard.n_clips for shard in store.shards] == [2, 2]
    for found in store.iter_clips(context_7x7=True):
        assert_same_clip(found, clips[int(found.clip_id[1])])
    assert verify_store(tmp_path / "s") == []


def test_rows_of_a_dropped_clip_are_gone(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", HEADER) as store_writer:
        writer = ClipWriter(tmp_path / "s", HEADER, 4096)
        writer.add_rows(clip_features("broken", n_frames=7))
        writer.drop_clip()
        writer.add_rows(clip_features("a"))
        writer.close_clip(clip_features("a"))
        entry = writer.finish()
        assert entry is not None
        store_writer.list_shard(entry)
    (found,) = open_store(tmp_path / "s").iter_clips(context_7x7=True)
    assert_same_clip(found, clip_features("a"))
    assert verify_store(tmp_path / "s") == []


def test_notes_come_back_and_are_summed(tmp_path: Path) -> None:
    notes = [{"clock_restarts": 1.0}, {}, {"clock_restarts": 2.0, "still_s": 12.5}]
    clips = [clip_features(f"c{i}", notes=found) for i, found in enumerate(notes)]
    store = open_store(write_store(tmp_path, clips, classes=MEC_CLASSES, fingerprint="x"))
    assert [dict(clip.notes) for clip in store] == notes
    assert store.sum_notes() == {
        "clock_restarts": {"clips": 2, "total": 3},
        "still_s": {"clips": 1, "total": 12.5},
    }


def test_a_shard_without_notes_reads_and_can_be_relabelled(tmp_path: Path) -> None:
    clips = [clip_features("a"), clip_features("b")]
    write_store(tmp_path, clips, classes=MEC_CLASSES, fingerprint="x")
    shard = tmp_path / "shards/0000.h5"
    with h5py.File(shard, "r+") as file:
        del file["clip/notes"]
    assert list(read_shard_index(shard).columns["notes"]) == ["{}", "{}"]
    rewrite_clip_columns(shard, {"b": {"label": "sad"}})
    check_shard(shard)
    assert list(read_shard_index(shard).columns["label"]) == ["happy", "sad"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE stands for a full disk")
def test_a_disk_that_is_full_at_any_moment_is_one_os_error(tmp_path: Path) -> None:
    """HDF5 reads back what could not be written; a file left open ends the process by SIGSEGV."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from features.contracts import MEC_CLASSES
from features.store.shard_format import ShardHeader
from features.store.reader import open_store, verify_store
from features.store.writer import StoreWriter
from tests.builders import clip_features

header = ShardHeader(fingerprint="x", classes=MEC_CLASSES, config={}, weights={}, versions={})
noise = np.random.default_rng(0).random((40, 512, 7, 7)).astype("f2")
clips = [clip_features(str(i), n_frames=40, context_7x7=noise) for i in range(3)]
for n_bytes in (0, 3_000, 100_000, 1_000_000, 2_000_000, 3_500_000, 5_000_000, 5_500_000):
    store = Path(sys.argv[1]) / str(n_bytes)
    try:
        with StoreWriter(store, header) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
            for clip in clips:
                writer.add(clip)
        raise SystemExit(f"{n_bytes} bytes are enough")
    except OSError as error:
        assert ".0000.h5.partial" in str(error.filename), error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert verify_store(store) == []
    done = [clip.clip_id for clip in open_store(store)]
    assert done == ["0", "1", "2"][: len(done)] and len(done) < 3  # those that it had room for
    assert not list(store.rglob("*.partial"))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
