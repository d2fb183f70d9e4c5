"""The driver of sound: adds a stream of sound to the shards of a store that lack it."""

from __future__ import annotations

import logging
import os
import selectors
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from features.contracts import Clip
from features.errors import ClipError, WorkerError
from features.machine import bound_cores
from features.networks.encoders import EncoderSpec
from features.store.index import Failure, read_store_index
from features.store.shard_format import StreamHeader
from features.store.shard_reader import read_shard_index
from features.store.writer import StoreWriter
from pipeline.decode.notes import describe_notes
from pipeline.inputs import Inputs
from pipeline.manifest.reader import DEFAULT_OPTIONS, ManifestOptions
from pipeline.record import FailureLog
from pipeline.resume import read_manifest_for
from pipeline.sound.stream import make_audio_header
from pipeline.sound_worker import SoundDone, SoundSource, SoundTask
from pipeline.store_header import make_stream_header
from pipeline.workers.messages import Begun, Death
from pipeline.workers.process import WorkerProcess
from pipeline.workers.resources import DEFAULT_BUDGETS, Budgets

_log = logging.getLogger(__name__)

_MAIN = "pipeline.sound_worker:main"
_TICK_S = 0.2
"""How often time is looked at."""
_MOST_DEATHS = 3
"""In a row, while no clip is decoded: then it is no clip that ends workers."""


@dataclass(frozen=True, kw_only=True)
class SoundSummary:
    """What adding one stream of sound did."""

    stream: str
    clips_done: int
    """Clips that have it now and had not before."""
    clips_silent: int
    """Clips of these without sound: their rows are zeros."""
    clips_damaged: int
    """Clips of these of whose sound something is lost: silence in its place."""
    clips_failed: int
    """Clips whose file is gone or another: their shards still lack the stream."""
    wall_s: float

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, for ``--json``."""
        return asdict(self)


def add_sound(
    manifest: Path,
    store: Path,
    *,
    encoder: EncoderSpec | None = None,
    options: ManifestOptions = DEFAULT_OPTIONS,
    device: str = "cpu",
    workers: int | None = None,
    budgets: Budgets = DEFAULT_BUDGETS,
    progress: Callable[[int, int], None] = lambda n_done, n_clips: None,
) -> SoundSummary:
    """Add a stream of sound to a finished store; no frame is looked at again.

    Only the sound of the clips is decoded, and the first frame of each film, which says when the
    clip begins. Each shard gets the stream's file when all its clips have their rows; what is done
    is kept, whatever ends the run. A clip without sound has rows of silence.

    Args:
        manifest: Tells where the clips of the store are.
        store: Its folder.
        encoder: One of the user's that looks at ``audio``; None: the stream ``audio``.
        options: How the manifest is read.
        device: Where such an encoder runs.
        workers: Processes; None: one a core, as far as there are shards; for an encoder one, unless
            the device is ``cpu``.
        budgets: Time after which the sound of a clip is given up, and is none.
        progress: Told the clips done and all that lack the stream, after each.

    Raises:
        ManifestError: the manifest has problems.
        ConfigError: the store has a stream of this name that was made otherwise, or another process
            writes to it.
        ShardError: no store, or it is damaged.
        WeightsError: the encoder cannot be used.
        WorkerError: processes end for reasons that no clip is to blame for.
        OSError: the store cannot be written (a full disk).
    """
    began_s = time.perf_counter()
    clips = {clip.clip_id: clip for clip in read_manifest_for(store, manifest, options).clips}
    base = read_store_index(store, relabelling=True).header
    header = (
        make_audio_header(base.fingerprint)
        if encoder is None
        else make_stream_header(encoder, base.fingerprint)
    )
    with StoreWriter(store, base) as writer:
        failures = FailureLog(store)
        failures.write()
        record = _Record(writer, failures, progress)
        tasks = []
        for task, lost in _plan(writer, header, clips, encoder, device):
            record.n_clips += len(task.sources) + len(lost)
            if lost:
                record.fail(lost)
            else:
                tasks.append(task)
        n_pay = 1 if encoder and device != "cpu" else bound_cores(os.cpu_count() or 1)
        _run(tasks, min(workers or n_pay, len(tasks)), budgets, record)
    return SoundSummary(
        stream=header.name,
        clips_done=record.n_done,
        clips_silent=record.n_silent,
        clips_damaged=record.n_damaged,
        clips_failed=record.n_failed,
        wall_s=round(time.perf_counter() - began_s, 3),
    )


def _plan(
    writer: StoreWriter,
    header: StreamHeader,
    clips: Mapping[str, Clip],
    encoder: EncoderSpec | None,
    device: str,
) -> Iterator[tuple[SoundTask, list[Failure]]]:
    """The shards that lack the stream, each with the clips that stand in the way."""
    names = writer.missing_streams(header)
    if not names:
        return
    inputs = Inputs(writer.path / "inputs.jsonl")
    held = writer.open().clips
    newest = dict(zip(held["clip_id"], held["shard"], strict=True))
    for name in names:
        columns = read_shard_index(writer.path / name).columns
        sources: dict[str, SoundSource] = {}
        lost = []
        for clip_id, sha256 in zip(columns["id"], columns["sha256"], strict=True):
            if newest[clip_id] != name:
                continue  # extracted again since: these rows are never read
            source = _find_source(clips.get(clip_id), sha256, inputs)
            if isinstance(source, SoundSource):
                sources[clip_id] = source
            else:
                path = str(clips[clip_id].path) if clip_id in clips else ""
                lost.append(Failure(clip_id=clip_id, path=path, step="read", reason=source))
        yield (
            SoundTask(
                store=writer.path,
                shard_name=name,
                header=header,
                spec=encoder,
                device=device,
                sources=sources,
            ),
            lost,
        )


def _find_source(clip: Clip | None, sha256: str, inputs: Inputs) -> SoundSource | str:
    """A clip's file, or why it is not to be had."""
    if clip is None:
        return "its sound: the store has the clip, this manifest has not"
    try:
        found, state = inputs.look_up(clip.path)
    except ClipError as error:
        return f"its sound: {error}"
    except OSError as error:
        return f"its sound: cannot be read ({error.strerror or type(error).__name__})"
    inputs.remember(clip.path, found)
    if found.sha256 != sha256:
        return "its sound: its file is another than when its frames were extracted; run again"
    return SoundSource(clip=clip, state=state)


class _Record:
    """Lists finished files in store.json, keeps what failed, counts."""

    def __init__(
        self, writer: StoreWriter, failures: FailureLog, progress: Callable[[int, int], None]
    ) -> None:
        self.n_clips = self.n_done = self.n_failed = self.n_silent = self.n_damaged = 0
        self._writer = writer
        self._failures = failures
        self._progress = progress
        self._begun: set[str] = set()

    def begin(self, clip_id: str) -> None:
        """A worker decodes the sound of a clip."""
        self._begun.add(clip_id)
        self._progress(min(len(self._begun) - 1, self.n_clips), self.n_clips)

    def take(self, done: SoundDone) -> None:
        """A shard has the stream, or a clip failed."""
        if done.failure is not None:
            self.fail([done.failure])
        if done.file is None:
            return
        self._writer.list_stream_file(done.file)
        self.n_done += len(done.task.sources)
        for clip_id, amounts in done.notes.items():
            is_silent = "no_sound" in amounts
            self.n_silent += is_silent
            self.n_damaged += not is_silent
            level = logging.INFO if is_silent else logging.WARNING
            _log.log(level, "clip %s: %s", clip_id, describe_notes(amounts))
        self._progress(min(len(self._begun), self.n_clips), self.n_clips)

    def fail(self, failures: Collection[Failure]) -> None:
        """Clips that keep their shard from having the stream."""
        self.n_failed += len(failures)
        for failure in failures:
            _log.warning("clip %s: %s: %s", failure.clip_id, failure.step, failure.reason)
            self._failures.add(failure)


@dataclass(kw_only=True)
class _Worker:
    process: WorkerProcess
    task: SoundTask | None = None
    clip_id: str | None = None
    """That it decodes."""
    progressed_s: float = field(default_factory=time.monotonic)

    def find_still_s(self) -> float:
        """Seconds since it last said something."""
        return time.monotonic() - self.progressed_s

    def find_limit_s(self, budgets: Budgets) -> float:
        """Seconds until it is given up if it says nothing."""
        source = self.task.sources.get(self.clip_id or "") if self.task else None
        if source is None:
            return budgets.idle_limits.still_s
        return budgets.find_clip_limits(source.clip.path).still_s


def _run(tasks: Sequence[SoundTask], n_workers: int, budgets: Budgets, record: _Record) -> None:
    """Do the tasks; a clip that ends its worker has no sound in the next try."""
    todo = deque(tasks)
    workers: list[_Worker] = []
    deaths: dict[str, int] = defaultdict(int)
    selector = selectors.DefaultSelector()
    try:
        while todo or any(worker.task for worker in workers):
            while todo and len(workers) < n_workers:
                process = WorkerProcess("cpu", "", main=_MAIN)
                workers.append(_Worker(process=process))
                selector.register(process.channel, selectors.EVENT_READ, workers[-1])
            for worker in workers:
                if worker.task is None and todo:
                    worker.task = todo.popleft()
                    worker.progressed_s = time.monotonic()
                    worker.process.send(worker.task)
            ready = {key.data.process: key.data for key, _ in selector.select(_TICK_S)}
            for worker in list(workers):
                death = None
                if worker.process in ready:
                    death = _listen(worker, record)
                elif worker.task and worker.find_still_s() > worker.find_limit_s(budgets):
                    worker.process.kill()
                    death = Death(kind="time", reason="made no progress (--clip-timeout)")
                if death is not None:
                    selector.unregister(worker.process.channel)
                    worker.process.wait()
                    worker.process.channel.close()
                    workers.remove(worker)
                    if worker.task is not None:
                        todo.appendleft(_leave_out(worker, death, deaths))
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.wait()
            worker.process.channel.close()
        selector.close()


def _listen(worker: _Worker, record: _Record) -> Death | None:
    """Take what a worker says; returns how it ended, if it has."""
    try:
        messages = worker.process.channel.receive_arrived()
    except (EOFError, OSError):
        return worker.process.describe_end()
    for message in messages:
        worker.progressed_s = time.monotonic()
        if isinstance(message, Begun):
            worker.clip_id = message.clip_id
            record.begin(message.clip_id)
        elif isinstance(message, SoundDone):
            worker.task = worker.clip_id = None
            record.take(message)
        elif isinstance(message, Exception):
            raise message
        elif isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
    return None


def _leave_out(worker: _Worker, death: Death, deaths: dict[str, int]) -> SoundTask:
    """The task of a worker that ended, without the sound of the clip that it decoded."""
    task = worker.task
    assert task is not None
    if worker.clip_id is None or worker.clip_id in task.silent_ids:
        deaths[task.shard_name] += 1
        if deaths[task.shard_name] >= _MOST_DEATHS:
            raise WorkerError(
                f"{task.shard_name}: the process that adds the stream {task.header.name} "
                f"{death.reason}, {_MOST_DEATHS} times"
            )
        return task
    _log.warning(
        "clip %s: the process that decoded its sound %s: it is taken to have none",
        worker.clip_id,
        death.reason,
    )
    return replace(task, silent_ids=task.silent_ids | {worker.clip_id})


def describe(summary: SoundSummary) -> str:
    """The summary in words."""
    if not summary.clips_done and not summary.clips_failed:
        return f"stream {summary.stream}: nothing to do"
    return (
        f"stream {summary.stream}: {summary.clips_done} clips done ({summary.clips_silent} without "
        f"sound, {summary.clips_damaged} with damaged sound), {summary.clips_failed} failed, in "
        f"{summary.wall_s:.1f} s"
    )
