"""Stage one end to end on real generated video: what is in the store, what survives."""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import features.store.shard_writer
import pipeline.extract
import pipeline.workers.rows
from features.contracts import Clip, ClipFeatures
from features.errors import ConfigError, ManifestError, ShardError
from features.networks.weights import SHIPPED_FACE_WEIGHTS
from features.store.reader import Store, open_store, verify_store
from features.store.shard_writer import rewrite_clip_columns
from pipeline.config import ExtractConfig
from pipeline.extract import ExtractProgress, run_extract
from pipeline.manifest.reader import ManifestOptions
from pipeline.workers.extractor import Extractor
from pipeline.workers.messages import Output, Work
from pipeline.workers.pool import WorkerPool
from tests.builders import write_face_video
from tests.pipeline.processes import list_children, read_parents

ROOT = Path(__file__).parents[2]
CONFIG = ExtractConfig(min_face="40", phases=2)
SMALL_SHARDS = partial(Output, shard_frames=8, first_frames=8)


pytestmark = pytest.mark.usefixtures("one_thread")


def write_manifest(folder: Path, rows: list[dict[str, str]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "m.csv"


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips: three with a face, one without, and a manifest of them."""
    folder = tmp_path_factory.mktemp("footage")
    for i in range(3):
        write_face_video(folder / f"face{i}.mp4", n_frames=10, shift_px=8 * i)
    write_face_video(folder / "empty.mp4", n_frames=10, face_found=False)
    names = ("face0", "face1", "face2", "empty")
    splits = ("train", "val", "test", "test")
    rows = [
        {"clip_id": n, "path": f"{n}.mp4", "label": "happy", "split": s, "note": f"of {n}"}
        for n, s in zip(names, splits, strict=True)
    ]
    write_manifest(folder, rows)
    return folder


@pytest.fixture(scope="module")
def extracted(footage: Path) -> Path:
    summary = run_extract(footage / "m.csv", footage / "store", CONFIG)
    assert (summary.clips_done, summary.clips_failed) == (4, 0)
    return footage / "store"


def test_clips_frames_and_faces_are_where_the_clock_says(extracted: Path) -> None:
    store = open_store(extracted)
    assert verify_store(extracted) == []
    train, val, _, empty = store.iter_clips(context_7x7=True)
    # 10 frames at 25 fps are 0.4 s: ticks 0.0 .. 0.3 at 10 Hz in two phases, 0.0 and 0.2 at 5 Hz.
    np.testing.assert_allclose(train.pts_s, [0, 0.08, 0.2, 0.28])
    assert train.phase.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(val.pts_s, [0, 0.2])
    assert train.face_frame.tolist() == [0, 1, 2, 3]
    assert set(train.track) == {0}
    assert (empty.status, empty.n_frames, empty.n_faces) == ("no-face", 2, 0)
    assert train.extra == {"note": "of face0"}
    assert train.context_7x7 is not None
    assert float(train.context_7x7.max()) > 1
    assert float(train.face_vector.max()) > 0


def test_a_second_run_does_nothing(extracted: Path, footage: Path) -> None:
    told: list[ExtractProgress] = []
    summary = run_extract(footage / "m.csv", extracted, CONFIG, progress=told.append)
    assert (summary.clips_done, summary.clips_skipped, summary.clips_failed) == (0, 4, 0)
    assert told == []


@pytest.mark.usefixtures("local")
def test_a_changed_label_reaches_the_store_without_a_new_extraction(
    footage: Path, tmp_path: Path
) -> None:
    rows = [{"clip_id": "a", "path": str(footage / "face0.mp4"), "label": "sad", "split": "val"}]
    run_extract(write_manifest(tmp_path, rows), tmp_path / "s", CONFIG)
    rows[0] |= {"label": "angry", "split": "test", "subject": "anna"}
    summary = run_extract(write_manifest(tmp_path, rows), tmp_path / "s", CONFIG)
    assert (summary.clips_done, summary.clips_skipped) == (0, 1)
    clip = open_store(tmp_path / "s").read_clip(0)
    assert (clip.label, clip.split, clip.subject) == ("angry", "test", "anna")
    assert verify_store(tmp_path / "s") == []


@pytest.mark.usefixtures("local")
def test_a_relabelling_that_was_interrupted_is_completed_by_the_next_run(
    footage: Path, tmp_path: Path
) -> None:
    rows = [{"clip_id": "a", "path": str(footage / "face0.mp4"), "label": "sad", "split": "val"}]
    run_extract(write_manifest(tmp_path, rows), tmp_path / "s", CONFIG)
    rows[0] |= {"label": "angry"}
    rewrite_clip_columns(tmp_path / "s/shards/0000.h5", {"a": {"label": "angry"}})
    (tmp_path / "s/.relabelling").write_text("shards/0000.h5\n")
    with pytest.raises(ShardError, match="run extract again"):
        open_store(tmp_path / "s")
    assert run_extract(write_manifest(tmp_path, rows), tmp_path / "s", CONFIG).clips_skipped == 1
    assert open_store(tmp_path / "s").read_clip(0).label == "angry"
    assert verify_store(tmp_path / "s") == []


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("change", ["file", "split", "part"])
def test_a_clip_whose_frames_change_is_extracted_again(
    footage: Path, tmp_path: Path, change: str
) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes((footage / "face0.mp4").read_bytes())
    rows = [{"clip_id": "a", "path": "v.mp4", "label": "sad", "split": "val"}]
    run_extract(write_manifest(tmp_path, rows), tmp_path / "s", CONFIG)
    if change == "file":
        video.write_bytes((footage / "face1.mp4").read_bytes())
    rows[0] |= {"split": {"split": "train"}, "part": {"start_s": "0.2"}}.get(change, {})
    summary = run_extract(write_manifest(tmp_path, rows), tmp_path / "s", CONFIG)
    assert summary.clips_done == 1
    assert len(open_store(tmp_path / "s")) == 1
    assert verify_store(tmp_path / "s") == []


@pytest.mark.usefixtures("local")
def test_broken_clips_become_rows_and_only_they_are_done_again(
    footage: Path, tmp_path: Path
) -> None:
    good = (footage / "face0.mp4").read_bytes()
    (tmp_path / "good.mp4").write_bytes(good)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"not a video\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    rows = [
        {"clip_id": name, "path": f"{name}.mp4", "label": "", "split": "test"}
        for name in ("good", "missing", "empty", "text", "cut")
    ]
    manifest = write_manifest(tmp_path, rows)
    summary = run_extract(manifest, tmp_path / "s", CONFIG)
    assert (summary.clips_done, summary.clips_failed) == (1, 4)
    failures = open_store(tmp_path / "s").failures.set_index("clip_id")
    assert "no such file" in failures.loc["missing", "reason"]
    assert "empty" in failures.loc["empty", "reason"]
    assert "not a video" in failures.loc["text", "reason"]
    for name in ("missing", "empty", "text", "cut"):
        (tmp_path / f"{name}.mp4").write_bytes(good)
    summary = run_extract(manifest, tmp_path / "s", CONFIG)
    assert (summary.clips_done, summary.clips_skipped, summary.clips_failed) == (4, 1, 0)
    assert open_store(tmp_path / "s").failures.empty


@pytest.mark.usefixtures("local")
def test_a_failure_is_added_to_the_file_and_counts_instead_of_the_one_before(
    footage: Path, tmp_path: Path
) -> None:
    rows = [
        {"clip_id": name, "path": f"{name}.mp4", "label": "", "split": "test"} for name in "abc"
    ]
    manifest = write_manifest(tmp_path, rows)
    run_extract(manifest, tmp_path / "s", CONFIG)
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "b.mp4").write_bytes((footage / "face0.mp4").read_bytes())
    written = []

    def read_rows(_: ExtractProgress) -> None:
        assert len(open_store(tmp_path / "s").failures) == 3
        written.append((tmp_path / "s/failures.csv").read_text())

    run_extract(manifest, tmp_path / "s", CONFIG, progress=read_rows)
    assert all(later.startswith(first) for first, later in itertools.pairwise(written))
    failures = open_store(tmp_path / "s").failures.set_index("clip_id")["reason"]
    assert failures.index.tolist() == ["a", "c"]
    assert "not a video" in failures["a"]
    assert len((tmp_path / "s/failures.csv").read_text().splitlines()) == 3


@pytest.mark.usefixtures("local")
def test_failures_of_another_manifest_stay_until_their_clips_are_done(
    footage: Path, tmp_path: Path
) -> None:
    broken = {"clip_id": "gone", "path": "gone.mp4", "label": "", "split": "test"}
    run_extract(write_manifest(tmp_path, [broken]), tmp_path / "s", CONFIG)
    good = {"clip_id": "a", "path": str(footage / "face0.mp4"), "label": "", "split": "test"}
    run_extract(write_manifest(tmp_path, [good]), tmp_path / "s", CONFIG)
    assert open_store(tmp_path / "s").failures["clip_id"].tolist() == ["gone"]


@pytest.mark.usefixtures("local")
def test_a_clip_that_cannot_be_extracted_again_still_gets_its_new_label(
    footage: Path, tmp_path: Path
) -> None:
    video = tmp_path / "v.mp4"
    video.write_bytes((footage / "face0.mp4").read_bytes())
    row = {"clip_id": "a", "path": "v.mp4", "label": "happy", "split": "train"}
    run_extract(write_manifest(tmp_path, [row]), tmp_path / "s", CONFIG)
    video.unlink()
    row |= {"label": "angry", "split": "val"}
    assert run_extract(write_manifest(tmp_path, [row]), tmp_path / "s", CONFIG).clips_failed == 1
    clip = open_store(tmp_path / "s").read_clip(0)
    assert (clip.label, clip.split) == ("angry", "val")


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_clip_that_upsets_its_decoder_stops_no_other(
    footage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    n_workers: int,
) -> None:
    """By an error, or by the end of its process; what was unusual about another is kept."""
    names = ["good0", "good1", "odd", "joined", "crash", *(f"good{i}" for i in range(2, 8))]
    film = str(footage / "face0.mp4")
    rows = [{"clip_id": name, "path": film, "label": "", "split": "test"} for name in names]
    pool = partial(WorkerPool, extractor="tests.pipeline.workers.poisoned:Poisoned")
    monkeypatch.setattr("pipeline.extract.WorkerPool", pool)
    summary = run_extract(write_manifest(tmp_path, rows), tmp_path / "s", CONFIG, workers=n_workers)
    assert (summary.clips_done, summary.clips_failed) == (9, 2)
    store = open_store(tmp_path / "s")
    reasons = dict(store.failures.set_index("clip_id")["reason"])
    assert reasons == {
        "odd": "unexpected ValueError: odd",
        "crash": "its worker crashed (signal 11, Segmentation fault)",
    }
    assert store.sum_notes() == {"clock_restarts": {"clips": 1, "total": 2}}
    assert [r.message for r in caplog.records if "clock" in r.message] == [
        "clip joined: times that its clock starts again: 2"
    ]
    assert verify_store(tmp_path / "s") == []


def test_other_settings_are_refused_before_anything_is_done(extracted: Path, footage: Path) -> None:
    with pytest.raises(ConfigError, match="min_face: 40 there, 20 here"):
        run_extract(footage / "m.csv", extracted, ExtractConfig(phases=2))


@pytest.mark.usefixtures("local")
def test_the_classes_of_the_store_hold_for_later_manifests(footage: Path, tmp_path: Path) -> None:
    row = {"clip_id": "a", "path": str(footage / "face0.mp4"), "label": "calm", "split": "test"}
    run_extract(
        write_manifest(tmp_path, [row]),
        tmp_path / "s",
        CONFIG,
        options=ManifestOptions(classes=["tense", "calm"]),
    )
    assert open_store(tmp_path / "s").classes == ("tense", "calm")
    with pytest.raises(ManifestError, match="label 'happy' is not one of tense, calm"):
        run_extract(footage / "m.csv", tmp_path / "s", CONFIG)


def test_a_device_that_is_not_there_is_said(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--device cuda:99"):
        run_extract(footage / "m.csv", tmp_path / "s", CONFIG, device="cuda:99")


def assert_same_arrays(found: Store, expected: Store) -> None:
    a = {c.clip_id: c for c in found.iter_clips(context_7x7=True)}
    b = {c.clip_id: c for c in expected.iter_clips(context_7x7=True)}
    assert a.keys() == b.keys()
    for clip_id in a:
        for name in ("pts_s", "context_7x7", "context_2x2", "box_px", "face_vector", "track"):
            np.testing.assert_array_equal(getattr(a[clip_id], name), getattr(b[clip_id], name))


@pytest.fixture(scope="module")
def many(footage: Path) -> Path:
    """A manifest of enough clips that an extract can be stopped half way."""
    rows = [
        {"clip_id": f"c{i}", "path": f"face{i % 3}.mp4", "label": "sad", "split": "train"}
        for i in range(20)
    ]
    (footage / "many").mkdir()
    for i in range(3):
        (footage / "many" / f"face{i}.mp4").symlink_to(footage / f"face{i}.mp4")
    return write_manifest(footage / "many", rows)


@pytest.fixture(scope="module")
def uninterrupted(many: Path) -> Path:
    run_extract(many, many.parent / "whole", CONFIG)
    return many.parent / "whole"


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("local")
def test_a_stopped_extract_resumes_to_the_same_store(
    many: Path, uninterrupted: Path, tmp_path: Path, stop: signal.Signals, n_workers: int
) -> None:
    store = tmp_path / "s"
    command = [sys.executable, "cli.py", "extract", str(many), "--store", str(store)]
    command += ["--min-face", "40", "--phases", "2", "--workers", str(n_workers)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while process.poll() is None and not list(store.glob("shards/.*.partial")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)  # until the first clip is being written
    workers = list_children(process.pid)
    assert len(workers) == n_workers
    process.send_signal(stop)
    process.wait()
    ended_s = time.monotonic()
    while workers & read_parents().keys():
        assert time.monotonic() < ended_s + 2
    process.communicate()
    if stop is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert len(open_store(store)) < 20
        assert verify_store(store) == []
    resumed = run_extract(many, store, CONFIG)
    assert resumed.clips_failed == 0
    assert resumed.clips_done > 0
    assert_same_arrays(open_store(store), open_store(uninterrupted))
    assert verify_store(store) == []


@pytest.mark.usefixtures("local")
def test_ctrl_c_keeps_the_clips_that_are_done(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.extract, "Output", SMALL_SHARDS)

    def interrupt_after_three(told: ExtractProgress) -> None:
        if told.n_done == 3:
            # All three use other files; even kill -9 costs no hash of theirs.
            assert len((tmp_path / "s/inputs.jsonl").read_text().splitlines()) == 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_extract(many, tmp_path / "s", CONFIG, progress=interrupt_after_three)
    assert len(open_store(tmp_path / "s")) == 3
    assert verify_store(tmp_path / "s") == []


@pytest.mark.usefixtures("local")
def test_a_full_disk_is_said_and_what_is_done_stays_where_there_is_room(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.extract, "Output", SMALL_SHARDS)
    add_rows = features.store.shard_writer.ShardWriter.add_rows
    n_added = 0

    def add_until_full(self: features.store.shard_writer.ShardWriter, part: ClipFeatures) -> None:
        nonlocal n_added
        n_added += 1
        if n_added > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        add_rows(self, part)

    monkeypatch.setattr(features.store.shard_writer.ShardWriter, "add_rows", add_until_full)
    with pytest.raises(OSError, match="No space left"):
        run_extract(many, tmp_path / "s", CONFIG)
    monkeypatch.undo()
    assert len(open_store(tmp_path / "s")) == 5
    assert verify_store(tmp_path / "s") == []


@pytest.mark.parametrize("change", ["workers", "threads"])
def test_how_the_work_is_dealt_out_changes_no_feature(
    many: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    if change == "threads":
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    n_workers = 2 if change == "workers" else 1
    told: list[ExtractProgress] = []
    summary = run_extract(many, tmp_path / "s", CONFIG, workers=n_workers, progress=told.append)
    assert (summary.clips_done, summary.clips_failed) == (20, 0)
    assert [t.n_done for t in told] == list(range(21))
    assert_same_arrays(open_store(tmp_path / "s"), open_store(uninterrupted))
    assert verify_store(tmp_path / "s") == []


def test_workers_that_are_killed_cost_no_clip(
    many: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    was_killed = False

    def kill_workers_after_three(told: ExtractProgress) -> None:
        nonlocal was_killed
        if told.n_done == 3 and not was_killed:
            was_killed = True
            for pid in list_children(os.getpid()):
                os.kill(pid, signal.SIGKILL)

    progress = kill_workers_after_three
    summary = run_extract(many, tmp_path / "s", CONFIG, workers=2, progress=progress)
    assert (summary.clips_done, summary.clips_failed) == (20, 0)
    assert_same_arrays(open_store(tmp_path / "s"), open_store(uninterrupted))
    assert verify_store(tmp_path / "s") == []


def test_torch_is_loaded_by_workers_only(many: Path, uninterrupted: Path, tmp_path: Path) -> None:
    row = {"clip_id": "a", "path": str(many.parent / "face0.mp4"), "label": "", "split": "test"}
    code = """
import sys
from pathlib import Path
from pipeline.config import ExtractConfig
from pipeline.extract import run_extract
many, finished, one, new = map(Path, sys.argv[1:])
config = ExtractConfig(min_face="40", phases=2)
assert run_extract(many, finished, config).clips_skipped == 20
assert run_extract(one, new, config).clips_done == 1
sys.exit("torch" in sys.modules)
"""
    one = write_manifest(tmp_path, [row])
    command = [sys.executable, "-c", code, *map(str, (many, uninterrupted, one, tmp_path / "s"))]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_a_long_clip_passes_through_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_face_video(tmp_path / "long.mp4", n_frames=40)
    work = Work(
        config=replace(CONFIG, phases=5, precision="float32"),
        face_weights=SHIPPED_FACE_WEIGHTS,
        inputs=tmp_path / "inputs.jsonl",
        device="cpu",
    )
    extractor = Extractor(work)
    clip = Clip(clip_id="a", path=path, label="sad", split="train")
    found = []
    for rows in (pipeline.workers.rows.PART_FRAMES, 7):
        monkeypatch.setattr(pipeline.workers.rows, "PART_FRAMES", rows)
        parts = [p for p in extractor.iter_items([clip]) if isinstance(p, ClipFeatures)]
        found.append(parts)
    (whole,), parts = found
    assert [part.n_frames for part in parts] == [7, 7, 7, 7, 7, 5]
    for name in ("pts_s", "context_7x7", "context_2x2", "box_px", "face_vector", "track"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


@pytest.mark.usefixtures("local")
def test_tracked_and_exact_do_not_mix(extracted: Path, footage: Path) -> None:
    with pytest.raises(ConfigError, match="detect: exact there, tracked here"):
        run_extract(footage / "m.csv", extracted, replace(CONFIG, detect="tracked"))


@pytest.mark.usefixtures("local")
def test_the_precision_of_a_store_is_taken_up(footage: Path, tmp_path: Path) -> None:
    rows = [{"clip_id": "a", "path": str(footage / "face0.mp4"), "label": "sad", "split": "val"}]
    manifest = write_manifest(tmp_path, rows)
    run_extract(manifest, tmp_path / "s", replace(CONFIG, precision="float32"))
    assert run_extract(manifest, tmp_path / "s", CONFIG).clips_skipped == 1
    assert open_store(tmp_path / "s").header.config["precision"] == "float32"
