"""Clips are shared between as many workers as pay, within limits that grow with the clips."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from features.errors import ConfigError
from pipeline.config import ExtractConfig
from pipeline.workers.messages import Machine, Work, describe_fault, is_fault
from pipeline.workers.prefetch import Prefetcher
from pipeline.workers.resources import Budgets, count_workers, plan_works
from tests.pipeline.workers.test_pool import make_clips

CPU = Machine(device="cpu", n_gpus=0, n_cores=4, precision="float32")
CUDA = Machine(device="cuda", n_gpus=3, n_cores=4, precision="float32")
WORK = Work(config=ExtractConfig(), face_weights=Path(), inputs=Path(), device="auto")


@pytest.fixture(autouse=True)
def no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.machine.find_core_limit", lambda: None)


@pytest.mark.parametrize(
    ("n_clips", "free_gib", "expected"),
    [(1000, None, 1), (1000, 64, 4), (31, 64, 3), (15, 64, 1), (0, 64, 1), (1000, 5, 2)],
)
def test_a_core_a_process_as_far_as_clips_and_memory_go(
    monkeypatch: pytest.MonkeyPatch, n_clips: int, free_gib: int | None, expected: int
) -> None:
    free = None if free_gib is None else free_gib << 30
    monkeypatch.setattr("pipeline.workers.resources.find_free_bytes", lambda: free)
    assert count_workers(n_clips, CPU) == expected
    assert count_workers(n_clips, CUDA) == 1


@pytest.mark.parametrize(
    ("n_workers", "n_threads", "n_decoders"),
    [(1, 5, 2), (2, 3, 1), (3, 1, 1), (4, 1, 1), (9, 1, 1)],
)
def test_threads_fill_the_cores_but_not_more(
    n_workers: int, n_threads: int, n_decoders: int
) -> None:
    """Where threads share a process there is one more of them, as they share its Python."""
    works = plan_works(WORK, 20, CPU, n_workers)
    assert [w.n_threads for w in works] == [n_threads] * n_workers
    assert [w.n_decoders for w in works] == [n_decoders] * n_workers


@pytest.mark.parametrize(
    ("device", "n_gpus", "expected"),
    [
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ("cuda:1", 1, ["cuda:1"] * 4),
        ("cpu", 0, ["cpu"] * 4),
    ],
)
def test_workers_share_the_gpus_unless_one_is_named(
    device: str, n_gpus: int, expected: list[str]
) -> None:
    machine = replace(CUDA, device=device, n_gpus=n_gpus)
    assert [w.device for w in plan_works(WORK, 20, machine, 4)] == expected


def test_no_process_takes_more_than_its_share() -> None:
    works = plan_works(WORK, 16, replace(CPU, n_cores=64), 2)
    taken = iter(make_clips("abcdefghijklmnop"))
    n_threads = works[0].n_decoders
    with closing(Prefetcher(taken, str, lambda _: iter(()), n_threads=n_threads, max_bytes=0)):
        assert len(list(taken)) == 8


@pytest.mark.parametrize(("n_bytes", "still_s", "total_s"), [(0, 60, 120), (2_500_000, 62.5, 300)])
def test_a_clip_may_take_longer_the_longer_its_file_is(
    tmp_path: Path, n_bytes: int, still_s: float, total_s: float
) -> None:
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(n_bytes)
    limits = Budgets(clip_timeout_s=60).find_clip_limits(tmp_path / "a.mp4")
    assert (limits.still_s, limits.total_s) == (still_s, total_s)


@pytest.mark.parametrize("name", ["fifo", "missing", "/dev/zero"])
def test_what_is_no_file_has_no_length(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert Budgets(clip_timeout_s=60).find_clip_limits(tmp_path / name).total_s == 120


def test_workers_share_nine_tenths_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workers.resources.find_free_bytes", lambda: 100 << 30)
    assert Budgets().find_worker_bytes(3) == 30 << 30
    assert Budgets().find_worker_bytes(90) == 2 << 30
    assert Budgets(worker_gigabytes=1.5).find_worker_bytes(3) == 1_500_000_000
    monkeypatch.setattr("pipeline.workers.resources.find_free_bytes", lambda: None)
    assert Budgets().find_worker_bytes(3) is None


@pytest.mark.parametrize("amount", [0, -1, float("nan"), float("inf")])
def test_budgets_that_are_none_are_refused(amount: float) -> None:
    with pytest.raises(ConfigError, match="--clip-timeout"):
        Budgets(clip_timeout_s=amount)
    with pytest.raises(ConfigError, match="--worker-memory"):
        Budgets(worker_gigabytes=amount)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asyn"),
         "met a GPU error: CUDA error: device-side assert triggered"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
         "met a GPU error: CUDA out of memory. Tried to allocate 2 GiB"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
         "met a GPU error: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        (MemoryError(), "had no memory left"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
         "had no memory left: DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)  # fmt: skip
def test_faults_of_the_gpu_and_of_memory_end_the_worker(error: Exception, reason: str) -> None:
    assert is_fault(error)
    assert describe_fault(error).reason == reason


@pytest.mark.parametrize(
    "error", [ValueError("CUDA"), RuntimeError("bad shape"), OSError(5, "I/O")]
)
def test_faults_of_a_clip_do_not(error: Exception) -> None:
    assert not is_fault(error)
