"""The driver of ``fit``: stores to run folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from features.errors import RunError
from features.networks.runtime import choose_device, choose_precision
from features.store.reader import open_store
from train.config import FitConfig, check_heads, expand_heads
from train.data.clips import check_train_table, check_val_table
from train.data.splits import split_test_stores
from train.data.stores import check_stores, check_streams, describe_stores, find_shapes, list_clips
from train.fit_jobs import FitData, FitJobs, FitProgress, Observe
from train.naming import hash_runs
from train.runs.folder import RunSummary, is_run, name_run, read_summary
from train.runs.locks import check_writable
from train.streams import ENSEMBLE


def run_fit(
    stores: Sequence[Path],
    runs: Path,
    heads: Sequence[str],
    seeds: Sequence[int],
    config: FitConfig,
    *,
    test_stores: Sequence[Path] = (),
    device: str = "auto",
    memory_gb: float | None = None,
    verify: bool = True,
    progress: Callable[[FitProgress], None] = lambda _: None,
    observe: Observe = lambda *_: None,
) -> list[RunSummary]:
    """Train heads on stores, one run folder a head and seed; complete runs are not trained again.

    The seeds of a head are trained side by side. The epoch is chosen on val; test is scored once,
    with that epoch. A complete run whose val and test clips are others than when it was scored,
    but for those that chose its epoch, is scored again without training.

    Args:
        stores: Folders; all of one fingerprint and of the same classes.
        runs: Folder of run folders; made where it is missing.
        heads: Names of ``train.config.HEADS``; an ensemble's members are added to them.
        seeds: One run each.
        config: Settings that all heads share.
        test_stores: If there are some, test is theirs, and train and val are of ``stores``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: What features may take of the memory; the rest is read from a scratch file in
            ``runs``, to the same numbers. None: three quarters of what is free.
        verify: As of ``features.store.reader.open_store``: hash each shard before it is read.
        progress: Told of every epoch and of skipped and finished runs.
        observe: Told of a run's name and its epoch, after each.

    Returns:
        metrics.json of every run asked for, by head, then seed.

    Raises:
        ConfigError: Stores that do not fit together, no room for features on disk, no such head
            or device.
        ShardError: A store cannot be read, has no labelled train or val clip, a single class, or
            features that are not finite.
        RunError: ``runs`` cannot be written or something else stands in a run's place, both before
            training; or losses were not a number: the other runs are then complete.
    """
    opened = [open_store(path, verify=verify) for path in stores]
    if not test_stores:
        data = FitData(stores=opened, described=describe_stores(opened))
    else:
        opened = split_test_stores(
            opened, [open_store(path, verify=verify) for path in test_stores]
        )
        paths = {"paths": list(map(str, stores)), "test_paths": list(map(str, test_stores))}
        data = FitData(stores=opened, described=describe_stores(opened) | paths)
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
    check_results(result.failed, len(result.runs))
    return list(result.runs)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What came of a fit."""

    runs: tuple[RunSummary, ...]
    """metrics.json of every run asked for, by head, then seed; without those that failed."""
    failed: tuple[RunError, ...]
    """Why the others have none."""


def fit_data(
    data: FitData,
    runs: Path,
    heads: Sequence[str],
    seeds: Sequence[int],
    config: FitConfig,
    *,
    device: str = "auto",
    memory_gb: float | None = None,
    progress: Callable[[FitProgress], None] = lambda _: None,
    observe: Observe = lambda *_: None,
) -> FitResult:
    """As ``run_fit``, on stores that are open; runs without a result are told, not raised."""
    chosen = choose_device(device)
    check_heads(heads)
    heads = expand_heads(heads, config)
    check_stores(data.stores)
    config = replace(config, precision=choose_precision(config.precision, chosen))
    shapes = find_shapes(data.stores)
    check_streams([head for head in heads if head != ENSEMBLE], config, shapes)
    clips = list_clips(data.stores)
    check_train_table(clips["train"], data.stores[0].classes)
    check_val_table(clips["val"])

    keys = hash_runs(heads, config, data.described, shapes)
    fold = data.fold.place if data.fold else ""
    paths = {
        head: {seed: runs / name_run(head, keys[head], seed, fold) for seed in seeds}
        for head in heads
    }
    jobs = FitJobs(
        data=data,
        folder=runs,
        paths=paths,
        config=config,
        shapes=shapes,
        device=str(chosen),
        memory_gb=memory_gb,
        progress=progress,
        observe=observe,
    )
    left = [head for head in heads if not jobs.is_done(head)]
    if left:
        check_writable(runs)
    failed = jobs.make([head for head in left if head != ENSEMBLE])
    failed += jobs.make([head for head in left if head == ENSEMBLE])  # made of the runs before
    found = [path for by_seed in paths.values() for path in by_seed.values() if is_run(path)]
    return FitResult(runs=tuple(map(read_summary, found)), failed=tuple(failed))


def check_results(failed: Sequence[RunError], n_complete: int) -> None:
    """Raise RunError, naming them all, where runs came to no result."""
    if failed:
        reasons = "\n".join(f"    {error}" for error in failed)
        raise RunError(
            f"{len(failed)} of {n_complete + len(failed)} run(s) came to no result; the others are "
            f"complete and kept.\n{reasons}"
        )
