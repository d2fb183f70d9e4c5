"""Runs clips through workers; one that dies, stands still or takes too much memory is replaced.

::

    assignments (who holds what) <-> this, one thread that never waits for one worker
                                       ^ a channel each
                                     workers

What a worker had in finished shards is kept; the clips of its unfinished one are extracted again. A
clip that ends its worker is tried once more, alone in a new one; then it is a failure like any
other, and its step is ``worker``. A shard of a second pass is then tried without that clip of it.
"""

from __future__ import annotations

import logging
import math
import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from features.disk import uninterrupted
from features.errors import UserError, WorkerError
from features.store.index import describe_shard
from pipeline.workers import messages
from pipeline.workers.assignments import Assignments
from pipeline.workers.process import TIME, Worker, WorkerProcess
from pipeline.workers.resources import ClipLimits, Job, count_workers, plan_works

_log = logging.getLogger(__name__)

_TICK_S = 0.1
"""How often time and memory are looked at."""
_LONGEST_TICK_S = 2.0
"""What counts of a longer one: then it was this process that stood still, not a worker."""
_INTERRUPTED_LIMITS = ClipLimits(still_s=60.0, total_s=math.inf)
"""For a worker to write its last shard after Ctrl-C or an error."""
_START_S = 600.0
"""Until the first worker tells what there is."""


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
        self._machine: messages.Machine | None = None
        self._workers: dict[int, Worker] = {}
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
            worker.process.channel.close()
        self._workers.clear()
        self._selector.close()

    def find_machine(self) -> messages.Machine:
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

    def run(self, job: Job, record: Callable[[int, messages.Item], None]) -> None:
        """Extract clips into shards; all workers have ended then. Once for each pool.

        Whatever ends it, an error or Ctrl-C, workers first finish the shards that they have at
        hand, where they can.

        Args:
            job: What is to be done.
            record: Told a worker's number, and that it is ready, a clip has ended, a shard with
                those that ended is finished, or it is lost with its unfinished shard.

        Raises:
            ConfigError: no such device. WorkerError: workers die that clips are not to blame for.
            WeightsError: a network's weights are missing or not the expected ones.
            OSError: the store cannot be written (a full disk).
        """
        machine = self.find_machine()
        n_pay = job.n_workers or count_workers(len(job.clips), machine, job.work.network_bytes)
        n_workers = min(n_pay, len(job.clips))
        run = _Run(
            job=job,
            record=record,
            assignments=Assignments(job.clips, job.alone_ids),
            works=plan_works(job.work, len(job.clips), machine, n_workers),
            worker_bytes=job.budgets.find_worker_bytes(n_workers),
        )
        try:
            for number in range(n_workers):
                run.give_work(self._workers.get(number) or self._start(number))
            self._looked_s = time.monotonic()
            while self._workers:
                self._step(run)
                if not run.assignments.are_waiting and all(
                    worker.is_idle or worker.is_stopping for worker in self._workers.values()
                ):
                    self._stop()
        except BaseException as error:
            failed = self._stop_early(run)
            if failed is not None and not isinstance(error, OSError):
                raise failed from error
            raise

    def _stop(self) -> None:
        """Tell all workers to finish their shards and to end."""
        for worker in self._workers.values():
            if not worker.is_stopping:
                worker.is_stopping, worker.is_idle = True, False
                worker.progressed_s = self.clock_s
                worker.process.send(messages.Stop())

    def _stop_early(self, run: _Run) -> OSError | None:
        """Wait for the shards that workers have at hand. Returns why one is not finished."""
        failed: OSError | None = None
        run.is_over = True
        with uninterrupted():
            self._stop()
            while self._workers:
                try:
                    self._step(run)
                except OSError as error:  # a full disk: another shard may need less
                    failed = failed or error
                except UserError:
                    _log.debug("of a worker that was to stop", exc_info=True)
        return failed

    def _step(self, run: _Run) -> None:
        """Take what has arrived, or wait a moment for it; end workers that take too much."""
        with uninterrupted():  # no shard is finished and not recorded
            for key, _ in self._selector.select(_TICK_S):
                self._receive(key.data, run)
            self.count_time()
            idle = _INTERRUPTED_LIMITS if run.is_over else run.job.budgets.idle_limits
            for worker in list(self._workers.values()):
                death = worker.find_excess(self.clock_s, idle, run.worker_bytes)
                if death is not None:
                    self._replace(worker, death, run)

    def _start(self, number: int) -> Worker:
        process = WorkerProcess(self._device, self._extractor)
        now_s = self.clock_s
        worker = Worker(number=number, process=process, began_s=now_s, progressed_s=now_s)
        self._workers[number] = worker
        self._selector.register(process.channel, selectors.EVENT_READ, worker)
        return worker

    def _receive(self, worker: Worker, run: _Run) -> None:
        """Take what has arrived from a worker."""
        if self._workers.get(worker.number) is not worker:
            return  # it was ended in this very round
        try:
            worker.inbox += worker.process.channel.receive_arrived()
        except (EOFError, OSError):
            self._read_inbox(worker, run)
            if worker.is_stopping and worker.process.ended_well():
                self._forget(worker)
            else:
                self._replace(worker, worker.process.describe_end(), run)
            return
        self._read_inbox(worker, run)

    def _read_inbox(self, worker: Worker, run: _Run) -> None:
        """Take what it said, one by one: what an error leaves there is taken later."""
        while worker.inbox:
            message = worker.inbox.popleft()
            if isinstance(message, messages.Death):
                self._replace(worker, message, run)
                return
            self._take(worker, message, run)

    def _take(self, worker: Worker, message: Any, run: _Run) -> None:
        if isinstance(message, messages.NextClip):
            worker.is_idle = not worker.is_stopping
            self._answer(worker, run)
        elif isinstance(message, messages.Begun):
            task = run.assignments.find(worker.number, message.clip_id)
            if task is not None:
                worker.read_id = message.clip_id
                worker.reads = message.within or task.clip
                worker.limits = run.job.budgets.find_clip_limits(worker.reads.path)
            worker.began_s = worker.progressed_s = self.clock_s
        elif isinstance(message, messages.ClipEnd):
            self._end_clip(worker, message, run)
        elif isinstance(message, messages.ShardBegun):
            worker.shard_name = message.name
        elif isinstance(message, messages.Writing):
            worker.progressed_s = worker.writes_since_s = self.clock_s
        elif isinstance(message, messages.Progressed):
            worker.note_progress(self.clock_s)
        elif isinstance(message, messages.ShardFinished):
            worker.note_progress(self.clock_s)
            worker.shard_name, worker.n_frames = None, 0
            run.assignments.finish(worker.number)
            run.record(worker.number, message)
        elif isinstance(message, messages.Loaded | messages.Timing | messages.ClipAdded):
            worker.note_progress(self.clock_s)
            if isinstance(message, messages.ClipAdded) and message.was_read:
                run.assignments.note_progress(worker.number)
            run.record(worker.number, message)
        else:
            self._take_answer(message)

    def _end_clip(self, worker: Worker, end: messages.ClipEnd, run: _Run) -> None:
        worker.progressed_s = self.clock_s
        task = run.assignments.find(worker.number, end.clip.clip_id)
        run.assignments.end(worker.number, failed=end.failure is not None)
        if not run.assignments.holds_any(worker.number):
            worker.read_id = worker.limits = None
        if task is not None and not task.was_done:
            if end.failure is None:
                worker.n_frames += end.n_frames
            run.record(worker.number, end)

    def _take_answer(self, message: Any) -> None:
        """What any worker may say before it is ready, and what is logged."""
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, messages.Machine):
            self._machine = message
        elif isinstance(message, messages.Death):
            raise WorkerError(f"the first worker {message.reason}")
        elif isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)

    def _answer(self, worker: Worker, run: _Run) -> None:
        """Give a worker a clip, or word to end those it has; else it stays idle."""
        if worker.is_stopping or self._workers.get(worker.number) is not worker:
            return
        clip = run.assignments.give(worker.number)
        if clip is None and not run.assignments.holds_any(worker.number):
            return
        worker.is_idle = False
        worker.progressed_s = self.clock_s
        if clip is None:
            worker.process.send(None)
            return
        task = run.assignments.find(worker.number, clip.clip_id)
        if task is not None and task.alone and isinstance(clip, messages.ShardUnit):
            clip = replace(clip, one_by_one=True)
        worker.process.send(messages.Given(clip=clip, is_kept=task is None or not task.was_done))

    def _forget(self, worker: Worker) -> None:
        self._selector.unregister(worker.process.channel)
        worker.process.channel.close()
        del self._workers[worker.number]

    def _replace(self, worker: Worker, death: messages.Death, run: _Run) -> None:
        """End a worker; a clip that it took down is given up or tried again."""
        worker.process.kill()
        worker.process.wait()
        rest = worker.process.channel.receive_rest()
        worker.inbox += (message for message in rest if not isinstance(message, messages.Death))
        self._forget(worker)
        self._read_inbox(worker, run)
        store = run.job.output.store
        if worker.shard_name is not None and (store / worker.shard_name).is_file():
            # It finished the shard and died before it said so.
            entry = describe_shard(store, store / worker.shard_name)
            self._take(worker, messages.ShardFinished(entry=entry), run)
        run.record(worker.number, messages.Lost(shard_name=worker.shard_name))
        if run.is_over:
            _log.warning(
                "worker %d %s; clips of its unfinished shard are not kept",
                worker.number,
                death.reason,
            )
            return
        suspect_id = worker.read_id if death.kind == TIME else None
        for clip in run.assignments.lose(worker.number, death, suspect_id):
            failure = worker.describe_death(clip, death)
            again = clip.leave_out(failure) if isinstance(clip, messages.ShardUnit) else None
            if again is not None:
                run.assignments.try_again(again)
            else:
                run.record(worker.number, messages.ClipEnd(clip=clip, failure=failure))
        if run.assignments.are_waiting:
            # So that workers that die again and again still get on.
            first_frames = max(worker.n_frames // 2, 1) if worker.n_frames else None
            run.give_work(self._start(worker.number), first_frames)
            for other in self._workers.values():
                if other.is_idle:
                    self._answer(other, run)

    def count_time(self) -> None:
        """Bring the clock up to date."""
        now_s = time.monotonic()
        self.clock_s += min(now_s - self._looked_s, _LONGEST_TICK_S)
        self._looked_s = now_s


@dataclass(kw_only=True)
class _Run:
    """What one call of ``run`` is about."""

    job: Job
    record: Callable[[int, messages.Item], None]
    assignments: Assignments
    works: Sequence[messages.Work]
    """Of each worker, by its number."""
    worker_bytes: int | None
    is_over: bool = False
    """No clip is given any more."""

    def give_work(self, worker: Worker, first_frames: int | None = None) -> None:
        """Tell a worker what to do. first_frames: see ``Output``; None: as the job says."""
        output = self.job.output
        if first_frames and isinstance(output, messages.Output):
            output = replace(output, first_frames=first_frames)
        worker.process.send(self.works[worker.number])
        worker.process.send(output)
