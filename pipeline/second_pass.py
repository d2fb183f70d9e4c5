"""Adds streams to what a store has already: plans which shards, runs the workers, keeps count."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from features.contracts import Clip
from features.errors import ClipError
from features.store.index import WORKER_STEP, Failure
from features.store.shard_format import StreamHeader
from features.store.writer import StoreWriter
from pipeline.inputs import Inputs
from pipeline.record import FailureLog
from pipeline.workers.messages import (
    ClipAdded,
    ClipEnd,
    Item,
    Loaded,
    Lost,
    ShardFinished,
    ShardTask,
    Timing,
)

_log = logging.getLogger(__name__)

STREAM_EXTRACTOR = "pipeline.workers.stream_extractor:StreamExtractor"


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The work of a second pass."""

    tasks: Mapping[str, ShardTask]
    """Name of a shard -> what it lacks."""
    units: Sequence[Clip]
    """The same shards, as clips: what workers are given."""
    failures: Sequence[Failure]
    """Clips whose files are not to be had: their shards are in no task."""
    n_clips: int
    """In the tasks."""


def count_lacking(writer: StoreWriter, headers: Sequence[StreamHeader]) -> int:
    """How many clips are in shards that lack one of these streams."""
    names = {name for header in headers for name in writer.missing_streams(header)}
    return sum(shard.n_clips for shard in writer.open().shards if shard.name in names)


def plan_streams(
    writer: StoreWriter, headers: Sequence[StreamHeader], clips: Sequence[Clip], inputs: Inputs
) -> StreamPlan:
    """Which finished shards lack which streams, and where the files of their clips are.

    Args:
        writer: Of the store.
        headers: Of the streams that all its clips are to have.
        clips: Of the manifest.
        inputs: Hashes of files.
    """
    lacking: dict[str, list[StreamHeader]] = defaultdict(list)
    for header in headers:
        for name in writer.missing_streams(header):
            lacking[name].append(header)
    paths = {clip.clip_id: clip.path for clip in clips}
    rows = writer.open().clips.to_dict("records") if lacking else []
    found: dict[str, dict[str, Path]] = {name: {} for name in lacking}
    failures: dict[str, list[Failure]] = defaultdict(list)
    for row in rows:
        shard, clip_id = row["shard"], row["clip_id"]
        if not any(h.rows == "frame" or row["n_faces"] for h in lacking.get(shard, ())):
            continue  # it lacks none, or has no row in those it lacks
        path = paths.get(clip_id)
        problem = _find_problem(path, row["sha256"], inputs)
        if path is not None and not problem:
            found[shard][clip_id] = path
        else:
            failure = Failure(clip_id=clip_id, path=str(path or ""), step="read", reason=problem)
            failures[shard].append(failure)
    tasks = {
        name: ShardTask(streams=tuple(h.name for h in lacking[name]), paths=found[name])
        for name in lacking
        if name not in failures
    }
    listed = {shard.name: shard for shard in writer.open().shards}
    return StreamPlan(
        tasks=tasks,
        units=[
            Clip(clip_id=name, path=writer.path / name, label="", split="train") for name in tasks
        ],
        failures=[
            describe_loss(failure, name, [h.name for h in lacking[name]])
            for name, of_shard in failures.items()
            for failure in of_shard
        ],
        n_clips=sum(listed[name].n_clips for name in tasks),
    )


def _find_problem(path: Path | None, sha256: str, inputs: Inputs) -> str:
    """Why a clip's file cannot be decoded again; empty if it can."""
    if path is None:
        return "it is not in this manifest, so its file is not known"
    try:
        found, _ = inputs.look_up(path)
    except ClipError as error:
        return str(error).replace(str(path), path.name)
    except OSError as error:
        return f"cannot be read ({error.strerror or type(error).__name__})"
    if found.sha256 != sha256:
        return f"its file has SHA-256 {found.sha256[:12]}, {sha256[:12]} when it was extracted"
    return ""


def describe_loss(failure: Failure, shard_name: str, streams: Sequence[str]) -> Failure:
    """The failure, with what it costs: the clip's other features stand."""
    names = ", ".join(streams)
    what = f"stream {names} lacks" if len(streams) == 1 else f"streams {names} lack"
    return replace(
        failure,
        reason=f"{failure.reason}; its other features stand, but the {what} all of {shard_name}",
    )


class StreamRecord:
    """Records what workers of a second pass tell, and counts it."""

    def __init__(self, writer: StoreWriter, failures: FailureLog, plan: StreamPlan) -> None:
        self.n_done = self.n_frames = self.n_faces = 0
        """They fall where a worker dies, or a clip fails, and with it a shard."""
        self.failed_ids: set[str] = set()
        """Clips that failed here; those that failed in the first pass have their rows."""
        self.step_s: dict[str, float] = defaultdict(float)
        self._writer = writer
        self._failures = failures
        self._tasks = plan.tasks
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
            self._unfinished[number].append(item)
            self._count(item, 1)
        elif isinstance(item, ShardFinished):
            for name in item.stream_files:
                self._writer.list_stream_file(self._writer.path / name)
            self._unfinished.pop(number, None)
        elif isinstance(item, Timing):
            for step, seconds in item.step_s.items():
                self.step_s[step] += seconds
        elif isinstance(item, ClipEnd) and item.failure is not None:
            self._forget(number)
            self._fail(item.clip.clip_id, item.failure)
        elif isinstance(item, Lost):
            self._forget(number)
        else:
            assert isinstance(item, Loaded | ClipEnd)

    def _fail(self, shard_name: str, failure: Failure) -> None:
        task = self._tasks[shard_name]
        if failure.clip_id == shard_name:  # its worker died before it read a clip
            clip_id, path = next(iter(task.paths.items()))
            failure = replace(failure, clip_id=clip_id, path=str(path))
        if failure.step == WORKER_STEP:  # clips are decoded ahead of the one that is read
            where = "at this clip or one of the next of its shard"
            failure = replace(failure, reason=f"{failure.reason} {where}")
        self._add(describe_loss(failure, shard_name, task.streams))

    def _add(self, failure: Failure) -> None:
        if failure.clip_id not in self._failures:
            _log.warning("clip %s: %s: %s", failure.clip_id, failure.step, failure.reason)
            self.failed_ids.add(failure.clip_id)
            self._failures.add(failure)

    def _forget(self, number: int) -> None:
        """The shard that a worker has at hand comes to nothing."""
        for clip in self._unfinished.pop(number, []):
            self._count(clip, -1)

    def _count(self, clip: ClipAdded, sign: int) -> None:
        self.n_done += sign
        self.n_frames += sign * clip.n_frames
        self.n_faces += sign * clip.n_faces
