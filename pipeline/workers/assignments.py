"""Which clips are left, which worker holds which, and what becomes of those of one that died."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from features.contracts import Clip
from features.errors import WorkerError
from pipeline.workers.messages import Death

_log = logging.getLogger(__name__)

_DEATHS_BEFORE_PROBE = 3
"""Clips in a row that end their worker the same way, before another tells whose fault it is."""
_IDLE_DEATHS = 3
"""Workers that end while they hold no clip, with no shard finished between, before the run ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A clip that is to be extracted."""

    clip: Clip
    alone: bool = False
    """In a worker that holds no other at the time: it may end its worker."""
    fresh: bool = False
    """In one that has held no clip before: so its end is this clip's doing."""
    is_probe: bool = False
    """Tells whether workers work at all."""
    was_done: bool = False
    """Its result is in the store already."""


@dataclass(kw_only=True)
class _Place:
    """A worker, or those that replace it one after another."""

    held: list[Task] = field(default_factory=list)
    """In the order in which they were given, which is that of their ends."""
    unfinished: list[Task] = field(default_factory=list)
    """Those that have ended, but are only in the worker's unfinished shard."""
    n_given: int = 0
    """Clips that the present worker was given."""
    n_deaths: int = 0
    """Clips in a row that ended their worker, alone and fresh, the same way."""
    kind: str = ""
    """Which."""
    has_progressed: bool = False
    """The present worker has done a clip of a shard."""
    probe: Task | None = None
    """Comes before all else."""


class Assignments:
    """Hands out clips, to workers by their number; all decisions, no process.

    When a worker dies, the clips of its unfinished shard are extracted again, as they were; those
    that it held are tried again, each alone. One that ends a fresh worker, alone, is given up.
    Where that happens to several in a row, the same way, a clip that is known to be good is tried:
    should that fail, too, the clips are not to blame.
    """

    def __init__(self, clips: Sequence[Clip], alone_ids: Collection[str] = ()) -> None:
        """alone_ids: clips that ended their worker in an earlier run: alone, after all others."""
        self._waiting = deque(Task(clip=clip) for clip in clips if clip.clip_id not in alone_ids)
        self._waiting += [Task(clip=c, alone=True) for c in clips if c.clip_id in alone_ids]
        self._places: dict[int, _Place] = defaultdict(_Place)
        self._n_idle_deaths = 0
        self._last_done: Clip | None = None

    @property
    def are_waiting(self) -> bool:
        """Whether there is a clip that no worker holds."""
        return bool(self._waiting) or any(place.probe for place in self._places.values())

    def give(self, number: int) -> Clip | None:
        """The next clip for a worker; None: none now, so it should end those that it holds."""
        place = self._places[number]
        task = self._choose(place)
        if task is None:
            return None
        place.held.append(task)
        place.n_given += 1
        return task.clip

    def find(self, number: int, clip_id: str) -> Task | None:
        """A clip that a worker holds."""
        return next((t for t in self._places[number].held if t.clip.clip_id == clip_id), None)

    def holds_any(self, number: int) -> bool:
        """Whether a worker holds a clip."""
        return bool(self._places[number].held)

    def end(self, number: int, *, failed: bool) -> None:
        """The first of a worker's clips has ended, one way or the other; the worker lives."""
        place = self._places[number]
        task = place.held.pop(0)
        place.n_deaths = 0
        if not failed:
            self._last_done = task.clip
            if not task.was_done:
                place.unfinished.append(task)

    def finish(self, number: int) -> None:
        """The clips of a worker that have ended are in a finished shard."""
        self._places[number].unfinished.clear()
        self._n_idle_deaths = 0

    def note_progress(self, number: int) -> None:
        """A worker has done a clip of the shard that it holds: workers work."""
        place = self._places[number]
        place.n_deaths, place.has_progressed = 0, True

    def try_again(self, clip: Clip) -> None:
        """Hand out again, alone, one that was given up, as another part of it may be at fault."""
        self._waiting.appendleft(Task(clip=clip, alone=True))

    def lose(self, number: int, death: Death, suspect_id: str | None = None) -> list[Clip]:
        """A worker has died. Returns clips that are given up; others that it held are tried again.

        Args:
            number: Its own.
            death: How.
            suspect_id: The clip that most likely is the cause; one given later is not. None: each
                may be.

        Raises:
            WorkerError: it is not the clips' doing.
        """
        place = self._places[number]
        held, n_given, unfinished = place.held, place.n_given, place.unfinished
        has_progressed, place.has_progressed = place.has_progressed, False
        self._waiting.extendleft(Task(clip=task.clip) for task in reversed(unfinished))
        place.held, place.unfinished, place.n_given = [], [], 0
        if not held:
            self._n_idle_deaths += 1
            if self._n_idle_deaths == _IDLE_DEATHS:
                raise WorkerError(
                    f"{_IDLE_DEATHS} workers in a row ended while they held no clip: the last one "
                    f"{death.reason}. What was done is kept; run the same again."
                )
            _log.warning(
                "worker %d %s; clips of its unfinished shard, to be extracted again: %d",
                number,
                death.reason,
                len(unfinished),
            )
            return []
        if held[0].is_probe and not has_progressed:
            raise WorkerError(_describe_fault(held[0], death))
        if held[0].was_done:
            return []
        if held[0].alone and n_given == 1:
            self._count_death(place, death)
            return [held[0].clip]
        if held[0].alone:
            suspect_id = held[0].clip.clip_id
        again = _order_again(held, suspect_id)
        self._waiting.extendleft(reversed(again))
        _log.warning(
            "worker %d %s; clips to be tried again: %s",
            number,
            death.reason,
            ", ".join(task.clip.clip_id for task in again),
        )
        return []

    def _choose(self, place: _Place) -> Task | None:
        if place.held and place.held[0].alone:
            return None
        if place.probe is not None and not place.held:
            task, place.probe = place.probe, None
            return task
        # There are never more fresh ones than workers that can take them.
        fresh = (t for t in self._waiting if t.fresh) if place.n_given == 0 else ()
        others = (t for t in self._waiting if not t.fresh and not (t.alone and place.held))
        chosen = next(chain(fresh, others), None)
        if chosen is not None:
            self._waiting.remove(chosen)
        return chosen

    def _count_death(self, place: _Place, death: Death) -> None:
        place.n_deaths = place.n_deaths + 1 if death.kind == place.kind else 1
        place.kind = death.kind
        if place.n_deaths < _DEATHS_BEFORE_PROBE:
            return
        place.n_deaths = 0
        if self._last_done is not None:
            place.probe = Task(clip=self._last_done, alone=True, is_probe=True, was_done=True)
        elif self._waiting and not self._waiting[-1].alone:
            # The one farthest from those that failed, which may be of one kind.
            place.probe = replace(self._waiting.pop(), alone=True, is_probe=True)


def _order_again(held: Sequence[Task], suspect_id: str | None) -> list[Task]:
    """How the clips of a worker that died are tried again: the suspect first."""
    for position, task in enumerate(held):
        if task.clip.clip_id == suspect_id:
            suspect = replace(task, alone=True, fresh=True)
            before = [replace(other, alone=True) for other in held[:position]]
            return [suspect, *before, *held[position + 1 :]]
    return [replace(task, alone=True) for task in held]


def _describe_fault(probe: Task, death: Death) -> str:
    witness = "which was extracted before" if probe.was_done else "which nothing speaks against"
    return (
        f"{_DEATHS_BEFORE_PROBE} clips in a row ended their worker the same way, and so did "
        f"{probe.clip.clip_id}, {witness}: its worker {death.reason}. "
        "So the machine or the settings are at fault, not the clips; those that are left were not "
        "tried. What was done is kept; run the same again when this is mended."
    )
