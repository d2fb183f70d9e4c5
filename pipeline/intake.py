"""Takes what stage one gives into the store, and counts it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, replace

from features.contracts import ClipFeatures
from features.store.writer import StoreWriter
from pipeline.decode.notes import describe_notes
from pipeline.failures import FailureLog
from pipeline.inputs import Inputs
from pipeline.workers.messages import ClipEnd, Item, Loaded, Lost, Timing

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _ClipAtHand:
    """The clip that a worker is giving the rows of."""

    part: ClipFeatures
    """Its last rows."""
    n_frames: int = 0
    n_faces: int = 0


class Intake:
    """Writes clips, keeps failures.csv and inputs.json up to date; counts of a run."""

    def __init__(
        self, writer: StoreWriter, failures: FailureLog, inputs: Inputs, began_s: float
    ) -> None:
        """began_s: when the run began, by ``time.perf_counter``."""
        self.n_done = self.n_failed = self.n_frames = self.n_faces = 0
        self.step_s: dict[str, float] = defaultdict(float)
        """Step -> seconds, as ``Timing`` tells; ``load``, from the run's beginning until the first
        worker is ready, and ``write`` are this thread's own."""
        self._began_s = began_s
        self._writer = writer
        self._failures = failures
        self._inputs = inputs
        self._at_hand: dict[int, _ClipAtHand] = {}
        """Worker -> its clip."""

    def take(self, number: int, item: Item) -> bool:
        """Take what the worker of this number gives; returns whether a clip has ended.

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
        elif isinstance(item, Lost):
            self._writer.drop_clip(number)
            self._at_hand.pop(number, None)
        else:
            self._writer.add_rows(item, number)
            clip = self._at_hand.setdefault(number, _ClipAtHand(part=item))
            clip.part = item
            clip.n_frames += item.n_frames
            clip.n_faces += item.n_faces
        self.step_s["write"] += time.perf_counter() - started_s
        return isinstance(item, ClipEnd)

    def _end_clip(self, number: int, end: ClipEnd) -> None:
        clip = self._at_hand.pop(number, None)
        if end.failure is not None:
            self._writer.drop_clip(number)
            failure = end.failure
            _log.warning("clip %s: %s: %s", failure.clip_id, failure.step, failure.reason)
            self._failures.add(failure)
            self.n_failed += 1
            return
        if clip is None or end.file is None:
            raise ValueError(f"clip {end.clip.clip_id} has ended without a row")
        shard_is_finished = self._writer.close_clip(
            replace(clip.part, sha256=end.file.sha256, notes=end.notes), number
        )
        if end.notes:
            _log.warning("clip %s: %s", end.clip.clip_id, describe_notes(end.notes))
        self._inputs.remember(end.clip.path, end.file)
        self._failures.forget({end.clip.clip_id})
        self.n_done += 1
        self.n_frames += clip.n_frames
        self.n_faces += clip.n_faces
        if shard_is_finished:  # a kill must not cost the hashes of what it leaves
            self._inputs.write()
