"""Runs clips through stage one in this process, or in several that ask for clip after clip.

::

    this process  <--"next?"--  processes        each has a pipe of its own, both ways
                  --a clip-->
                  <--parts of clips, their ends, what is logged--
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Lock
from typing import Any, cast

import torch

from features.contracts import Clip
from features.engine import choose_device
from features.errors import WorkerError
from features.limits import find_core_limit, find_free_bytes
from pipeline.work import Item, Timing, Work, iter_work

_log = logging.getLogger(__name__)

_LOGGERS = ("features", "pipeline")
_WORKER_CLIPS = 8
"""A process needs some seconds to start: fewer clips are not worth one."""
_WORKER_BYTES = 2 << 30
"""What a process takes at most on frames of 1920x1080, with few threads."""


def iter_lanes(
    work: Work, clips: Sequence[Clip], n_workers: int | None
) -> Generator[tuple[int, Item]]:
    """Yield what the processes give, each item with its process's number.

    Of one number come word that it is ready, the parts of a clip, then its end, clip after clip, at
    last the timing. Closing the generator stops everything.

    Args:
        work: How, the device as the user named it; threads and decoders are chosen here.
        clips: Which, in order.
        n_workers: Processes; None: as many as pay, see ``count_workers``. One is this process.

    Raises:
        ConfigError: no such device. WorkerError: a process died.
        WeightsError: a network's weights are missing or not the expected ones.
    """
    device = choose_device(work.device)
    if n_workers is None:
        n_workers = count_workers(len(clips), device)
    works = plan_works(work, len(clips), device, min(n_workers, len(clips)))
    if len(works) > 1:
        yield from _iter_processes(works, clips)
        return
    with contextlib.closing(iter_work(works[0], clips)) as items:
        for item in items:
            yield 0, item


def count_workers(n_clips: int, device: torch.device) -> int:
    """Processes that pay: on a CPU one a core, as far as clips and free memory go, else one.

    Threads of one process wait for each other's Python: on two cores two processes take a fifth
    less time. Where the system does not tell how much memory is free, it is one.
    """
    if device.type == "cuda":
        return 1
    n_fit = (find_free_bytes() or 0) // _WORKER_BYTES
    return max(1, min(_count_cores(), n_clips // _WORKER_CLIPS, n_fit))


def plan_works(work: Work, n_clips: int, device: torch.device, n_workers: int) -> list[Work]:
    """What each process does; with ``cuda`` (no number) each takes the next card."""
    n_cards = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 0
    n_cores = _count_cores()
    if device.type == "cuda":
        n_threads = 2  # while one waits for the card, the other does what is left to the CPU
    elif 2 * n_workers > n_cores:
        n_threads = 1
    else:  # threads that share Python wait for it at times, so there is one more of them
        n_threads = n_cores // n_workers + 1
    # Clips that are decoded at once are taken: no process may take more than its share.
    n_decoders = min(4 if device.type == "cuda" else n_threads // 2, n_clips // 2 // n_workers)
    return [
        replace(
            work,
            device=f"cuda:{i % n_cards}" if n_cards else str(device),
            n_threads=n_threads,
            n_decoders=max(1, n_decoders),
        )
        for i in range(n_workers)
    ]


def _count_cores() -> int:
    """Cores that torch means to use (OMP_NUM_THREADS limits them), as far as a container allows."""
    limit = find_core_limit()
    return torch.get_num_threads() if limit is None else min(torch.get_num_threads(), limit)


class _Next:
    """Asks for a clip."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """A process, seen from here."""

    number: int
    process: SpawnProcess


def _iter_processes(works: Sequence[Work], clips: Sequence[Clip]) -> Generator[tuple[int, Item]]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    levels = {name: logging.getLogger(name).getEffectiveLevel() for name in _LOGGERS}
    processes: list[SpawnProcess] = []
    running: dict[Connection, _Worker] = {}
    left = iter(clips)
    try:
        with _block_signals():
            for number, work in enumerate(works):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(work, theirs, levels), daemon=True)
                process.start()
                theirs.close()  # so that the end of the process is the end of the pipe
                processes.append(process)
                running[ours] = _Worker(number=number, process=process)
        while running:
            for ready in wait(list(running)):
                yield from _receive(cast(Connection, ready), running, left)
    finally:
        for process in processes:
            process.kill()  # it has nothing to lose
        for process in processes:
            process.join()


def _receive(
    pipe: Connection, running: dict[Connection, _Worker], left: Iterator[Clip]
) -> Iterator[tuple[int, Item]]:
    """Take one item from a process, or give it a clip of those that are left."""
    worker = running[pipe]
    try:
        item = pipe.recv()
        if isinstance(item, _Next):
            pipe.send(next(left, None))
    except (EOFError, OSError):  # OSError: it died in the middle of an item
        worker.process.join(5)
        raise WorkerError(_describe_death(worker)) from None
    if isinstance(item, BaseException):
        raise item
    if isinstance(item, logging.LogRecord):
        logging.getLogger(item.name).handle(item)
    elif not isinstance(item, _Next):
        yield worker.number, item
        if isinstance(item, Timing):
            del running[pipe]


def _describe_death(worker: _Worker) -> str:
    status = worker.process.exitcode
    if status is not None and status < 0:
        how = f"by signal {-status} (9: often for want of memory; 11: a decoder crashed)"
    else:
        how = f"with status {status} (the reason stands above)"
    return (
        f"worker {worker.number} ended {how}. What was done is kept; run the same again, with "
        "--workers 1 if memory was short."
    )


@contextlib.contextmanager
def _block_signals() -> Iterator[None]:
    """Processes started within never see Ctrl-C or SIGTERM: this one ends them."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # its start, which the first process needs, unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Outbox:
    """The one way from a process to its parent, for items and for what its threads log."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = Lock()

    def put_nowait(self, item: object) -> None:
        """Send an item; the name is what a ``QueueHandler`` calls."""
        with self._lock:
            self._pipe.send(item)


def _work(work: Work, pipe: Connection, levels: Mapping[str, int]) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows has no signals to block
    outbox = _Outbox(pipe)
    logging.getLogger().addHandler(QueueHandler(cast(Any, outbox)))  # it only puts
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    with contextlib.suppress(OSError):  # the parent is gone
        try:
            for item in iter_work(work, _ask_for_clips(pipe, outbox)):
                outbox.put_nowait(item)
        except Exception as error:  # raised again by the parent
            _log.debug("in a process", exc_info=True)
            outbox.put_nowait(error)


def _ask_for_clips(pipe: Connection, outbox: _Outbox) -> Iterator[Clip]:
    """Clips, as long as there are any; nothing else comes from the parent."""
    while True:
        outbox.put_nowait(_Next())
        clip = pipe.recv()
        if clip is None:
            return
        yield clip
