"""Runs the trials of a sweep, a batch at a time, from where its storage stands.

What a batch tries, and which of its trials end early, is a function of the trials of the batches
before it: a sweep that was killed goes on with the batch it was at, and ends as if nothing had
happened. On a storage that machines share, each takes the first batch that nobody is at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from optuna.distributions import CategoricalDistribution

from train.config import FitConfig
from train.sweep.space import Grid, Space, list_points, round_settings
from train.sweep.storage import DEAD_AFTER_S, Trial, TrialStorage, make_history
from train.sweep.tables import find_best
from train.sweep.trainer import Judge, TrialTrainer
from train.training.specs import RunSpec, group_specs

TRIALS_AT_ONCE = 8
"""Trials of a batch; so many are drawn at random, and run to their end, before any is judged."""

_WARMUP = 0.25
"""Share of the epochs in which no trial ends early."""

_WAIT_S = 5.0
_RENEW_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to try."""

    head: str
    config: FitConfig
    """Settings of every trial but for those that are varied."""
    space: Space
    n_trials: int = 0
    """Trials to draw from the space; 0: all combinations of its choices."""
    trial_seeds: int = 1
    """Runs of each trial; the median counts."""

    def __post_init__(self) -> None:
        if not self.n_trials and len(self.grid) < len(self.space):
            raise ValueError("a grid has choices only")

    @property
    def is_drawn(self) -> bool:
        return self.n_trials > 0

    @property
    def grid(self) -> Grid:
        """The settings of the space that are choices."""
        return {k: c for k, c in self.space.items() if isinstance(c, CategoricalDistribution)}

    def list_points(self) -> list[dict[str, Any]]:
        """The points of a grid, those that train together side by side."""
        points = list_points(self.grid)
        specs = [RunSpec(seed=i, config=self.configure(p)) for i, p in enumerate(points)]
        return [points[spec.seed] for group in group_specs(specs) for spec in group]

    def configure(self, settings: Mapping[str, Any]) -> FitConfig:
        """The settings of a trial."""
        return replace(self.config, **settings)


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """How far a sweep has come, for a progress bar."""

    n_done: int
    n_trials: int
    epoch: int = 0
    """Of the batch at hand; 0 between batches."""
    best: float = 0.0
    """The highest value of a finished trial so far, 0..1."""


def run_trials(
    sweep: Sweep,
    storage: TrialStorage,
    trainer: TrialTrainer,
    *,
    n_epochs: int,
    wait: bool,
    progress: Callable[[SweepProgress], None],
) -> list[Trial]:
    """Try what is not tried yet; all finished trials, in order.

    Args:
        sweep: What to try.
        storage: Of its trials.
        trainer: Of its head, on its stores.
        n_epochs: Of a trial.
        wait: For the trials that other machines are at. Without it they are waited for only until
            one trial is complete.
        progress: Told of every epoch and of every batch.
    """
    points = [] if sweep.is_drawn else sweep.list_points()
    n_trials = sweep.n_trials or len(points)
    batches = [
        range(begin, min(begin + TRIALS_AT_ONCE, n_trials))
        for begin in range(0, n_trials, TRIALS_AT_ONCE)
    ]
    while True:
        done = {slot: trial for slot, trial in storage.read().items() if slot < n_trials}
        best = find_best(list(done.values()))
        told = SweepProgress(
            n_done=len(done), n_trials=n_trials, best=0.0 if best is None else best.value or 0.0
        )
        progress(told)
        claimed = storage.list_claimed()
        left = [batch for batch in batches if any(slot not in done for slot in batch)]
        free = [batch for batch in left if claimed.isdisjoint(batch)]
        if not left or not (free or wait or best is None):
            return list(done.values())
        if not free:  # other machines are at what is left
            time.sleep(_WAIT_S)
            storage.give_up_dead(DEAD_AFTER_S)
            continue
        settings, judge = _plan_batch(sweep, free[0], points, done, n_epochs)
        ids = storage.claim({slot: settings[slot] for slot in settings if slot not in done})
        if not ids:
            continue
        tell = partial(_tell_epoch, progress, told)
        _run_batch(sweep, storage, trainer, settings, ids, judge, tell)


def _tell_epoch(progress: Callable[[SweepProgress], None], told: SweepProgress, epoch: int) -> None:
    progress(replace(told, epoch=epoch))


def _run_batch(
    sweep: Sweep,
    storage: TrialStorage,
    trainer: TrialTrainer,
    batch: Mapping[int, Mapping[str, Any]],
    ids: dict[int, int],
    judge: Judge,
    tell: Callable[[int], None],
) -> None:
    """Train a batch, slot -> settings, and write the trials that are claimed.

    All of it is trained even where some is written: the numbers are those of the whole batch.
    """
    renewed_s = time.monotonic()

    def tell_epoch(epoch: int) -> None:
        nonlocal renewed_s
        if time.monotonic() - renewed_s > _RENEW_S:
            storage.renew(ids.values())
            renewed_s = time.monotonic()
        tell(epoch)

    try:
        trained = trainer.train(
            [sweep.configure(settings) for settings in batch.values()],
            sweep.trial_seeds,
            judge,
            tell_epoch,
        )
        for slot, one in zip(batch, trained, strict=True):
            if slot in ids:
                trial = Trial(
                    slot=slot,
                    settings=batch[slot],
                    state=one.state,
                    by_epoch=one.by_epoch,
                    result=one.result,
                )
                storage.write(ids.pop(slot), trial)
    except BaseException:  # an interrupt as well: what is not written is free for others at once
        storage.give_up(ids.values())
        raise


def _plan_batch(
    sweep: Sweep,
    slots: range,
    points: Sequence[Mapping[str, Any]],
    done: Mapping[int, Trial],
    n_epochs: int,
) -> tuple[dict[int, Mapping[str, Any]], Judge]:
    """What each slot of a batch tries, and when one ends early: by the trials before the batch."""
    if not sweep.is_drawn:
        return {slot: points[slot] for slot in slots}, lambda *_: False  # a grid is compared whole
    history = make_history(
        [trial for slot, trial in done.items() if slot < slots[0]],
        sweep.space,
        seed=slots[0],
        n_startup=TRIALS_AT_ONCE,
        n_warmup=int(_WARMUP * n_epochs),
    )
    # Always as many as a whole batch: what is drawn does not depend on how many are asked for.
    drawn = [history.ask(dict(sweep.space)) for _ in range(TRIALS_AT_ONCE)]

    def judge(place: int, epoch: int, value: float) -> bool:
        drawn[place].report(value, epoch)
        return drawn[place].should_prune()

    trials = zip(slots, drawn, strict=False)
    return {slot: round_settings(sweep.space, trial.params) for slot, trial in trials}, judge
