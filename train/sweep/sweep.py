"""The driver of ``sweep``: tries settings of a head on train and val, and trains the best ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from optuna.distributions import distribution_to_json

from features.errors import ConfigError, RunError
from features.fingerprint import hash_json
from features.networks.runtime import choose_device
from features.store.reader import Store, open_store
from train.config import check_head_streams, check_heads, describe_settings, name_as_stored
from train.data.splits import (
    keep_splits,
    leave_out_clips,
    leave_out_unlabelled,
    split_test_stores,
)
from train.data.store_streams import choose_matrices, find_lacking_of
from train.data.stores import check_stores, describe_stores
from train.fit import run_fit
from train.fit_jobs import FitProgress
from train.request import FitRequest
from train.runs.folder import RunSummary
from train.runs.locks import check_writable
from train.streams import ENSEMBLE, Matrices, MatrixSpec
from train.sweep.batches import Sweep, SweepProgress, run_trials
from train.sweep.folder import SweepRecord, write_record, write_tables
from train.sweep.space import describe_space
from train.sweep.storage import DEAD_AFTER_S, FAILED, STORAGE_ERRORS, Trial, TrialStorage
from train.sweep.tables import describe_best, find_best, tabulate_importance, tabulate_trials
from train.sweep.trainer import TrialTrainer
from train.training.loop import plan_epochs


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

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "sweep": str(self.folder),
            "trials": json.loads(self.trials.to_json(orient="records")),
            "importance": json.loads(self.importance.to_json(orient="records")),
            "best": describe_best(self.best),
            "runs": [asdict(summary) for summary in self.runs],
        }


def run_sweep(
    stores: Sequence[Path],
    runs: Path,
    sweep: Sweep,
    seeds: Sequence[int],
    *,
    test_stores: Sequence[Path] = (),
    storage: str = "",
    device: str = "auto",
    verify: bool = True,
    progress: Callable[[SweepProgress], None] = lambda _: None,
    fit_progress: Callable[[FitProgress], None] = lambda _: None,
) -> SweepSummary:
    """Try settings on train and val, then train the best over seeds as ``fit`` does.

    Test is not read while settings are tried; the runs of the best trial score it once each.

    Args:
        stores: As of ``run_fit``.
        runs: Folder of run folders. The sweep's own is in it: ``sweep-HEAD-HASH``. Features that
            exceed the memory are read from a scratch file in it.
        sweep: What to try.
        seeds: Of the runs with the best settings; none: nothing is trained after the trials, and
            trials that other machines are at are not waited for.
        test_stores: As of ``run_fit``; that they fit is checked at once, their features are read
            once the last trial is finished.
        storage: URL of an Optuna storage that several machines share; empty: a SQLite file in the
            sweep's folder, whose transactions survive the death of the process at any moment.
        device: As of ``run_fit``.
        verify: As of ``run_fit``.
        progress: Told of every epoch and every batch of trials.
        fit_progress: As of ``run_fit``.

    Raises:
        ConfigError: As of ``run_fit``; or another process is at this sweep.
        ShardError: As of ``run_fit``.
        RunError: ``runs`` cannot be written, before the first trial; no trial came to a finite
            loss, or the storage was lost on the way; or as of ``run_fit``.
    """
    chosen = choose_device(device)
    check_heads([sweep.head])
    if sweep.head == ENSEMBLE:
        raise ConfigError(
            f"head {ENSEMBLE}: it has no settings of its own, its weights are found on val. Sweep "
            "its members, then fit it with their best settings."
        )
    whole = [open_store(path, verify=verify) for path in stores]
    opened = leave_out_unlabelled(keep_splits(whole, "train", "val"), ["train", "val"])
    check_stores(opened)
    matrices = _choose_matrices(sweep, opened)
    read = whole
    if test_stores:  # what the last step would refuse is refused before the first
        tested = split_test_stores(whole, [open_store(path, verify=verify) for path in test_stores])
        check_stores(tested)
        _choose_matrices(sweep, tested)
        read = tested
    lacking = find_lacking_of(matrices, read)
    opened = leave_out_clips(opened, lacking)
    described = describe_stores(opened, len(lacking))
    name = f"{sweep.head}-{hash_sweep(sweep, described, matrices)[:12]}"
    check_writable(runs)
    folder = runs / f"sweep-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if storage else _lock(folder):
        trial_storage = TrialStorage(
            storage or f"sqlite:///{folder / 'trials.db'}", name, sweep.space
        )
        trial_storage.give_up_dead(DEAD_AFTER_S if storage else 0.0)
        n_train = described["splits"]["train"]["n_labelled"]
        try:
            trials = run_trials(
                sweep,
                trial_storage,
                TrialTrainer(opened, sweep.head, chosen, scratch=runs),
                n_epochs=plan_epochs(max(n_train, 1), sweep.config).n_epochs,
                wait=bool(seeds),
                progress=progress,
            )
        except STORAGE_ERRORS as error:
            raise RunError(
                f"{folder}: the storage of the trials failed ({str(error).splitlines()[0]}). Run "
                "the same sweep again once it is reachable: finished trials are kept."
            ) from error
        table = tabulate_trials(trials, sweep.space, sweep.config.select)
        importance = tabulate_importance(trials, sweep.space, drawn=sweep.is_drawn)
        write_tables(folder, table, importance)
        best = find_best(trials)
        if best is None:
            reason = next(t.result["reason"] for t in trials if t.state == FAILED)
            raise RunError(
                f"{folder / 'trials.csv'}: none of {len(trials)} trials has come to a finite loss. "
                f"The first: {reason}"
            )
        summaries: list[RunSummary] = []
        if seeds:
            wanted = FitRequest(
                stores=stores,
                runs=runs,
                heads=[sweep.head],
                seeds=seeds,
                config=sweep.configure(best.settings),
                test_stores=test_stores,
                device=device,
                verify=verify,
            )
            summaries = run_fit(wanted, progress=fit_progress)
        record = SweepRecord(
            sweep=folder.name,
            head=sweep.head,
            kind="trials" if sweep.is_drawn else "grid",
            settings=describe_settings(sweep.head, sweep.config),
            space={k: json.loads(distribution_to_json(d)) for k, d in sweep.space.items()},
            trial_seeds=sweep.trial_seeds,
            store={name: described[name] for name in ("fingerprint", "learned_sha256")},
            best=describe_best(best),
            runs=tuple(summary.run for summary in summaries),
        )
        write_record(folder, record)
    return SweepSummary(
        folder=folder, trials=table, importance=importance, best=best, runs=tuple(summaries)
    )


def hash_sweep(sweep: Sweep, store: Mapping[str, Any], matrices: Matrices) -> str:
    """What names a sweep beside its head.

    Args:
        sweep: What is tried.
        store: ``describe_stores`` of train and val.
        matrices: What the trials read of them.
    """
    settings = describe_settings(sweep.head, sweep.config)
    seen = [
        name_as_stored({k: v for k, v in settings.items() if k not in sweep.space}),
        describe_space(sweep.space),
        "trials" if sweep.is_drawn else "grid",
        sweep.trial_seeds,
        store["fingerprint"],
        store["learned_sha256"],
    ]
    added = {name: m.fingerprint for name, m in matrices.items() if m.fingerprint}
    return hash_json([*seen, added] if added else seen)


def _choose_matrices(sweep: Sweep, stores: Sequence[Store]) -> dict[str, MatrixSpec]:
    """What any of the trials reads. Raises ConfigError where one cannot."""
    varied = sweep.grid.get("streams")
    matrices: dict[str, MatrixSpec] = {}
    for streams in varied.choices if varied else [sweep.config.streams]:
        config = sweep.configure({"streams": streams})
        check_head_streams([sweep.head], config)
        matrices |= choose_matrices([sweep.head], config, stores)
    return matrices


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
