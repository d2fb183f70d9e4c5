"""Counts what ``fit`` and ``sweep`` tell of their runs, for ``features.console``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.console import Show
    from train.fit_jobs import FitProgress
    from train.sweep.batches import SweepProgress

_log = logging.getLogger(__name__)


def count_runs(
    show: Show, n_runs: int, *, folds: str | None = None
) -> Callable[[FitProgress], None]:
    """What ``run_fit`` and ``run_fit_folds`` are to tell.

    Args:
        show: Where it is shown.
        n_runs: Of all heads, an ensemble's members among them, and seeds.
        folds: As of ``run_fit_folds``, if there are some.
    """
    if folds is None:
        return _RunCounter(show, n_runs).show_fit
    return _RunCounter(show, n_runs * int(folds) if folds.isdecimal() else None).show_fit


class _RunCounter:
    """Runs that are done, and how far those under way have come."""

    def __init__(self, show: Show, n_runs: int | None) -> None:
        """n_runs: Runs asked for; None where nobody knows, as with a fold for each source."""
        self._show = show
        self._n_runs = n_runs
        self._n_done = self._n_failed = 0
        self._under_way: dict[tuple[str, int], float] = {}
        """(head, seed) -> share of its epochs."""

    def show_fit(self, event: FitProgress) -> None:
        """Take what ``fit`` tells. Runs that were complete before are no work: they leave the
        count."""
        runs = [(event.head, seed) for seed in event.seeds]
        if event.state in ("skipped", "scored"):
            if event.state == "skipped":  # fit itself says which it scores
                _log.info("%s: %d complete runs are kept", event.head, len(runs))
            if self._n_runs is not None:
                self._n_runs = max(self._n_runs - len(runs), 0)
        elif event.state == "training":
            self._under_way |= dict.fromkeys(runs, event.epoch / event.n_epochs)
        else:
            self._n_done += len(runs)
            self._n_failed += len(runs) * (event.state == "failed")
            for run in runs:
                self._under_way.pop(run, None)
        self._show(
            self._n_done,
            self._n_runs,
            under_way=sum(self._under_way.values()),
            n_failed=self._n_failed,
            note=f"{event.head}: epoch {event.epoch} of {event.n_epochs}" if event.epoch else "",
        )


class TrialCounter:
    """Trials of a sweep, then the runs with the best settings."""

    def __init__(self, show: Show, head: str, n_seeds: int) -> None:
        self._show, self._head, self._n_seeds = show, head, n_seeds
        self._n_trials = 0

    def show_sweep(self, event: SweepProgress) -> None:
        """Take what ``sweep`` tells of its trials."""
        self._n_trials = event.n_trials
        epoch = f"epoch {event.epoch}, " if event.epoch else ""
        self._show(event.n_done, event.n_trials, note=f"{epoch}best {100 * event.best:.2f}")

    def show_fit(self, event: FitProgress) -> None:
        """Take what ``fit`` tells of the last runs."""
        note = f"{self._head}, best settings, {self._n_seeds} seeds: epoch {event.epoch}"
        self._show(self._n_trials, self._n_trials, note=note)
