"""The driver of ``fit``: stores to run folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from features.errors import RunError
from features.networks.runtime import choose_device, choose_precision
from features.store.reader import open_store
from train.config import check_head_streams, expand_heads
from train.data.clips import check_train_table, check_val_table
from train.data.splits import leave_out_clips, split_test_stores
from train.data.store_streams import choose_matrices, find_lacking
from train.data.stores import check_stores, describe_stores, list_clips
from train.fit_jobs import FitData, FitJobs, FitProgress, Observe
from train.naming import hash_runs
from train.request import FitRequest
from train.runs.folder import RunSummary, is_run, name_run, read_summary
from train.runs.locks import check_writable
from train.runs.pooled import Pooled
from train.streams import ENSEMBLE


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What came of a fit."""

    runs: tuple[RunSummary, ...]
    """metrics.json of every run asked for, by fold, head, seed; without those that failed."""
    pooled: tuple[Pooled, ...] = ()
    """All folds together, by head, seed, where there are folds."""
    failed: tuple[RunError, ...] = ()
    """Why the other runs have none."""

    def check(self) -> FitResult:
        """The same. Raises FailedRunsError where runs came to no result."""
        if self.failed:
            raise FailedRunsError(self)
        return self


class FailedRunsError(RunError):
    """Some runs came to no result; those that are complete are kept, and in ``result``."""

    def __init__(self, result: FitResult) -> None:
        reasons = "\n".join(f"    {error}" for error in result.failed)
        super().__init__(
            f"{len(result.failed)} of {len(result.runs) + len(result.failed)} run(s) came to no "
            f"result; the others are complete and kept.\n{reasons}"
        )
        self.result = result


def run_fit(
    request: FitRequest,
    *,
    progress: Callable[[FitProgress], None] = lambda _: None,
    observe: Observe = lambda *_: None,
) -> list[RunSummary]:
    """Train heads on stores, one run folder a head and seed; complete runs are not trained again.

    The seeds of a head are trained side by side. The epoch is chosen on val; test is scored once,
    with that epoch. A complete run whose val and test clips are others than when it was scored,
    but for those that chose its epoch, is scored again without training.

    Args:
        request: What is to be trained on what.
        progress: Told of every epoch and of skipped and finished runs.
        observe: Told of a run's name and its epoch, after each.

    Returns:
        metrics.json of every run asked for, by head, then seed.

    Raises:
        ConfigError: Stores that do not fit together or lack what a head reads, no room for features
            on disk, no such device.
        ShardError: A store cannot be read, has no labelled train or val clip, a single class, or
            features that are not finite.
        RunError: ``runs`` cannot be written or something else stands in a run's place, both before
            training.
        FailedRunsError: Losses were not a number; the other runs are complete, and in its result.
    """
    heads = expand_heads(request.heads, request.config)
    check_head_streams(heads, request.config)
    opened = [open_store(path, verify=request.verify) for path in request.stores]
    paths: dict[str, list[str]] = {}
    if request.test_stores:
        tested = [open_store(path, verify=request.verify) for path in request.test_stores]
        opened = split_test_stores(opened, tested)
        paths = {
            "paths": list(map(str, request.stores)),
            "test_paths": list(map(str, request.test_stores)),
        }
    check_stores(opened)
    lacking = find_lacking(heads, request.config, opened)
    kept = leave_out_clips(opened, lacking)
    data = FitData(stores=kept, described=describe_stores(kept, len(lacking)) | paths)
    return list(fit_data(data, request, progress=progress, observe=observe).check().runs)


def fit_data(
    data: FitData,
    request: FitRequest,
    *,
    progress: Callable[[FitProgress], None] = lambda _: None,
    observe: Observe = lambda *_: None,
) -> FitResult:
    """As ``run_fit``, on stores that are checked; runs without a result are told, not raised."""
    device = choose_device(request.device)
    config = replace(request.config, precision=choose_precision(request.config.precision, device))
    heads = expand_heads(request.heads, config)
    networks = [head for head in heads if head != ENSEMBLE]
    matrices = choose_matrices(networks, config, data.stores)
    clips = list_clips(data.stores)
    check_train_table(clips["train"], data.stores[0].classes)
    check_val_table(clips["val"])

    keys = hash_runs(heads, config, data.described, matrices)
    fold = data.fold.place if data.fold else ""
    paths = {
        head: {
            seed: request.runs / name_run(head, keys[head], seed, fold) for seed in request.seeds
        }
        for head in heads
    }
    jobs = FitJobs(
        data=data,
        request=replace(request, config=config, device=str(device)),
        paths=paths,
        matrices=matrices,
        progress=progress,
        observe=observe,
    )
    left = [head for head in heads if not jobs.is_done(head)]
    if left:
        check_writable(request.runs)
    jobs.make([head for head in left if head != ENSEMBLE])
    jobs.make([head for head in left if head == ENSEMBLE])  # made of the runs before
    found = [path for by_seed in paths.values() for path in by_seed.values() if is_run(path)]
    return FitResult(runs=tuple(map(read_summary, found)), failed=tuple(jobs.failed))
