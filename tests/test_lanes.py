"""Clips are shared between as many processes as pay."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from features.contracts import Clip
from features.errors import WorkerError
from features.weights import SHIPPED_FACE_WEIGHTS
from pipeline.config import ExtractConfig
from pipeline.lanes import _Outbox, _receive, _Worker, count_workers, iter_lanes, plan_works
from pipeline.prefetch import Prefetcher
from pipeline.work import Work

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WORK = Work(
    config=replace(ExtractConfig(), precision="float32"),
    face_weights=SHIPPED_FACE_WEIGHTS,
    inputs=Path("inputs.json"),
    device="cpu",
)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)


@pytest.fixture
def cores(many_cores: None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_clips", "free_gib", "expected"),
    [(1000, None, 1), (1000, 64, 4), (31, 64, 3), (15, 64, 1), (0, 64, 1), (1000, 5, 2)],
)
def test_a_core_a_process_as_far_as_clips_and_memory_go(
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
    n_clips: int,
    free_gib: int | None,
    expected: int,
) -> None:
    free = None if free_gib is None else free_gib << 30
    monkeypatch.setattr("pipeline.lanes.find_free_bytes", lambda: free)
    assert count_workers(n_clips, CPU) == expected
    assert count_workers(n_clips, CUDA) == 1


@pytest.mark.parametrize(
    ("n_workers", "n_threads", "n_decoders"),
    [(1, 5, 2), (2, 3, 1), (3, 1, 1), (4, 1, 1), (9, 1, 1)],
)
def test_threads_fill_the_cores_but_not_more(
    cores: int, n_workers: int, n_threads: int, n_decoders: int
) -> None:
    """Where threads share a process there is one more of them, as they share its Python."""
    works = plan_works(WORK, 20, CPU, n_workers)
    assert [w.n_threads for w in works] == [n_threads] * n_workers
    assert [w.n_decoders for w in works] == [n_decoders] * n_workers


def test_no_process_takes_more_than_its_share(
    many_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    works = plan_works(WORK, 16, CPU, 2)
    with Prefetcher(
        taken := iter(make_clips(16)),
        str,
        lambda _: iter(()),
        n_threads=works[0].n_decoders,
        max_bytes=0,
    ):
        assert len(list(taken)) == 8


def test_a_process_that_dies_while_starting_is_said(tmp_path: Path) -> None:
    """Also where the manifest is longer than a pipe holds."""

    def kill_the_first() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    with pytest.raises(WorkerError, match=r"ended by signal 9 .* run the same again"):
        for _ in iter_lanes(WORK, make_clips(5000), 2):
            pass
    killer.join()
    assert not multiprocessing.active_children()


def test_what_a_process_logs_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = multiprocessing.Pipe()
    worker = _Worker(number=0, process=multiprocessing.get_context("spawn").Process())
    handler = QueueHandler(cast(Any, _Outbox(theirs)))
    handler.handle(logging.LogRecord("pipeline.decode", 30, "x.py", 1, "clip %s", ("a",), None))
    assert list(_receive(ours, {ours: worker}, iter(()))) == []
    assert caplog.record_tuples == [("pipeline.decode", logging.WARNING, "clip a")]


def make_clips(n_clips: int) -> list[Clip]:
    return [
        Clip(clip_id=str(i), path=Path(f"{i}.mp4"), label="", split="test", line=i)
        for i in range(n_clips)
    ]
