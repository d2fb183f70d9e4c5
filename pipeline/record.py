"""Keeps what a run of extract did: shards in store.json, failures.csv, inputs.jsonl, counts."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from features.store.index import (
    FAILURE_COLUMNS,
    WORKER_STEP,
    Failure,
    append_failure,
    read_failures,
    write_failures,
)
from features.store.writer import StoreWriter, remove_unfinished
from pipeline.decode.notes import describe_notes
from pipeline.inputs import Inputs
from pipeline.workers.messages import ClipEnd, Item, Loaded, Lost, ShardFinished, Timing

_log = logging.getLogger(__name__)


class FailureLog:
    """The rows of failures.csv: one goes when its clip is done, not before."""

    def __init__(self, store: Path) -> None:
        """store: its folder."""
        self._store = store
        rows: Any = read_failures(store)[list(FAILURE_COLUMNS)].to_dict("records")
        self._rows = {row["clip_id"]: Failure(**row) for row in rows}

    @property
    def worker_ids(self) -> set[str]:
        """Clips that ended the worker that extracted them."""
        return {clip_id for clip_id, failure in self._rows.items() if failure.step == WORKER_STEP}

    def __contains__(self, clip_id: str) -> bool:
        """Whether a clip has a row."""
        return clip_id in self._rows

    def add(self, failure: Failure) -> None:
        """Keep a clip's failure, on disk at once: a kill must not lose it. After a ``write``."""
        self._rows[failure.clip_id] = failure
        append_failure(self._store, failure)

    def forget(self, clip_ids: set[str]) -> None:
        """Drop the rows of clips that are done; on disk with ``write``."""
        for clip_id in clip_ids:
            self._rows.pop(clip_id, None)

    def write(self) -> None:
        """Replace failures.csv."""
        write_failures(self._store, list(self._rows.values()))


class RunRecord:
    """Records what workers tell, and counts it."""

    def __init__(
        self, writer: StoreWriter, failures: FailureLog, inputs: Inputs, began_s: float
    ) -> None:
        """began_s: when the run began, by ``time.perf_counter``."""
        self.n_done = self.n_failed = self.n_frames = self.n_faces = 0
        """They fall where a worker dies and with it clips in its unfinished shard."""
        self.step_s: dict[str, float] = defaultdict(float)
        """Step -> seconds, as ``Timing`` tells, and ``load``: from the run's beginning until the
        first worker is ready."""
        self._began_s = began_s
        self._writer = writer
        self._failures = failures
        self._inputs = inputs
        self._unfinished: dict[int, list[ClipEnd]] = defaultdict(list)
        """Worker -> the clips that are only in its unfinished shard."""

    def take(self, number: int, item: Item) -> None:
        """Take what the worker of this number tells.

        Raises:
            OSError: the store cannot be written (a full disk).
        """
        if isinstance(item, Loaded):
            self.step_s.setdefault("load", time.perf_counter() - self._began_s)
        elif isinstance(item, Timing):
            for step, seconds in item.step_s.items():
                self.step_s[step] += seconds
        elif isinstance(item, ClipEnd):
            self._end_clip(number, item)
        elif isinstance(item, ShardFinished):
            if item.entry is not None:
                self._writer.list_shard(item.entry)
            for end in self._unfinished.pop(number, []):
                self._failures.forget({end.clip.clip_id})
                if end.notes:
                    _log.warning("clip %s: %s", end.clip.clip_id, describe_notes(end.notes))
        elif isinstance(item, Lost):
            for end in self._unfinished.pop(number, []):
                self._count(end, -1)
            if item.shard_name is not None:
                remove_unfinished(self._writer.path, item.shard_name)

    def _end_clip(self, number: int, end: ClipEnd) -> None:
        failure = end.failure
        if failure is not None:
            _log.warning("clip %s: %s: %s", failure.clip_id, failure.step, failure.reason)
            self.n_failed += 1
            self._failures.add(failure)
            return
        self._unfinished[number].append(end)
        self._count(end, 1)
        if end.file is not None:
            self._inputs.remember(end.clip.path, end.file)

    def _count(self, end: ClipEnd, sign: int) -> None:
        self.n_done += sign
        self.n_frames += sign * end.n_frames
        self.n_faces += sign * end.n_faces
