"""Runs clips through workers; one that dies, stands still or takes too much memory is replaced.

::

    assignments (who holds what) <-> this, one thread that never waits for one worker
                                       ^ a channel each
                                     workers

What a worker had finished is kept. A clip that ends its worker is tried once more, alone in a new
one; then it is a failure like any other, and its step is ``worker``.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from features.contracts import Clip, ClipFeatures
from features.errors import WorkerError
from features.store.index import WORKER_STEP, Failure
from pipeline.workers.assignments import Assignments
from pipeline.workers.budgets import Budgets, ClipLimits
from pipeline.workers.messages import (
    Begun,
    ClipEnd,
    Death,
    Item,
    Loaded,
    Lost,
    Machine,
    NextClip,
    Progressed,
    Timing,
    Work,
)
from pipeline.workers.plan import count_workers, plan_works
from pipeline.workers.process import WorkerProcess

_log = logging.getLogger(__name__)

_TIME = "time"
"""The kind of death of a worker that took too long."""
_TICK_S = 0.1
"""How often time and memory are looked at."""
_LONGEST_TICK_S = 2.0
"""What counts of a longer one: then it was this process that stood still, not a worker."""
_START_S = 600.0
"""Until the first worker tells what there is."""


@dataclass(kw_only=True)
class _Worker:
    """A worker at work."""

    number: int
    process: WorkerProcess
    is_idle: bool = False
    """It has asked for a clip and got no answer yet."""
    read_id: str | None = None
    """The clip that it reads; None where it holds none."""
    limits: ClipLimits | None = None
    """Of that clip; None: those of a worker that holds none."""
    began_s: float
    """When it began to read it, by the pool's clock."""
    progressed_s: float
    """When it last made progress."""


class WorkerPool:
    """The workers of a run. Use as a context manager: on the way out all are ended."""

    def __init__(
        self, device: str, extractor: str = "pipeline.workers.extractor:Extractor"
    ) -> None:
        """No worker is started yet.

        Args:
            device: As the user named it.
            extractor: The class that works in them.
        """
        self._device = device
        self._extractor = extractor
        self._machine: Machine | None = None
        self._workers: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()
        self.clock_s = 0.0
        """Seconds that this process was awake: what counts against a worker."""
        self._looked_s = time.monotonic()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            worker.process.wait()
        self._workers.clear()
        self._selector.close()

    def find_machine(self) -> Machine:
        """What torch sees, told by the first worker, which is started for it.

        Raises:
            ConfigError: no such device. WorkerError: the worker ended instead, or stands still.
        """
        if self._machine is None:
            process = self._start(0).process
            began_s = self.clock_s
            try:
                while self._machine is None:
                    if self._selector.select(_TICK_S):
                        for message in process.channel.receive_arrived():
                            self._take_answer(message)
                    self.count_time()
                    if self.clock_s - began_s > _START_S:
                        raise WorkerError(
                            f"the first worker told nothing for {_START_S:.0f} s: "
                            "loading torch, or looking for a GPU, does not end. --device cpu looks "
                            "for none."
                        )
            except (EOFError, OSError):
                raise WorkerError(f"the first worker {process.describe_end().reason}") from None
        return self._machine

    def iter_items(
        self,
        work: Work,
        clips: Sequence[Clip],
        n_workers: int | None,
        budgets: Budgets,
        alone_ids: Collection[str] = (),
    ) -> Generator[tuple[int, Item]]:
        """Yield what the workers give, each item with its worker's number. Once for each pool.

        Of one number come word that it is ready, the parts of a clip, then its end, clip after
        clip, and timings. ``Lost`` ends a clip that will come again.

        Args:
            work: How; device, threads and decoders are chosen here.
            clips: Which, about in order.
            n_workers: None: as many as pay, see ``count_workers``.
            budgets: Of each clip and worker.
            alone_ids: Clips that ended their worker in an earlier run.

        Raises:
            ConfigError: no such device. WorkerError: workers die that clips are not to blame for.
            WeightsError: a network's weights are missing or not the expected ones.
        """
        machine = self.find_machine()
        n_workers = min(n_workers or count_workers(len(clips), machine), len(clips))
        works = plan_works(work, len(clips), machine, n_workers)
        run = _Run(
            assignments=Assignments(clips, alone_ids),
            works=works,
            budgets=budgets,
            worker_bytes=budgets.find_worker_bytes(n_workers),
        )
        for number in range(n_workers):
            worker = self._workers.get(number) or self._start(number)
            _send(worker, works[number])
        self._looked_s = time.monotonic()
        while run.assignments.are_waiting or not all(w.is_idle for w in self._workers.values()):
            for key, _ in self._selector.select(_TICK_S):
                yield from self._receive(key.data, run)
            self.count_time()
            for worker in list(self._workers.values()):
                death = self._find_excess(worker, run)
                if death is not None:
                    yield from self._replace(worker, death, run)

    def _start(self, number: int) -> _Worker:
        process = WorkerProcess(self._device, self._extractor)
        worker = _Worker(
            number=number,
            process=process,
            began_s=self.clock_s,
            progressed_s=self.clock_s,
        )
        self._workers[number] = worker
        self._selector.register(process.channel, selectors.EVENT_READ, worker)
        return worker

    def _receive(self, worker: _Worker, run: _Run) -> Iterator[tuple[int, Item]]:
        """Take what has arrived from a worker."""
        if self._workers.get(worker.number) is not worker:
            return  # it was ended in this very round
        try:
            messages = worker.process.channel.receive_arrived()
        except (EOFError, OSError):
            yield from self._replace(worker, worker.process.describe_end(), run)
            return
        for message in messages:
            if isinstance(message, Death):
                yield from self._replace(worker, message, run)
                return
            yield from self._take(worker, message, run)

    def _take(self, worker: _Worker, message: Any, run: _Run) -> Iterator[tuple[int, Item]]:
        if isinstance(message, NextClip):
            worker.is_idle = True
            self._answer(worker, run)
            return
        if isinstance(message, Begun):
            task = run.assignments.find(worker.number, message.clip_id)
            if task is not None:
                worker.read_id = message.clip_id
                worker.limits = run.budgets.find_clip_limits(task.clip.path)
            worker.began_s = worker.progressed_s = self.clock_s
        elif isinstance(message, ClipFeatures | ClipEnd):
            worker.progressed_s = self.clock_s
            clip_id = message.clip.clip_id if isinstance(message, ClipEnd) else message.clip_id
            task = run.assignments.find(worker.number, clip_id)
            if isinstance(message, ClipEnd):
                run.assignments.end(worker.number, failed=message.failure is not None)
                if not run.assignments.holds_any(worker.number):
                    worker.read_id = worker.limits = None
            if task is not None and not task.was_done:
                yield worker.number, message
        elif isinstance(message, Loaded | Timing):
            worker.progressed_s = self.clock_s
            yield worker.number, message
        elif isinstance(message, Progressed):
            worker.progressed_s = self.clock_s
        else:
            self._take_answer(message)

    def _take_answer(self, message: Any) -> None:
        """What any worker may say before it is ready, and what is logged."""
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, Machine):
            self._machine = message
        elif isinstance(message, Death):
            raise WorkerError(f"the first worker {message.reason}")
        elif isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)

    def _answer(self, worker: _Worker, run: _Run) -> None:
        """Give a worker a clip, or word to end those it has; else it stays idle."""
        clip = run.assignments.give(worker.number)
        if clip is None and not run.assignments.holds_any(worker.number):
            return
        worker.is_idle = False
        worker.progressed_s = self.clock_s
        _send(worker, clip)

    def _replace(self, worker: _Worker, death: Death, run: _Run) -> Iterator[tuple[int, Item]]:
        """End a worker; a clip that it took down is given up or tried again."""
        self._selector.unregister(worker.process.channel)
        worker.process.kill()
        worker.process.wait()
        del self._workers[worker.number]
        yield worker.number, Lost()
        suspect_id = worker.read_id if death.kind == _TIME else None
        for clip in run.assignments.lose(worker.number, death, suspect_id):
            reason = f"its worker {death.reason}".replace(str(clip.path), clip.path.name)
            failure = Failure(
                clip_id=clip.clip_id, path=str(clip.path), step=WORKER_STEP, reason=reason
            )
            yield worker.number, ClipEnd(clip=clip, failure=failure)
        if run.assignments.are_waiting:
            _send(self._start(worker.number), run.works[worker.number])
            for other in self._workers.values():
                if other.is_idle:
                    self._answer(other, run)

    def _find_excess(self, worker: _Worker, run: _Run) -> Death | None:
        """Whether a worker takes more time or memory than it may."""
        limit = run.worker_bytes
        if limit is not None and worker.process.read_used_bytes() > limit:
            gigabytes = f"{limit / 1e9:.2g} GB"
            return Death(
                kind="memory", reason=f"took more memory than {gigabytes} (--worker-memory)"
            )
        if worker.is_idle:
            return None
        limits = worker.limits or run.budgets.idle_limits
        if self.clock_s - worker.progressed_s > limits.still_s:
            reason = f"made no progress for {limits.still_s:.0f} s (--clip-timeout)"
        elif self.clock_s - worker.began_s > limits.total_s:
            reason = f"was not done with it after {limits.total_s:.0f} s (--clip-timeout)"
        else:
            return None
        return Death(kind=_TIME, reason=reason)

    def count_time(self) -> None:
        """Bring the clock up to date."""
        now_s = time.monotonic()
        self.clock_s += min(now_s - self._looked_s, _LONGEST_TICK_S)
        self._looked_s = now_s


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one call of ``iter_items`` is about."""

    assignments: Assignments
    works: Sequence[Work]
    """Of each worker, by its number."""
    budgets: Budgets
    worker_bytes: int | None


def _send(worker: _Worker, message: object) -> None:
    """To one that has died nothing is sent; its channel tells."""
    try:
        worker.process.channel.send(message)
    except OSError:
        _log.debug("worker %d is gone", worker.number)
