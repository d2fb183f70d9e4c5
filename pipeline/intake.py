"""Takes what stage one gives into the store, and counts it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, replace

from features.contracts import ClipFeatures
from features.store_index import Failure
from features.store_writer import StoreWriter
from pipeline.failures import FailureLog
from pipeline.flow import ClipEnd
from pipeline.inputs import Inputs
from pipeline.notes import describe_notes
from pipeline.work import Item, Loaded, Timing

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Lane:
    """The clip at hand of one process."""

    part: ClipFeatures | None = None
    """Its last rows."""
    n_frames: int = 0
    n_faces: int = 0


class Intake:
    """Writes clips, keeps failures.csv and inputs.json up to date; counts of a run."""

    def __init__(self, writer: StoreWriter, failures: FailureLog, inputs: Inputs) -> None:
        self.n_done = self.n_failed = self.n_frames = self.n_faces = 0
        self.step_s: dict[str, float] = defaultdict(float)
        """Step -> seconds, as ``Timing`` tells; ``load`` until the first process is ready, and
        ``write``, are this thread's own."""
        self._began_s = time.perf_counter()
        self._writer = writer
        self._failures = failures
        self._inputs = inputs
        self._lanes: dict[int, _Lane] = defaultdict(_Lane)

    def take(self, number: int, item: Item) -> bool:
        """Take what the process of this number gives; returns whether a clip has ended.

        Raises:
            OSError: the store cannot be written (a full disk).
        """
        started_s = time.perf_counter()
        if isinstance(item, Loaded):
            self.step_s.setdefault("load", started_s - self._began_s)
        elif isinstance(item, Timing):
            for step, seconds in item.step_s.items():
                self.step_s[step] += seconds
        elif isinstance(item, ClipEnd):
            self._end_clip(number, item)
        else:
            self._writer.add_rows(item, number)
            lane = self._lanes[number]
            lane.part = item
            lane.n_frames += item.n_frames
            lane.n_faces += item.n_faces
        self.step_s["write"] += time.perf_counter() - started_s
        return isinstance(item, ClipEnd)

    def _end_clip(self, number: int, end: ClipEnd) -> None:
        lane = self._lanes.pop(number, _Lane())
        failure = end.failure
        if failure is None and lane.part is not None and end.file is not None:
            self._writer.close_clip(
                replace(lane.part, sha256=end.file.sha256, notes=end.notes), number
            )
            if end.notes:
                _log.warning("clip %s: %s", end.clip.clip_id, describe_notes(end.notes))
            self._inputs.remember(end.clip.path, end.file)
            self._failures.forget({end.clip.clip_id})
            self.n_done += 1
            self.n_frames += lane.n_frames
            self.n_faces += lane.n_faces
            return
        self._writer.drop_clip(number)
        if failure is None:  # a file that was gone when it was to be hashed
            failure = Failure(
                clip_id=end.clip.clip_id,
                path=str(end.clip.path),
                step="read",
                reason="no such file",
            )
        _log.warning("clip %s: %s: %s", failure.clip_id, failure.step, failure.reason)
        self._failures.add(failure)
        self.n_failed += 1
