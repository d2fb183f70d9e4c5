"""The driver of ``fit``: stores to run folders."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event, Lock
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from safetensors.torch import save

from features.engine import choose_device, choose_precision
from features.fingerprint import hash_json
from features.store import Store, open_store
from train.config import (
    ENSEMBLE,
    FitConfig,
    check_heads,
    choose_settings,
    expand_heads,
    split_names,
)
from train.dataset import ClipTable, check_train_table, check_val_table
from train.ensemble import make_ensemble
from train.folds import Fold, split_test_stores
from train.heads import choose_grid, count_parameters, find_matrices
from train.parallel import count_workers, run_jobs, split_seeds
from train.runs import (
    RUN_FORMAT,
    RUN_VERSION,
    Run,
    RunSummary,
    is_run,
    name_run,
    read_run,
    read_summary,
    write_run,
)
from train.scoring import score_clips
from train.specs import RunSpec
from train.stores import (
    check_stores,
    check_streams,
    describe_stores,
    find_shapes,
    list_clips,
    read_tables,
)
from train.summaries import summarise_scores, tabulate_predictions
from train.training import (
    Epoch,
    Task,
    TrainedRun,
    plan_epochs,
    train_runs,
)

Observe = Callable[[str, Epoch], None]
"""Told of a run's name and of an epoch of it."""


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """How far ``fit`` has come, for a progress bar."""

    head: str
    seeds: tuple[int, ...]
    """The runs that this event speaks of; while training, those still going."""
    state: str
    """``skipped`` (complete runs found), ``training``, or ``done`` (runs written)."""
    epoch: int = 0
    n_epochs: int = 0
    best: tuple[float, ...] = ()
    """While training: the chosen metric of each run's best epoch on val so far, 0..1."""


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
    progress: Callable[[FitProgress], None] = lambda _: None,
    observe: Observe = lambda *_: None,
) -> list[RunSummary]:
    """Train heads on stores, one run folder a head and seed; complete runs are not trained again.

    The seeds of a head are trained side by side. The epoch is chosen on val; test is scored once,
    with that epoch.

    Args:
        stores: Folders; all of one fingerprint and of the same classes.
        runs: Folder of run folders; made where it is missing.
        heads: Names of ``train.config.HEAD_NAMES``; an ensemble's members are added to them.
        seeds: One run each.
        config: Settings that all heads share.
        test_stores: If there are some, test is theirs, and train and val are of ``stores``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_gb: What features may take of the memory; the rest is read from a scratch file in
            ``runs``, to the same numbers. None: three quarters of what is free.
        progress: Told of every epoch and of skipped and finished runs.
        observe: Told of a run's name and its epoch, after each.

    Returns:
        metrics.json of every run asked for, by head, then seed.

    Raises:
        ConfigError: Stores that do not fit together, no room for features on disk, no such head
            or device.
        ShardError: A store cannot be read, has no labelled train or val clip, a single class, or
            features that are not finite.
        RunError: A run folder lacks a file, or a loss is not a number.
    """
    opened = [open_store(path) for path in stores]
    if not test_stores:
        data = FitData(stores=opened, described=describe_stores(opened))
    else:
        opened = split_test_stores(opened, [open_store(path) for path in test_stores])
        paths = {"paths": list(map(str, stores)), "test_paths": list(map(str, test_stores))}
        data = FitData(stores=opened, described=describe_stores(opened) | paths)
    return fit_data(
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


@dataclass(frozen=True, kw_only=True, eq=False)
class FitData:
    """What runs learn from and are scored on."""

    stores: Sequence[Store]
    described: Mapping[str, Any]
    """``train.stores.describe_stores`` of them."""
    fold: Fold | None = None
    """Whose splits the stores have, if not the manifest's."""


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
) -> list[RunSummary]:
    """As ``run_fit``, on stores that are open."""
    chosen = choose_device(device)
    check_heads(heads)
    heads = expand_heads(heads, config)
    networks = [head for head in heads if head != ENSEMBLE]
    opened, described = data.stores, data.described
    fold = data.fold.place if data.fold else ""
    check_stores(opened)
    config = replace(config, precision=choose_precision(config.precision, chosen))
    shapes = find_shapes(opened)
    check_streams(networks, config, shapes)

    keys = {head: _hash_task(head, config, described) for head in networks}
    if ENSEMBLE in heads:
        members = split_names("members", config.members)
        keys[ENSEMBLE] = hash_json([[member, keys[member]] for member in members])
    paths = {
        (head, seed): runs / name_run(head, keys[head], seed, fold)
        for head in heads
        for seed in seeds
    }
    missing: dict[str, list[int]] = {}
    for head in heads:
        there = tuple(seed for seed in seeds if is_run(paths[head, seed]))
        if there:
            progress(FitProgress(head=head, seeds=there, state="skipped"))
        if len(there) < len(seeds):
            missing[head] = [seed for seed in seeds if seed not in there]
    ensembles = missing.pop(ENSEMBLE, [])
    if missing:
        tables = read_tables(
            opened, config, find_matrices(missing, config), memory_gb=memory_gb, scratch=runs
        )
        check_train_table(tables["train"], opened[0].classes)
        check_val_table(tables["val"])
        n_workers, lock = count_workers(str(chosen)), Lock()
        jobs = [
            _Job(
                task=Task(
                    head=head,
                    classes=opened[0].classes,
                    train=tables["train"],
                    val=tables["val"],
                    config=config,
                    shapes=shapes,
                    device=str(chosen),
                ),
                test=tables["test"],
                paths={seed: paths[head, seed] for seed in group},
                data=data,
                progress=_one_at_a_time(progress, lock),
                observe=_one_at_a_time(observe, lock),
            )
            for head, left in missing.items()
            for group in split_seeds(left, len(missing), n_workers)
        ]
        run_jobs([job.run for job in jobs], n_workers)
    if ensembles:
        clips, settings = list_clips(opened), choose_settings(ENSEMBLE, config)
        for seed in ensembles:
            of_seed = [read_run(paths[member, seed]) for member in members]
            run = make_ensemble(paths[ENSEMBLE, seed], of_seed, clips, settings)
            write_run(*run)
        progress(FitProgress(head=ENSEMBLE, seeds=tuple(ensembles), state="done"))
    return [read_summary(path) for path in paths.values()]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """Some seeds of one head, trained side by side and written."""

    task: Task
    test: ClipTable
    paths: Mapping[int, Path]
    """Seed -> run folder."""
    data: FitData
    progress: Callable[[FitProgress], None]
    observe: Observe

    def run(self, stop: Event) -> None:
        specs = [RunSpec(seed=seed, config=self.task.config) for seed in self.paths]
        trained = train_runs(self.task, specs, self._tell_epoch, stop)
        for run in trained:
            if run.error is None:
                write_run(*self._finish_run(run))
        for run in trained:
            if run.error is not None:
                raise run.error
        self.progress(FitProgress(head=self.task.head, seeds=tuple(self.paths), state="done"))

    def _tell_epoch(self, epoch: int, active: Sequence[TrainedRun]) -> None:
        for run in active:
            self.observe(self.paths[run.spec.seed].name, run.history[-1])
        self.progress(
            FitProgress(
                head=self.task.head,
                seeds=tuple(run.spec.seed for run in active),
                state="training",
                epoch=epoch,
                n_epochs=plan_epochs(len(self.task.train.labelled), self.task.config).n_epochs,
                best=tuple(max(run.best[0], 0.0) for run in active),
            )
        )

    def _finish_run(self, trained: TrainedRun) -> tuple[Run, bytes]:
        """Score the chosen epoch on val and, this once, on test; gather what the folder holds."""
        task, config = self.task, self.task.config
        tables = {"val": task.val, "test": self.test}
        head = task.build_head()
        head.load_state_dict(dict(trained.state))
        scores = {split: score_clips(head, table, task.streams) for split, table in tables.items()}
        summary = RunSummary(
            run=self.paths[trained.spec.seed].name,
            head=task.head,
            seed=trained.spec.seed,
            n_parameters=count_parameters(head),
            best_epoch=trained.best_epoch,
            val=summarise_scores(task.val, scores["val"]),
            test=summarise_scores(self.test, scores["test"]),
        )
        run = Run(
            path=self.paths[trained.spec.seed],
            config={
                "format": RUN_FORMAT,
                "version": RUN_VERSION,
                "head": task.head,
                "seed": trained.spec.seed,
                "context": choose_grid(task.head, config.context),
                "streams": {
                    name: {"matrix": matrix, "shape": list(task.shapes[matrix])}
                    for name, matrix in task.streams.items()
                },
                "n_epochs": plan_epochs(len(task.train.labelled), config).n_epochs,
                "settings": choose_settings(task.head, config),
                "device": task.device,
                "store": dict(self.data.described),
                **({"fold": self.data.fold.describe()} if self.data.fold else {}),
                "versions": _find_versions(),
            },
            summary=summary,
            history=_tabulate_history(trained),
            predictions=tabulate_predictions(tables, scores, task.classes),
        )
        weights = {name: tensor.contiguous() for name, tensor in trained.state.items()}
        return run, save(weights)


_P = ParamSpec("_P")


def _one_at_a_time(call: Callable[_P, None], lock: Lock) -> Callable[_P, None]:
    """The same callback, never called from two threads at once."""

    def tell(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with lock:
            call(*args, **kwargs)

    return tell


def _tabulate_history(trained: TrainedRun) -> pd.DataFrame:
    names = ("loss", "map_mec", "map_rank", "acc", "uar", "f1_macro")
    rows = []
    for row in trained.history:
        val = {f"val_{n}": getattr(row.val, n) if row.val else np.nan for n in names}
        rows.append({"epoch": row.epoch, "train_loss": row.train_loss, **val})
    return pd.DataFrame(rows)


def _hash_task(head: str, config: FitConfig, described: Mapping[str, Any]) -> str:
    """What names a run beside its head and seed: its settings and the clips it learned from."""
    settings = {**choose_settings(head, config), "context": choose_grid(head, config.context)}
    return hash_json([settings, described["fingerprint"], described["clips_sha256"]])


def _find_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("caca-rnn", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was not installed
            versions[package] = "not installed"
    return versions
