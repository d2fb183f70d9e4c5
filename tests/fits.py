"""``run_fit`` and ``run_fit_folds`` in one line: what tests ask of them differs in little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.config import FitConfig
from train.cross_validate import run_fit_folds
from train.fit import FitResult, run_fit
from train.fit_jobs import FitProgress
from train.request import FitRequest
from train.runs.folder import RunSummary


def fit_runs(
    stores: Sequence[Path],
    runs: Path,
    heads: Sequence[str],
    seeds: Sequence[int],
    config: FitConfig,
    *,
    progress: Callable[[FitProgress], None] = lambda _: None,
    **asked: Any,
) -> list[RunSummary]:
    """asked: Other fields of ``FitRequest``."""
    request = FitRequest(stores=stores, runs=runs, heads=heads, seeds=seeds, config=config, **asked)
    return run_fit(request, progress=progress)


def fit_folds(
    stores: Sequence[Path],
    runs: Path,
    heads: Sequence[str],
    seeds: Sequence[int],
    config: FitConfig,
    *,
    folds: str,
    progress: Callable[[FitProgress], None] = lambda _: None,
) -> FitResult:
    """The runs of all folds, and what comes of them together."""
    request = FitRequest(stores=stores, runs=runs, heads=heads, seeds=seeds, config=config)
    return run_fit_folds(request, folds=folds, progress=progress)
