"""The driver of ``sweep``: tries settings of one head on train and val, and trains the best ones.

Trials are tried a batch at a time, as one batched model where their settings allow. What a batch
tries, and which of its trials end early, is a function of the trials of the batches before it:
a sweep that was killed goes on with the batch it was at, and ends as if nothing had happened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from features.disk import write_atomically
from features.errors import ConfigError, RunError
from features.fingerprint import hash_json
from features.store import open_store
from train.config import FitConfig, check_heads, choose_settings
from train.fit import FitProgress, run_fit
from train.folds import leave_out_test
from train.runs import RunSummary
from train.search import Choices, Space, describe_space, list_points, round_settings
from train.specs import RunSpec, group_specs
from train.stores import check_stores, describe_stores
from train.sweep_tables import find_best, tabulate_importance, tabulate_trials
from train.sweep_training import Judge, TrialTrainer
from train.training import plan_epochs
from train.trials import (
    DEAD_AFTER_S,
    Trial,
    TrialStorage,
    describe_distributions,
    make_history,
)

TRIALS_AT_ONCE = 8
"""Trials of a batch; so many are drawn at random, and run to their end, before any is judged."""

SWEEP_FORMAT = "caca-rnn-sweep"
SWEEP_VERSION = 1

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
        if not self.n_trials and not all(isinstance(c, Choices) for c in self.space.values()):
            raise ValueError("a grid has choices only")

    @property
    def is_drawn(self) -> bool:
        return self.n_trials > 0

    def list_points(self) -> list[dict[str, Any]]:
        """The points of a grid, those that train together side by side."""
        points = list_points({k: c for k, c in self.space.items() if isinstance(c, Choices)})
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


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepSummary:
    """What came of a sweep."""

    folder: Path
    """sweep.json, trials.csv and importance.csv."""
    trials: pd.DataFrame
    importance: pd.DataFrame
    best: Trial
    runs: tuple[RunSummary, ...]
    """The best trial's settings over seeds."""


def run_sweep(
    stores: Sequence[Path],
    runs: Path,
    sweep: Sweep,
    seeds: Sequence[int],
    *,
    test_stores: Sequence[Path] = (),
    storage: str = "",
    device: str = "cpu",
    progress: Callable[[SweepProgress], None] = lambda _: None,
    fit_progress: Callable[[FitProgress], None] = lambda _: None,
) -> SweepSummary:
    """Try settings on train and val, then train the best over seeds as ``fit`` does.

    Test is not read while settings are tried; the runs of the best trial score it once each.

    Args:
        stores: As of ``run_fit``.
        runs: Folder of run folders. The sweep's own is in it: ``sweep-HEAD-HASH``.
        sweep: What to try.
        seeds: Of the runs with the best settings; none: nothing is trained after the trials, and
            trials that other machines are at are not waited for.
        test_stores: As of ``run_fit``; not opened before the last trial is finished.
        storage: URL of an Optuna storage that several machines share; empty: a SQLite file in the
            sweep's folder, whose transactions survive the death of the process at any moment.
        device: As of ``run_fit``.
        progress: Told of every epoch and every batch of trials.
        fit_progress: As of ``run_fit``.

    Raises:
        ConfigError: As of ``run_fit``; or another process is at this sweep.
        ShardError: As of ``run_fit``.
        RunError: No trial came to a finite loss.
    """
    check_heads([sweep.head])
    opened = leave_out_test([open_store(path) for path in stores])
    check_stores(opened)
    described = describe_stores(opened)
    key = hash_json(
        [
            choose_settings(sweep.head, sweep.config),
            describe_space(sweep.space),
            ["grid", "trials"][sweep.is_drawn],
            sweep.trial_seeds,
            described["fingerprint"],
            described["clips_sha256"],
        ]
    )
    name = f"{sweep.head}-{key[:12]}"
    folder = runs / f"sweep-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if storage else _lock(folder):
        trial_storage = TrialStorage(
            storage or f"sqlite:///{folder / 'trials.db'}", name, sweep.space
        )
        trial_storage.give_up_dead(DEAD_AFTER_S if storage else 0.0)
        n_train = described["splits"]["train"]["n_labelled"]
        trials = _run_trials(
            sweep,
            trial_storage,
            TrialTrainer(opened, sweep.head, device=device),
            n_epochs=plan_epochs(max(n_train, 1), sweep.config).n_epochs,
            wait=bool(seeds),
            progress=progress,
        )
        best = find_best(trials)
        if best is None:
            raise RunError(
                f"{folder}: none of {len(trials)} trials has come to a finite loss. Try smaller "
                "steps, for example --grid lr=1e-5,1e-4."
            )
        table = tabulate_trials(trials, sweep.space, sweep.config.select)
        importance = tabulate_importance(trials, sweep.space, drawn=sweep.is_drawn)
        summaries = (
            run_fit(
                stores,
                runs,
                [sweep.head],
                seeds,
                sweep.configure(best.settings),
                test_stores=test_stores,
                device=device,
                progress=fit_progress,
            )
            if seeds
            else []
        )
        write_atomically(folder / "trials.csv", _write_csv(table))
        write_atomically(folder / "importance.csv", _write_csv(importance))
        told = {
            "format": SWEEP_FORMAT,
            "version": SWEEP_VERSION,
            "head": sweep.head,
            "kind": "trials" if sweep.is_drawn else "grid",
            "settings": choose_settings(sweep.head, sweep.config),
            "space": describe_space(sweep.space),
            "trial_seeds": sweep.trial_seeds,
            "store": {name: described[name] for name in ("fingerprint", "clips_sha256")},
            "best": {"trial": best.slot, "value": best.value, "settings": dict(best.settings)},
            "runs": [summary.run for summary in summaries],
        }
        write_atomically(folder / "sweep.json", json.dumps(told, indent=1) + "\n")
    return SweepSummary(
        folder=folder, trials=table, importance=importance, best=best, runs=tuple(summaries)
    )


def _run_trials(
    sweep: Sweep,
    storage: TrialStorage,
    trainer: TrialTrainer,
    *,
    n_epochs: int,
    wait: bool,
    progress: Callable[[SweepProgress], None],
) -> list[Trial]:
    """Try what is not tried yet; all finished trials, in order."""
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
        if not free and (not left or not wait):
            return list(done.values())
        if not free:  # other machines are at what is left
            time.sleep(_WAIT_S)
            storage.give_up_dead(DEAD_AFTER_S)
            continue
        batch = _plan_batch(sweep, free[0], points, done, n_epochs)
        _run_batch(
            sweep, storage, trainer, batch, lambda epoch: progress(replace(told, epoch=epoch))
        )


def _run_batch(
    sweep: Sweep,
    storage: TrialStorage,
    trainer: TrialTrainer,
    batch: _Batch,
    tell: Callable[[int], None],
) -> None:
    """Claim the trials of a batch that are missing, train the batch, write those.

    All of it is trained even where some is written: the numbers are those of the whole batch.
    """
    ids = storage.claim({slot: batch.settings[slot] for slot in batch.missing})
    if not ids:
        return
    renewed_s = time.monotonic()

    def tell_epoch(epoch: int) -> None:
        nonlocal renewed_s
        if time.monotonic() - renewed_s > _RENEW_S:
            storage.renew(ids.values())
            renewed_s = time.monotonic()
        tell(epoch)

    try:
        trained = trainer.train(
            [sweep.configure(settings) for settings in batch.settings.values()],
            sweep.trial_seeds,
            batch.judge,
            tell_epoch,
        )
        for slot, one in zip(batch.settings, trained, strict=True):
            if slot in ids:
                trial = Trial(
                    slot=slot,
                    settings=batch.settings[slot],
                    state=one.state,
                    by_epoch=one.by_epoch,
                    result=one.result,
                )
                storage.write(ids.pop(slot), trial)
    except BaseException:  # an interrupt as well: what is not written is free for others at once
        storage.give_up(ids.values())
        raise


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """The trials that are tried together."""

    settings: Mapping[int, Mapping[str, Any]]
    """Slot -> what it tries."""
    missing: tuple[int, ...]
    """Slots that are not finished."""
    judge: Judge


def _plan_batch(
    sweep: Sweep,
    slots: range,
    points: Sequence[Mapping[str, Any]],
    done: Mapping[int, Trial],
    n_epochs: int,
) -> _Batch:
    """What the trials of a batch try, and when one ends early: by the trials before the batch."""
    missing = tuple(slot for slot in slots if slot not in done)
    if not sweep.is_drawn:
        return _Batch(
            settings={slot: points[slot] for slot in slots},
            missing=missing,
            judge=lambda *_: False,  # a grid is compared whole
        )
    history = make_history(
        [trial for slot, trial in done.items() if slot < slots[0]],
        sweep.space,
        seed=slots[0],
        n_startup=TRIALS_AT_ONCE,
        n_warmup=int(_WARMUP * n_epochs),
    )
    distributions = describe_distributions(sweep.space)
    # Always as many as a whole batch: what is drawn does not depend on how many are asked for.
    drawn = [history.ask(distributions) for _ in range(TRIALS_AT_ONCE)]

    def judge(place: int, epoch: int, value: float) -> bool:
        drawn[place].report(value, epoch)
        return drawn[place].should_prune()

    return _Batch(
        settings={
            slot: round_settings(sweep.space, trial.params)
            for slot, trial in zip(slots, drawn, strict=False)
        },
        missing=missing,
        judge=judge,
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time: what it finds unfinished was left by a process that is gone."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another process is at this sweep. Wait for it, or share the trials by "
            "--storage."
        ) from error


def _write_csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n", float_format="%.9g")
