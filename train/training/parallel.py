"""Runs independent trainings on the cores of one machine, a Python thread each.

Two threads that each work on a small matrix of their own do twice the work of one; two threads that
share every small matrix wait for each other more than they work, badly so on a busy machine. torch
lets go of the interpreter while it computes, so Python's threads serve, and features are shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event

import torch

from features.machine import bound_cores

MOST_WORKERS = 8
"""Beyond, threads mostly wait for the interpreter."""


def count_workers(device: str) -> int:
    """How many trainings to run at once: one a core, but one on a GPU, which they would share.

    Cores are those that torch means to use: OMP_NUM_THREADS limits them, and so do containers and
    batch systems.
    """
    return (
        min(bound_cores(torch.get_num_threads()), MOST_WORKERS) if device.startswith("cpu") else 1
    )


def split_seeds(seeds: Sequence[int], n_heads: int, n_workers: int) -> list[list[int]]:
    """Cut the seeds of a head into groups, as few as keep every worker busy with some head."""
    n_groups = min(len(seeds), math.ceil(n_workers / n_heads))
    size = math.ceil(len(seeds) / n_groups)
    return [list(seeds[begin : begin + size]) for begin in range(0, len(seeds), size)]


def run_jobs(jobs: Sequence[Callable[[Event], None]], n_workers: int) -> None:
    """Run jobs side by side and wait for all.

    A job is given an event and ends early, by any exception, once it is set. When a job fails, or
    Ctrl-C arrives, it is set, the jobs not begun are dropped, and the first error is raised.
    """
    stop = Event()
    n_workers = min(n_workers, len(jobs))
    with _torch_threads(bound_cores(torch.get_num_threads()) // n_workers):
        pool = ThreadPoolExecutor(n_workers)
        try:
            futures = [pool.submit(job, stop) for job in jobs]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in sorted(done, key=futures.index):
                future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _torch_threads(n_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(n_threads, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
