"""Adds streams to what a store has already: plans which shards, runs the workers, keeps count."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from features.contracts import Clip
from features.errors import ClipError
from features.store.index import Failure
from features.store.reader import Store
from features.store.shard_format import Lack, StreamHeader
from features.store.writer import StoreWriter
from pipeline.decode.notes import describe_notes
from pipeline.inputs import Inputs
from pipeline.record import FailureLog
from pipeline.workers.messages import (
    ClipAdded,
    ClipEnd,
    Item,
    Loaded,
    Lost,
    ShardFinished,
    ShardUnit,
    StreamOutput,
    Timing,
    WantedClip,
    Work,
)
from pipeline.workers.pool import WorkerPool
from pipeline.workers.resources import Budgets, Job, count_workers

_log = logging.getLogger(__name__)

STREAM_EXTRACTOR = "pipeline.workers.stream_extractor:StreamExtractor"


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The work of a second pass."""

    units: Mapping[str, ShardUnit]
    """By name of the shard."""
    failures: Sequence[Failure]
    """Clips that will lack streams, as far as is known before."""
    n_clips: int
    """Those, and the others that are to get streams."""


def count_lacking(store: Store, headers: Sequence[StreamHeader]) -> int:
    """How many clips of a store lack one of these streams."""
    return len({clip_id for header in headers for clip_id in store.find_lacking(header.name)})


def find_final(store: Store) -> set[str]:
    """Clips that lack a stream as their files cannot be used; nobody tries them again."""
    lacking = [store.find_lacking(name) for name in store.streams_beside.listed]
    return {
        clip_id
        for of_stream in lacking
        for clip_id, lack in of_stream.items()
        if lack == Lack.FINAL
    }


def add_streams(
    writer: StoreWriter,
    headers: Sequence[StreamHeader],
    clips: Sequence[Clip],
    *,
    work: Work,
    extractor: str,
    failures: FailureLog,
    n_workers: int | None,
    budgets: Budgets,
    progress: Callable[[StreamRecord], None],
) -> StreamRecord:
    """Add streams to the finished shards of a store; what is done is kept, whatever ends it.

    A clip that cannot be had lacks them, is a row of failures.csv, and stops nothing.

    Args:
        writer: Of the store.
        headers: Of the streams.
        clips: Of the manifest: where the files are.
        work: Of the workers; its device as the user named it.
        extractor: The class that works in them.
        failures: Of the store; on disk.
        n_workers: Processes; None: as ``count_workers`` tells.
        budgets: Time and memory after which a clip is given up.
        progress: Told after each clip.

    Raises:
        ConfigError, WeightsError, WorkerError, OSError: As ``WorkerPool.run``.
        ShardError: A shard, or a file of a stream in which clips lack it, is damaged.
    """
    plan = plan_streams(writer, headers, clips, Inputs(work.inputs))
    record = StreamRecord(writer, failures, plan)

    def take(number: int, item: Item) -> None:
        record.take(number, item)
        if isinstance(item, ClipAdded | ClipEnd):
            progress(record)

    if plan.units:
        with WorkerPool(work.device, extractor) as pool:
            if n_workers is None:
                machine = pool.find_machine()
                n_workers = count_workers(plan.n_clips, machine, work.network_bytes)
            job = Job(
                work=work,
                output=StreamOutput(store=writer.path, headers=tuple(headers)),
                clips=list(plan.units.values()),
                n_workers=n_workers,
                budgets=budgets,
            )
            pool.run(job, take)
    failures.write()
    return record


def plan_streams(
    writer: StoreWriter, headers: Sequence[StreamHeader], clips: Sequence[Clip], inputs: Inputs
) -> StreamPlan:
    """Which clips of finished shards lack which streams, and where their files are.

    A shard in which only single clips lack a stream is in the plan where one of them can be had.

    Args:
        writer: Of the store.
        headers: Of the streams that all its clips are to have.
        clips: Of the manifest.
        inputs: Hashes of files.
    """
    missing: dict[str, list[str]] = defaultdict(list)
    for header in headers:
        for name in writer.missing_streams(header):
            missing[name].append(header.name)
    store, of_faces = writer.open(), {h.name for h in headers if h.rows == "face"}
    lacks = {header.name: store.find_lacking(header.name) for header in headers}
    paths = {clip.clip_id: clip.path for clip in clips}
    wanted: dict[str, dict[str, WantedClip]] = {name: {} for name in missing}
    failures: list[Failure] = []
    for row in store.clips.to_dict("records") if any(lacks.values()) else []:
        clip_id = row["clip_id"]
        final = [name for name in lacks if lacks[name].get(clip_id) == Lack.FINAL]
        streams = tuple(name for name in lacks if lacks[name].get(clip_id) == Lack.RETRIED)
        path = paths.get(clip_id)
        if final:
            failures.append(_describe_final(clip_id, path, row["shard"], final))
        if not streams:
            continue
        has_rows = row["n_faces"] or not of_faces.issuperset(streams)
        problem = _find_problem(path, row["sha256"], inputs) if has_rows else ""
        failure = None
        if problem:
            failure = Failure(clip_id=clip_id, path=str(path or ""), step="read", reason=problem)
            failures.append(describe_lack(failure, streams))
        clip = WantedClip(streams=streams, path=path if has_rows else None, failure=failure)
        wanted.setdefault(row["shard"], {})[clip_id] = clip
    units = {
        name: ShardUnit(
            clip_id=name,
            path=writer.path / name,
            label="",
            split="train",
            streams=_list_streams(headers, missing[name], of_shard.values()),
            wanted=of_shard,
        )
        for name, of_shard in wanted.items()
        if name in missing or any(clip.failure is None for clip in of_shard.values())
    }
    ids = {clip_id for unit in units.values() for clip_id in unit.wanted}
    return StreamPlan(
        units=units,
        failures=failures,
        n_clips=len(ids | {failure.clip_id for failure in failures}),
    )


def _list_streams(
    headers: Sequence[StreamHeader], missing: Collection[str], clips: Collection[WantedClip]
) -> tuple[str, ...]:
    """The streams of which a shard gets a file: those that it lacks, and that a clip gains."""
    gained = {name for clip in clips for name in clip.streams}
    return tuple(header.name for header in headers if header.name in {*missing, *gained})


def _find_problem(path: Path | None, sha256: str, inputs: Inputs) -> str:
    """Why a clip's file cannot be decoded again; empty if it can."""
    if path is None:
        return "it is not in this manifest, so its file is not known"
    try:
        found, _ = inputs.look_up(path)
        inputs.remember(path, found)
    except ClipError as error:
        return str(error).replace(str(path), path.name)
    except OSError as error:
        return f"cannot be read ({error.strerror or type(error).__name__})"
    if found.sha256 != sha256:
        return f"its file has SHA-256 {found.sha256[:12]}, {sha256[:12]} when it was extracted"
    return ""


def _describe_final(
    clip_id: str, path: Path | None, shard_name: str, streams: Sequence[str]
) -> Failure:
    """For a row of failures.csv that is gone; the row that was written at the time says more."""
    files = ", ".join(f"streams/{name}/{Path(shard_name).name}" for name in streams)
    reason = f"its file could not be used when it was tried; to try again, delete {files}"
    failure = Failure(clip_id=clip_id, path=str(path or ""), step="decode", reason=reason)
    return describe_lack(failure, streams)


def describe_lack(failure: Failure, streams: Sequence[str]) -> Failure:
    """The failure, with what it costs: the clip's other features stand."""
    what = f"{'stream' if len(streams) == 1 else 'streams'} {', '.join(streams)}"
    return replace(
        failure, reason=f"{failure.reason}; its other features stand, but it lacks the {what}"
    )


class StreamRecord:
    """Records what workers of a second pass tell, and counts it."""

    def __init__(self, writer: StoreWriter, failures: FailureLog, plan: StreamPlan) -> None:
        self.n_done = self.n_frames = self.n_faces = 0
        """They fall where a worker dies, and with it a shard."""
        self.n_clips = plan.n_clips
        """That lacked streams when it began."""
        self.failed_ids: set[str] = set()
        """Clips that lack streams still."""
        self.notes: dict[str, Mapping[str, float]] = {}
        """Of clips in finished files whose sound is unusual."""
        self.step_s: dict[str, float] = defaultdict(float)
        self._writer = writer
        self._failures = failures
        self._units = plan.units
        self._unfinished: dict[int, list[ClipAdded]] = defaultdict(list)
        """Worker -> the clips of its shard at hand."""
        for failure in plan.failures:
            self._add(failure)

    def take(self, number: int, item: Item) -> None:
        """Take what the worker of this number tells.

        Raises:
            OSError: the store cannot be written (a full disk).
        """
        if isinstance(item, ClipAdded):
            self._take_clip(number, item)
        elif isinstance(item, ShardFinished):
            for name in item.stream_files:
                self._writer.list_stream_file(self._writer.path / name)
            self._finish(self._unfinished.pop(number, []))
        elif isinstance(item, Timing):
            for step, seconds in item.step_s.items():
                self.step_s[step] += seconds
        elif isinstance(item, ClipEnd) and item.failure is not None:
            self._forget(number)
            self._give_up(item.clip.clip_id, item.failure)
        elif isinstance(item, Lost):
            self._forget(number)
        else:
            assert isinstance(item, Loaded | ClipEnd)

    def _take_clip(self, number: int, item: ClipAdded) -> None:
        if item.wanted is None:
            return
        if item.failure is not None:
            self._add(describe_lack(item.failure, item.wanted.streams))
            return
        self._unfinished[number].append(item)
        self._count(item, 1)

    def _finish(self, clips: Sequence[ClipAdded]) -> None:
        for clip in clips:
            if clip.notes:
                self.notes[clip.clip_id] = clip.notes
                level = logging.INFO if "no_sound" in clip.notes else logging.WARNING
                _log.log(level, "clip %s: %s", clip.clip_id, describe_notes(clip.notes))

    def _give_up(self, shard_name: str, failure: Failure) -> None:
        """A worker ended at a shard before it read a clip."""
        unit = self._units[shard_name]
        for clip_id, clip in unit.wanted.items():
            self._add(
                describe_lack(
                    replace(failure, clip_id=clip_id, path=str(clip.path or "")), clip.streams
                )
            )

    def _add(self, failure: Failure) -> None:
        if failure.clip_id not in self.failed_ids:
            self.failed_ids.add(failure.clip_id)
            if failure.clip_id not in self._failures:
                self._failures.add(failure)
                _log.warning("clip %s: %s: %s", failure.clip_id, failure.step, failure.reason)

    def _forget(self, number: int) -> None:
        """The shard that a worker has at hand comes to nothing."""
        for clip in self._unfinished.pop(number, []):
            self._count(clip, -1)

    def _count(self, clip: ClipAdded, sign: int) -> None:
        self.n_done += sign
        self.n_frames += sign * clip.n_frames
        self.n_faces += sign * clip.n_faces
