"""Makes the runs of a fit: trains those that are missing, scores again those of other clips."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

from features.errors import RunError
from features.store.reader import Store
from train.config import describe_settings, find_matrices
from train.data.clips import ClipTable
from train.data.scaling import Scale, find_scales
from train.data.splits import Fold, keep_splits, leave_out_unlabelled
from train.data.stores import list_clips, read_tables
from train.ensemble import make_ensemble
from train.request import FitRequest
from train.runs.finish import finish_run, score_again
from train.runs.folder import is_run, read_config, read_run, restore_folder, write_run
from train.runs.locks import lock_free
from train.streams import ENSEMBLE, Matrices, MatrixSpec, split_members
from train.training.loop import Epoch, Task, TrainedRun, plan_epochs, train_runs
from train.training.parallel import count_workers, run_jobs, split_seeds
from train.training.specs import RunSpec

_WAIT_S = 2.0
_TOLD = ("clips_sha256", "n_failed", "n_lacking")
"""What config.json tells of the clips, and so the report; the rest follows from it."""

_log = logging.getLogger(__name__)

Observe = Callable[[str, Epoch], None]
"""Told of a run's name and of an epoch of it."""


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """How far ``fit`` has come, for a progress bar."""

    head: str
    seeds: tuple[int, ...]
    """The runs that this event speaks of; while training, those still going."""
    state: str
    """``skipped`` (complete runs found), ``scored`` (complete runs found and scored on other clips
    than before), ``training``, ``done`` (runs written), or ``failed`` (no finite loss)."""
    epoch: int = 0
    n_epochs: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class FitData:
    """What runs learn from and are scored on."""

    stores: Sequence[Store]
    described: Mapping[str, Any]
    """``train.data.stores.describe_stores`` of them."""
    fold: Fold | None = None
    """Whose splits the stores have, if not the manifest's."""

    def describe(self) -> dict[str, Any]:
        """What config.json tells of the clips that a run was trained and scored on."""
        fold = {"fold": self.fold.describe()} if self.fold else {}
        return {"store": dict(self.described), **fold}

    def has_scored(self, run: Path) -> bool:
        """Whether the scores of a complete run, and what it tells of clips, are of these."""
        config = read_config(run)
        fold = self.fold.describe() if self.fold else None
        told = [config["store"].get(name, 0) for name in _TOLD]
        return told == [self.described[name] for name in _TOLD] and config.get("fold") == fold


@dataclass(frozen=True, kw_only=True, eq=False)
class FitJobs:
    """The runs that a fit is asked for, and how each is made."""

    data: FitData
    request: FitRequest
    """Its device, and the ``precision`` of its settings, resolved."""
    paths: Mapping[str, Mapping[int, Path]]
    """Head -> seed -> run folder."""
    matrices: Matrices
    """What the heads read."""
    progress: Callable[[FitProgress], None]
    observe: Observe
    failed: list[RunError] = field(default_factory=list)
    """Why runs came to no result."""
    _lock: Lock = field(default_factory=Lock)
    """Held while a callback runs: never two at once."""

    def is_done(self, head: str) -> bool:
        """Whether every run of a head is there, with the scores of these clips; then it is told.

        Raises:
            DamagedRunError: What stands in a run's place is no run.
        """
        missing, outdated, current = self._sort_seeds(head)
        if missing or outdated:
            return False
        self._tell(head, current, "skipped")
        return True

    def make(self, heads: Sequence[str]) -> None:
        """Make what is missing or outdated of some heads.

        What another process is at is left to it, waited for, and then used as it stands.
        """
        left = {self._name_lock(head): head for head in heads}
        waiting = False
        while left:
            with lock_free(self.request.runs, list(left)) as free:
                mine = [left.pop(name) for name in free]
                for head in mine:
                    for path in self.paths[head].values():
                        restore_folder(path)
                self._make_locked(mine)
            if not mine:
                if not waiting:
                    _log.info(
                        "%s: another process trains %s; waiting for its runs",
                        self.request.runs,
                        ", ".join(left.values()),
                    )
                waiting = True
                time.sleep(_WAIT_S)

    def _sort_seeds(self, head: str) -> tuple[list[int], list[int], list[int]]:
        """Seeds without a run, with one that is scored on other clips, and with one of these."""
        paths = self.paths[head]
        missing = [seed for seed, path in paths.items() if not is_run(path)]
        found = {seed: self.data.has_scored(paths[seed]) for seed in paths if seed not in missing}
        outdated = [seed for seed, is_current in found.items() if not is_current]
        return missing, outdated, [seed for seed, is_current in found.items() if is_current]

    def _make_locked(self, heads: Sequence[str]) -> None:
        missing: dict[str, list[int]] = {}
        outdated: dict[str, list[int]] = {}
        for head in heads:
            missing[head], outdated[head], current = self._sort_seeds(head)
            if current:
                self._tell(head, current, "skipped")
        if ENSEMBLE in heads:
            self._make_ensembles([*missing[ENSEMBLE], *outdated[ENSEMBLE]])
            return
        wanted = [head for head in heads if missing[head] or outdated[head]]
        if not wanted:
            return
        # Nothing is learned from clips without a label.
        stores = leave_out_unlabelled(self.data.stores, ["train"])
        tables = read_tables(
            stores if any(missing.values()) else keep_splits(stores, "val", "test"),
            self.request.config,
            self._choose_matrices(wanted),
            memory_gb=self.request.memory_gb,
            scratch=self.request.runs,
        )
        scales = find_scales(tables["train"], self.request.config)
        tasks = {head: self._make_task(head, tables, scales) for head in wanted}
        scored = {split: tables[split] for split in ("val", "test")}
        for head in wanted:
            if outdated[head]:
                self._score_again(tasks[head], outdated[head], scored)
        trained = [head for head in wanted if missing[head]]
        n_workers = count_workers(self.request.device)
        jobs = [
            partial(self._train_seeds, tasks[head], seeds, scored)
            for head in trained
            for seeds in split_seeds(missing[head], len(trained), n_workers)
        ]
        if jobs:
            run_jobs(jobs, n_workers)

    def _train_seeds(
        self, task: Task, seeds: Sequence[int], scored: Mapping[str, ClipTable], stop: Event
    ) -> None:
        """Train some seeds of a head side by side and write their runs."""
        paths = self.paths[task.head]
        n_epochs = plan_epochs(len(task.train.labelled), task.config).n_epochs

        def tell_epoch(epoch: int, active: Sequence[TrainedRun]) -> None:
            with self._lock:
                for run in active:
                    self.observe(paths[run.spec.seed].name, run.history[-1])
            seeds = [run.spec.seed for run in active]
            self._tell(task.head, seeds, "training", epoch=epoch, n_epochs=n_epochs)

        specs = [RunSpec(seed=seed, config=task.config) for seed in seeds]
        trained = train_runs(task, specs, tell_epoch, stop)
        for run in trained:
            if run.error is None:
                path = paths[run.spec.seed]
                write_run(*finish_run(path, task, run, scored, self.data.describe()))
            else:
                self.failed.append(run.error)
        for state, has_failed in (("done", False), ("failed", True)):
            ended = [run.spec.seed for run in trained if bool(run.error) == has_failed]
            if ended:
                self._tell(task.head, ended, state)

    def _score_again(
        self, task: Task, seeds: Sequence[int], scored: Mapping[str, ClipTable]
    ) -> None:
        _log.info(
            "%s: %d run(s) are scored on the clips that the store holds now; nothing that they "
            "learned from has changed",
            task.head,
            len(seeds),
        )
        for seed in seeds:
            run = read_run(self.paths[task.head][seed])
            again = score_again(run, task, scored, self.data.describe())
            write_run(again, run.weights_path.read_bytes())
        self._tell(task.head, seeds, "scored")

    def _make_ensembles(self, seeds: Sequence[int]) -> None:
        members = split_members(self.request.config.members)
        made = []
        clips = list_clips(self.data.stores)
        for seed in seeds:
            paths = [self.paths[member][seed] for member in members]
            if gone := [path.name for path in paths if not is_run(path)]:
                reason = f"head {ENSEMBLE}, seed {seed}: its member {gone[0]} has no result."
                self.failed.append(RunError(reason))
                continue
            run = make_ensemble(
                self.paths[ENSEMBLE][seed],
                [read_run(path) for path in paths],
                clips,
                describe_settings(ENSEMBLE, self.request.config),
            )
            write_run(*run)
            made.append(seed)
        if made:
            self._tell(ENSEMBLE, made, "done")

    def _make_task(
        self, head: str, tables: Mapping[str, ClipTable], scales: Mapping[str, Scale]
    ) -> Task:
        return Task(
            head=head,
            classes=self.data.stores[0].classes,
            train=tables["train"],
            val=tables["val"].choose_labelled(),
            config=self.request.config,
            matrices=self.matrices,
            scales=scales,
            device=self.request.device,
        )

    def _choose_matrices(self, heads: Sequence[str]) -> dict[str, MatrixSpec]:
        """Those that these heads read."""
        names = find_matrices(heads, self.request.config, self.matrices)
        return {name: self.matrices[name] for name in sorted(names)}

    def _name_lock(self, head: str) -> str:
        """One for all seeds: they are trained side by side."""
        (seed, path) = next(iter(self.paths[head].items()))
        return path.name.removesuffix(f"-seed{seed}")

    def _tell(self, head: str, seeds: Sequence[int], state: str, **at: int) -> None:
        with self._lock:
            self.progress(FitProgress(head=head, seeds=tuple(seeds), state=state, **at))
