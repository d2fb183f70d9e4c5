"""Clips are shared between as many processes as pay."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from features.contracts import Clip
from features.weights import SHIPPED_FACE_WEIGHTS
from pipeline.config import ExtractConfig
from pipeline.work import Work, _Outbox, _receive, _take_clips, count_workers, prepare_work

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cores() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_clips", "free_gib", "expected"),
    [(1000, None, 4), (1000, 64, 4), (31, 64, 3), (15, 64, 1), (0, 64, 1), (1000, 5, 2)],
)
def test_a_core_a_process_as_far_as_clips_and_memory_go(
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
    n_clips: int,
    free_gib: int | None,
    expected: int,
) -> None:
    free = None if free_gib is None else free_gib << 30
    monkeypatch.setattr("pipeline.work.find_free_bytes", lambda: free)
    assert count_workers(n_clips, CPU) == expected
    assert count_workers(n_clips, CUDA) == 1


@pytest.mark.parametrize(("n_workers", "n_threads"), [(1, 5), (2, 3), (3, 3), (4, 1), (9, 1)])
def test_no_core_is_without_a_thread(cores: int, n_workers: int, n_threads: int) -> None:
    """Threads that share a process are one more than their cores, as they share its Python."""
    work = Work(
        clips=make_clips(20),
        config=ExtractConfig(),
        face_weights=SHIPPED_FACE_WEIGHTS,
        inputs=Path("inputs.json"),
        device="cpu",
    )
    works = prepare_work(work, CPU, n_workers)
    assert [w.n_threads for w in works] == [n_threads] * n_workers
    assert all(w.clips == work.clips for w in works)


def test_every_clip_is_taken_once_and_in_order() -> None:
    clips = make_clips(500)
    taken = multiprocessing.get_context("spawn").Value("q", 0)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: list(_take_clips(clips, taken)), range(4)))
    numbers = [[clip.line for clip in part] for part in parts]
    assert sorted(n for part in numbers for n in part) == list(range(500))
    assert all(part == sorted(part) for part in numbers)


def test_what_a_process_logs_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    theirs = QueueHandler(cast(Any, _Outbox(sender)))
    theirs.handle(logging.LogRecord("pipeline.decode", 30, "x.py", 1, "clip %s", ("a",), None))
    assert list(_receive(receiver, {receiver: 0})) == []
    assert caplog.record_tuples == [("pipeline.decode", logging.WARNING, "clip a")]


def make_clips(n_clips: int) -> list[Clip]:
    return [
        Clip(clip_id=str(i), path=Path(f"{i}.mp4"), label="", split="test", line=i)
        for i in range(n_clips)
    ]
