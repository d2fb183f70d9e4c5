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
        folds: As of ``run_fit_folds``, if there are some; nobody knows how many runs a fold for
            each source makes.
    """
    wanted: int | None = n_runs
    if folds is not None:
        wanted = n_runs * int(folds) if folds.isdecimal() else None
    n_done = n_failed = 0
    under_way: dict[tuple[str, int], float] = {}  # (head, seed) -> share of its epochs

    def count(event: FitProgress) -> None:
        nonlocal wanted, n_done, n_failed
        runs = [(event.head, seed) for seed in event.seeds]
        if event.state in ("skipped", "scored"):  # no work: they leave the count
            if event.state == "skipped":  # fit itself says which it scores
                _log.info("%s: %d complete runs are kept", event.head, len(runs))
            wanted = None if wanted is None else max(wanted - len(runs), 0)
        elif event.state == "training":
            under_way.update(dict.fromkeys(runs, event.epoch / event.n_epochs))
        else:
            n_done += len(runs)
            n_failed += len(runs) * (event.state == "failed")
            for run in runs:
                under_way.pop(run, None)
        show(
            n_done,
            wanted,
            under_way=sum(under_way.values()),
            n_failed=n_failed,
            note=f"{event.head}: epoch {event.epoch} of {event.n_epochs}" if event.epoch else "",
        )

    return count


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
