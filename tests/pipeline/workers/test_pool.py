"""One clip that crashes its worker, stops it or never ends costs itself, and no other clip."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest

from features.contracts import MEC_CLASSES, Clip
from features.errors import WeightsError, WorkerError
from features.store.reader import open_store, verify_store
from features.store.shard_format import ShardHeader
from features.store.writer import StoreWriter
from pipeline.config import ExtractConfig
from pipeline.failures import FailureLog
from pipeline.inputs import Inputs
from pipeline.intake import Intake
from pipeline.workers.budgets import Budgets
from pipeline.workers.messages import ClipEnd, Work
from pipeline.workers.pool import WorkerPool
from tests.builders import clip_features
from tests.pipeline.processes import list_children, read_parents

ROOT = Path(__file__).parents[3]
WORK = Work(config=ExtractConfig(), face_weights=Path(), inputs=Path("inputs.json"), device="cpu")
ROOMY = Budgets(clip_timeout_s=60, worker_bytes=400_000_000)
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


def run_pool(store: Path, names: Sequence[str], n_workers: int, budgets: Budgets) -> Intake:
    """Extract clips with ``FakeExtractor`` into a store."""
    header = ShardHeader(fingerprint="x", classes=MEC_CLASSES, config={}, weights={}, versions={})
    with (
        WorkerPool("cpu", extractor="tests.pipeline.workers.poison:FakeExtractor") as pool,
        StoreWriter(store, header) as writer,
    ):
        failures = FailureLog(store)
        intake = Intake(writer, failures, Inputs(store / "inputs.json"), 0.0)
        known = failures.worker_ids
        for number, item in pool.iter_items(WORK, make_clips(names), n_workers, budgets, known):
            intake.take(number, item)
        failures.write()
    return intake


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
    intake = run_pool(tmp_path, names, n_workers, budgets)
    assert (intake.n_done, intake.n_failed) == (8, len(kinds))
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
    intake = run_pool(tmp_path, names, 1, ROOMY)
    assert (intake.n_done, intake.n_failed) == (2, 4)


def test_a_broken_gpu_stops_the_run_and_marks_no_more(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="the machine or the settings are at fault, not the clip"):
        run_pool(tmp_path, [f"gpu-{i}" for i in range(40)], 1, ROOMY)
    assert len(FailureLog(tmp_path).worker_ids) == 3


def test_workers_that_die_while_they_start_end_the_run() -> None:
    with (
        WorkerPool("cpu", extractor="tests.pipeline.workers.poison:Unloadable") as pool,
        pytest.raises(WorkerError, match=r"3 workers in a row .* raised RuntimeError: no library"),
    ):
        list(pool.iter_items(WORK, make_clips("abc"), 1, ROOMY))


def test_a_first_worker_that_tells_nothing_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver of a GPU that never answers."""
    monkeypatch.setattr("pipeline.workers.pool._START_S", 1.0)
    with (
        WorkerPool("cpu", extractor="tests.pipeline.workers.poison:Silent") as pool,
        pytest.raises(WorkerError, match="the first worker told nothing for 1 s"),
    ):
        pool.find_machine()


def test_a_worker_that_stands_still_while_it_starts_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.workers.budgets._LEAST_START_S", 1.0)
    once = tmp_path / "once"
    monkeypatch.setenv("STANDS_STILL_ONCE", str(once))
    with WorkerPool("cpu", extractor="tests.pipeline.workers.poison:SlowStarter") as pool:
        items = pool.iter_items(WORK, make_clips("ab"), 1, QUICK)
        ended = [item.clip.clip_id for _, item in items if isinstance(item, ClipEnd)]
    assert once.exists()
    assert sorted(ended) == ["a", "b"]


def test_an_error_that_a_person_can_mend_is_raised_here() -> None:
    with (
        WorkerPool("cpu", extractor="tests.pipeline.workers.poison:Unweighted") as pool,
        pytest.raises(WeightsError, match="weights are missing"),
    ):
        list(pool.iter_items(WORK, make_clips("abc"), 2, ROOMY))


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost() -> None:
    ended = []
    with WorkerPool("cpu", extractor="tests.pipeline.workers.poison:FakeExtractor") as pool:
        for _, item in pool.iter_items(WORK, make_clips("abcdefgh"), 2, ROOMY):
            if isinstance(item, ClipEnd):
                ended.append(item.clip.clip_id)
                if len(ended) == 1:
                    for pid in list_children(os.getpid()):
                        os.kill(pid, signal.SIGKILL)
    assert sorted(ended) == list("abcdefgh")
    assert list_children(os.getpid()) == set()


def test_what_a_worker_logs_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool("cpu", extractor="tests.pipeline.workers.poison:Talkative") as pool:
        list(pool.iter_items(WORK, make_clips("a"), 1, ROOMY))
    assert ("pipeline.decode.sampling", logging.WARNING, "clip a") in caplog.record_tuples


def test_time_in_which_this_process_stood_still_counts_against_no_clip() -> None:
    """A batch system that stops all processes of a job for an hour, a disk that makes it wait."""
    now_s = time.monotonic()
    with WorkerPool("cpu") as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now_s + 3600)
        pool.count_time()
        assert pool.clock_s <= 2


def test_workers_end_within_two_seconds_of_their_parent() -> None:
    """Also one that is stopped, whose reading of the channel would not tell it."""
    code = """
import sys
from tests.pipeline.workers.test_pool import ROOMY, WORK, make_clips
from pipeline.workers.pool import WorkerPool
with WorkerPool("cpu", extractor="tests.pipeline.workers.poison:FakeExtractor") as pool:
    for number, item in pool.iter_items(WORK, make_clips(["a", "stop", "spin", "b"]), 2, ROOMY):
        print(item, flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        workers = list_children(parent.pid)
        assert workers
        parent.kill()
    waited_until = time.monotonic() + 2
    while workers & read_parents().keys():
        assert time.monotonic() < waited_until
