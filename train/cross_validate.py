"""The driver of ``fit --folds``: runs of every fold, and what comes of all folds together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from features.errors import ConfigError
from features.store.reader import open_store
from train.config import check_head_streams, expand_heads
from train.data.splits import leave_out_clips, make_folds
from train.data.store_streams import find_lacking
from train.data.stores import check_stores, describe_stores
from train.fit import FitResult, fit_data
from train.fit_jobs import FitData, FitProgress, Observe
from train.request import FitRequest
from train.runs.folder import read_run
from train.runs.locks import lock_free
from train.runs.pooled import pool_runs, write_pooled

_log = logging.getLogger(__name__)


def run_fit_folds(
    request: FitRequest,
    *,
    folds: str,
    progress: Callable[[FitProgress], None] = lambda _: None,
    observe: Observe = lambda *_: None,
) -> FitResult:
    """Train heads once a fold and score the clips of all folds together.

    Every fold's run chooses its epoch on a val split of its own and scores its test clips once;
    the pooled metrics count every clip of the stores once.

    Args:
        request: As of ``train.fit.run_fit``; the manifests' splits play no part.
        folds: As of ``train.data.splits.make_folds``.
        progress: As of ``run_fit``, for each fold.
        observe: As of ``run_fit``.

    Raises:
        ConfigError: As ``run_fit``; folds that cannot be made, or test stores beside them.
        ShardError: As ``run_fit``.
        RunError: As ``run_fit``.
    """
    if request.test_stores:
        raise ConfigError("--folds tests every clip of --store; --test-store cannot join it.")
    heads = expand_heads(request.heads, request.config)
    check_head_streams(heads, request.config)
    whole = [open_store(path, verify=request.verify) for path in request.stores]
    ids = pd.concat([store.clips["clip_id"] for store in whole])
    in_one_split = dict.fromkeys(ids, "train")  # the manifest's play no part
    together = [store.with_splits(in_one_split) for store in whole]
    check_stores(together)
    lacking = find_lacking(heads, request.config, together)
    opened = leave_out_clips(whole, lacking)
    clips = pd.concat([store.clips for store in opened], ignore_index=True)
    described = describe_stores(opened, len(lacking))
    divided = [
        replace(fold, clips_sha256=described["clips_sha256"]) for fold in make_folds(clips, folds)
    ]
    _warn_of(clips)
    results = []
    for fold in divided:
        stores = [store.with_splits(fold.splits) for store in opened]
        check_stores(stores)
        of_fold = describe_stores(stores, len(lacking))
        data = FitData(stores=stores, described=of_fold, fold=fold)
        results.append(fit_data(data, request, progress=progress, observe=observe))
    summaries = [summary for result in results for summary in result.runs]
    subjects = dict(zip(clips["clip_id"], clips["subject"], strict=True))
    by_run: dict[tuple[str, int], list[Path]] = {}
    for summary in summaries:
        by_run.setdefault((summary.head, summary.seed), []).append(request.runs / summary.run)
    pooled = []
    for paths in by_run.values():
        if len(paths) < len(divided):
            continue
        one, predictions = pool_runs(list(map(read_run, paths)), described, subjects)
        with lock_free(request.runs, [one.pooled]) as free:
            if free:  # else another process writes the same
                write_pooled(request.runs, one, predictions)
        pooled.append(one)
    return FitResult(
        runs=tuple(summaries),
        pooled=tuple(pooled),
        failed=tuple(error for result in results for error in result.failed),
    ).check()


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
