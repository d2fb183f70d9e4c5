"""The driver of ``fit --folds``: runs of every fold, and what comes of all folds together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from features.errors import RunError
from features.store.reader import open_store
from train.config import FitConfig
from train.data.splits import join_splits, make_folds, split_stores
from train.data.stores import check_stores, describe_stores
from train.fit import check_results, fit_data
from train.fit_jobs import FitData, FitProgress, Observe
from train.runs.folder import RunSummary, read_run
from train.runs.locks import lock_free
from train.runs.pooled import Pooled, pool_runs, write_pooled

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoldsSummary:
    """What came of all folds."""

    runs: tuple[RunSummary, ...]
    """By fold, head, seed."""
    pooled: tuple[Pooled, ...]
    """By head, seed: the result."""


def run_fit_folds(
    stores: Sequence[Path],
    runs: Path,
    heads: Sequence[str],
    seeds: Sequence[int],
    config: FitConfig,
    *,
    folds: str,
    device: str = "auto",
    memory_gb: float | None = None,
    verify: bool = True,
    progress: Callable[[FitProgress], None] = lambda _: None,
    observe: Observe = lambda *_: None,
) -> FoldsSummary:
    """Train heads once a fold and score the clips of all folds together.

    Every fold's run chooses its epoch on a val split of its own and scores its test clips once;
    the pooled metrics count every clip of the stores once.

    Args:
        stores: As of ``train.fit.run_fit``; the manifests' splits play no part.
        runs: As of ``run_fit``.
        heads: As of ``run_fit``.
        seeds: As of ``run_fit``.
        config: As of ``run_fit``.
        folds: As of ``train.data.splits.make_folds``.
        device: As of ``run_fit``.
        memory_gb: As of ``run_fit``.
        verify: As of ``run_fit``.
        progress: As of ``run_fit``, for each fold.
        observe: As of ``run_fit``.

    Raises:
        ConfigError: As ``run_fit``, or folds that cannot be made.
        ShardError: As ``run_fit``.
        RunError: As ``run_fit``.
    """
    opened = [open_store(path, verify=verify) for path in stores]
    check_stores(join_splits(opened))
    clips = pd.concat([store.clips for store in opened], ignore_index=True)
    described = describe_stores(opened)
    divided = [
        replace(fold, clips_sha256=described["clips_sha256"]) for fold in make_folds(clips, folds)
    ]
    _warn_of(clips)
    summaries: list[RunSummary] = []
    failed: list[RunError] = []
    for fold in divided:
        of_fold = split_stores(opened, fold)
        data = FitData(stores=of_fold, described=describe_stores(of_fold), fold=fold)
        result = fit_data(
            data,
            runs,
            heads,
            seeds,
            config,
            device=device,
            memory_gb=memory_gb,
            progress=progress,
            observe=observe,
        )
        summaries += result.runs
        failed += result.failed
    subjects = dict(zip(clips["clip_id"], clips["subject"], strict=True))
    by_run: dict[tuple[str, int], list[str]] = {}
    for summary in summaries:
        by_run.setdefault((summary.head, summary.seed), []).append(summary.run)
    pooled = []
    for names in by_run.values():
        if len(names) < len(divided):
            continue
        one, predictions = pool_runs([read_run(runs / n) for n in names], described, subjects)
        with lock_free(runs, [one.pooled]) as free:
            if free:  # else another process writes the same
                write_pooled(runs, one, predictions)
        pooled.append(one)
    check_results(failed, len(summaries))
    return FoldsSummary(runs=tuple(summaries), pooled=tuple(pooled))


def _warn_of(clips: pd.DataFrame) -> None:
    n_alone = int((clips["subject"] == "").sum())
    if n_alone:
        _log.warning(
            "%d of %d clips have no subject: each is taken for a subject of its own, and people "
            "may be tested who were trained on. Fill the column subject of the manifest and run "
            "extract again.",
            n_alone,
            len(clips),
        )
    if clips["n_phases"].nunique() > 1:
        _log.warning(
            "%d of %d clips are stored in fewer phases than others, as val and test clips are: in "
            "training they have fewer initial frames to draw from. Extract with --phases 1, or "
            "with the split train for all, to treat all alike.",
            int((clips["n_phases"] < clips["n_phases"].max()).sum()),
            len(clips),
        )
