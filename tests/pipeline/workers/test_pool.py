"""One clip that crashes its worker, stops it or never ends costs itself, and no other clip."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest

from features.contracts import MEC_CLASSES, Clip
from features.errors import WeightsError, WorkerError
from features.store.reader import open_store, verify_store
from features.store.shard_format import ShardHeader
from features.store.shard_reader import read_shard_index
from features.store.writer import StoreWriter
from pipeline.config import ExtractConfig
from pipeline.inputs import Inputs
from pipeline.record import FailureLog, RunRecord
from pipeline.workers.messages import ClipEnd, Item, Output, Work
from pipeline.workers.pool import WorkerPool
from pipeline.workers.resources import Budgets, ClipLimits, Job
from tests.builders import clip_features
from tests.pipeline.processes import list_children, read_parents

ROOT = Path(__file__).parents[3]
WORK = Work(config=ExtractConfig(), face_weights=Path(), inputs=Path("inputs.jsonl"), device="cpu")
ROOMY = Budgets(clip_timeout_s=60, worker_gigabytes=0.4)
QUICK = Budgets(clip_timeout_s=3)
REASONS = {
    "crash": "its worker crashed (signal 11, Segmentation fault)",
    "exit": "its worker ended with exit status 3",
    "gpu": "its worker met a GPU error: CUDA error: an illegal memory access was encountered",
    "memory": "its worker took more memory than 0.4 GB (--worker-memory)",
    "spin": "its worker made no progress for 3 s (--clip-timeout)",
    "stop": "its worker made no progress for 3 s (--clip-timeout)",
}


def make_clips(names: Sequence[str]) -> list[Clip]:
    return [
        Clip(clip_id=name, path=Path(f"{name}.mp4"), label="", split="test", line=i)
        for i, name in enumerate(names)
    ]


HEADER = ShardHeader(fingerprint="x", classes=MEC_CLASSES, config={}, weights={}, versions={})


def make_job(
    store: Path,
    names: Sequence[str],
    n_workers: int,
    budgets: Budgets = ROOMY,
    *,
    shard_frames: int = 4096,
    alone_ids: Collection[str] = (),
) -> Job:
    (store / "shards").mkdir(exist_ok=True)
    return Job(
        work=WORK,
        output=Output(
            store=store, header=HEADER, shard_frames=shard_frames, first_frames=shard_frames
        ),
        clips=make_clips(names),
        alone_ids=alone_ids,
        n_workers=n_workers,
        budgets=budgets,
    )


def make_pool(extractor: str = "FakeExtractor") -> WorkerPool:
    return WorkerPool("cpu", extractor=f"tests.pipeline.workers.poison:{extractor}")


def run_pool(
    store: Path,
    names: Sequence[str],
    n_workers: int,
    budgets: Budgets = ROOMY,
    *,
    shard_frames: int = 4096,
    extractor: str = "FakeExtractor",
    then: Callable[[RunRecord, Item], None] = lambda *_: None,
) -> RunRecord:
    """Extract clips into a store with an extractor of ``poison``; then: called after each item."""
    with make_pool(extractor) as pool, StoreWriter(store, HEADER) as writer:
        failures = FailureLog(store)
        failures.write()
        record = RunRecord(writer, failures, Inputs(store / "inputs.jsonl"), 0.0)

        def take(number: int, item: Item) -> None:
            record.take(number, item)
            then(record, item)

        job = make_job(
            store,
            names,
            n_workers,
            budgets,
            shard_frames=shard_frames,
            alone_ids=failures.worker_ids,
        )
        pool.run(job, take)
    return record


def read_ids(store: Path) -> list[str]:
    """The clips in the shards, also those that stand in several."""
    return sorted(
        clip_id
        for shard in open_store(store).shards
        for clip_id in read_shard_index(store / shard.name).columns["id"]
    )


def kill_workers() -> None:
    for pid in list_children(os.getpid()):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize(
    ("kinds", "budgets"),
    [(["crash", "exit", "gpu", "memory"], ROOMY), (["spin", "stop"], QUICK)],
    ids=["ends", "holds-up"],
)
def test_each_poison_clip_among_good_ones_is_the_only_failure(
    tmp_path: Path, kinds: Sequence[str], budgets: Budgets, n_workers: int
) -> None:
    good = [f"good-{i}" for i in range(8)]
    names = [name for pair in zip_longest(good, kinds) for name in pair if name]
    record = run_pool(tmp_path, names, n_workers, budgets)
    assert (record.n_done, record.n_failed) == (8, len(kinds))
    store = open_store(tmp_path)
    failures = store.failures.set_index("clip_id")
    assert dict(failures["reason"]) == {kind: REASONS[kind] for kind in kinds}
    assert set(failures["step"]) == {"worker"}
    assert verify_store(tmp_path) == []
    clips = {clip.clip_id: clip for clip in store.iter_clips()}
    assert sorted(clips) == good
    for clip_id, clip in clips.items():
        assert (clip.face_vector == clip_features(clip_id).face_vector).all()


def test_neighbours_of_one_kind_do_not_stop_the_run(tmp_path: Path) -> None:
    """A folder of films that one broken program made: the machine is not to blame."""
    names = [*(f"exit-{i}" for i in range(4)), "good-0", "good-1"]
    record = run_pool(tmp_path, names, 1, ROOMY)
    assert (record.n_done, record.n_failed) == (2, 4)


def test_a_broken_gpu_stops_the_run_and_marks_no_more(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="the machine or the settings are at fault, not the clip"):
        run_pool(tmp_path, [f"gpu-{i}" for i in range(40)], 1, ROOMY)
    assert len(FailureLog(tmp_path).worker_ids) == 3


def test_workers_that_die_while_they_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"3 workers in a row .* raised RuntimeError: no library"):
        run_pool(tmp_path, "abc", 1, extractor="Unloadable")


def test_a_first_worker_that_tells_nothing_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver of a GPU that never answers."""
    monkeypatch.setattr("pipeline.workers.pool._START_S", 1.0)
    with (
        make_pool("Silent") as pool,
        pytest.raises(WorkerError, match="the first worker told nothing for 1 s"),
    ):
        pool.find_machine()


def test_a_worker_that_stands_still_while_it_starts_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.workers.resources._LEAST_START_S", 1.0)
    once = tmp_path / "once"
    monkeypatch.setenv("STANDS_STILL_ONCE", str(once))
    run_pool(tmp_path, "ab", 1, QUICK, extractor="SlowStarter")
    assert once.exists()
    assert read_ids(tmp_path) == ["a", "b"]


def test_an_error_that_a_person_can_mend_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights are missing"):
        run_pool(tmp_path, "abc", 2, extractor="Unweighted")


@pytest.mark.parametrize("n_frames", [4096, 6], ids=["in one shard", "in shards of two"])
def test_workers_that_are_killed_cost_no_clip_and_no_clip_is_there_twice(
    tmp_path: Path, n_frames: int
) -> None:
    """Clips of unfinished shards are counted once, though they are extracted twice."""
    counts = []

    def kill_after_three(record: RunRecord, item: Item) -> None:
        counts.append(record.n_done)
        if record.n_done == 3 and counts.count(3) == 1:
            kill_workers()

    names = [f"good-{i}" for i in range(12)]
    record = run_pool(tmp_path, names, 2, shard_frames=n_frames, then=kill_after_three)
    assert (record.n_done, record.n_failed, record.n_frames, record.n_faces) == (12, 0, 36, 36)
    assert read_ids(tmp_path) == sorted(names)
    assert verify_store(tmp_path) == []
    assert max(counts) == 12
    assert list((tmp_path / "shards").glob(".*")) == []
    assert list_children(os.getpid()) == set()


def test_a_shard_whose_worker_dies_before_it_tells_is_taken_in(tmp_path: Path) -> None:
    names = [f"good-{i}" for i in range(6)]
    record = run_pool(tmp_path, names, 1, shard_frames=6, extractor="DiesAfterFirstShard")
    assert record.n_done == 6
    assert read_ids(tmp_path) == names
    assert verify_store(tmp_path) == []


def test_ctrl_c_waits_a_bounded_time_for_a_worker_that_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt_at_two(record: RunRecord, _: Item) -> None:
        if record.n_done == 2:
            raise KeyboardInterrupt

    limits = ClipLimits(still_s=1.0, total_s=math.inf)
    monkeypatch.setattr("pipeline.workers.pool._INTERRUPTED_LIMITS", limits)
    names, started_s = [f"good-{i}" for i in range(6)], time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_pool(
            tmp_path, names, 1, shard_frames=6, extractor="NeverFinishesAShard",
            then=interrupt_at_two,
        )  # fmt: skip
    assert time.monotonic() - started_s < 30
    assert "waited for the disk for 1 s; clips of its unfinished shard are not kept" in caplog.text
    assert list_children(os.getpid()) == set()
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_worker_that_always_dies_after_some_clips_still_gets_on(tmp_path: Path) -> None:
    """Memory that a library loses: shards become smaller until one is finished before the end."""
    names = [f"good-{i}" for i in range(10)]
    record = run_pool(tmp_path, names, 1, extractor="Mortal")
    assert (record.n_done, record.n_failed) == (10, 0)
    assert read_ids(tmp_path) == names


def test_an_error_of_a_worker_costs_no_clip_that_is_done(tmp_path: Path) -> None:
    """A GPU that gives up is no reason to lose what is in memory and on disk."""
    ended = []
    run_pool(
        tmp_path,
        ["good-0", "good-1", "good-2", "good-3", "gpu"],
        1,
        then=lambda _, item: ended.append(item) if isinstance(item, ClipEnd) else None,
    )
    done = [end.clip.clip_id for end in ended if end.failure is None]
    assert sorted(done) == [f"good-{i}" for i in range(4)]  # each once


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_ends_a_run_leaves_the_clips_that_are_done(
    tmp_path: Path, error: type[BaseException]
) -> None:
    done = []

    def stop_after_five(record: RunRecord, item: Item) -> None:
        if isinstance(item, ClipEnd):
            done.append(item.clip.clip_id)
        if len(done) == 5:
            raise error

    names = [f"good-{i}" for i in range(200)]
    with pytest.raises(error):
        run_pool(tmp_path, names, 2, then=stop_after_five)
    found = read_ids(tmp_path)
    assert set(done) <= set(found)
    assert len(found) == len(set(found)) < 200
    assert verify_store(tmp_path) == []
    assert list((tmp_path / "shards").glob(".*")) == []


def test_a_disk_that_is_full_for_one_worker_ends_the_run_and_keeps_what_is_done(
    tmp_path: Path,
) -> None:
    with pytest.raises(OSError, match="No space left on device") as raised:
        run_pool(tmp_path, [f"good-{i}" for i in range(200)], 2, extractor="FullDisk")
    assert str(raised.value.filename).endswith(".h5.partial")
    found = read_ids(tmp_path)
    assert len(found) >= 3
    assert len(found) == len(set(found)) < 200
    assert verify_store(tmp_path) == []


def test_time_to_write_a_shard_counts_against_no_clip(tmp_path: Path) -> None:
    budgets = Budgets(clip_timeout_s=1, worker_gigabytes=ROOMY.worker_gigabytes)
    record = run_pool(tmp_path, ["good-0", "good-1"], 1, budgets, extractor="SlowDisk")
    assert (record.n_done, record.n_failed) == (2, 0)


def test_what_a_worker_logs_is_logged_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_pool(tmp_path, "a", 1, extractor="Talkative")
    assert ("pipeline.decode.sampling", logging.WARNING, "clip a") in caplog.record_tuples


def test_time_in_which_this_process_stood_still_counts_against_no_clip() -> None:
    """A batch system that stops all processes of a job for an hour, a disk that makes it wait."""
    now_s = time.monotonic()
    with WorkerPool("cpu") as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now_s + 3600)
        pool.count_time()
        assert pool.clock_s <= 2


def test_workers_end_within_two_seconds_of_their_parent(tmp_path: Path) -> None:
    """Also one that is stopped; its finished shards are taken in by the next run."""
    code = """
import sys
from pathlib import Path
from tests.pipeline.workers.test_pool import run_pool
names = ["a", "b", "stop", "spin", *"cdefgh"]
run_pool(Path(sys.argv[1]), names, 2, shard_frames=1, then=lambda _, item: print(item, flush=True))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        while b"ShardFinished" not in parent.stdout.readline():
            pass
        workers = list_children(parent.pid)
        assert workers
        parent.kill()
    waited_until = time.monotonic() + 2
    while workers & read_parents().keys():
        assert time.monotonic() < waited_until
    (tmp_path / "store.json").unlink()
    with StoreWriter(tmp_path, HEADER) as writer:
        done = set(writer.open().clips["clip_id"])
    assert done
    assert list((tmp_path / "shards").glob(".*")) == []
    assert read_ids(tmp_path) == sorted(done)
