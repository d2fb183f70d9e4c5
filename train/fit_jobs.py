"""Makes the runs of a fit: trains those that are missing, scores again those of other clips."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, ParamSpec

from features.errors import RunError
from features.store.reader import Store
from train.config import describe_settings, find_matrices
from train.data.clips import ClipTable
from train.data.splits import Fold, leave_out_train, leave_out_unlabelled
from train.data.stores import list_clips, read_tables
from train.ensemble import make_ensemble
from train.request import FitRequest
from train.runs.finish import finish_run, score_again
from train.runs.folder import is_run, read_config, read_run, restore_folder, write_run
from train.runs.locks import lock_free
from train.streams import ENSEMBLE, Shapes, split_names
from train.training.loop import Epoch, Task, TrainedRun, plan_epochs, train_runs
from train.training.parallel import count_workers, run_jobs, split_seeds
from train.training.specs import RunSpec

_WAIT_S = 2.0
_TOLD = ("clips_sha256", "n_failed")
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
    best: tuple[float, ...] = ()
    """While training: the chosen metric of each run's best epoch on val so far, 0..1."""


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
        told = [config["store"][name] for name in _TOLD]
        return told == [self.described[name] for name in _TOLD] and config.get("fold") == fold


@dataclass(frozen=True, kw_only=True, eq=False)
class FitJobs:
    """The runs that a fit is asked for, and how each is made."""

    data: FitData
    request: FitRequest
    """Its device, and the ``precision`` of its settings, resolved."""
    paths: Mapping[str, Mapping[int, Path]]
    """Head -> seed -> run folder."""
    shapes: Shapes
    progress: Callable[[FitProgress], None]
    observe: Observe

    def is_done(self, head: str) -> bool:
        """Whether every run of a head is there, with the scores of these clips; then it is told.

        Raises:
            DamagedRunError: What stands in a run's place is no run.
        """
        seeds = self._find_seeds(head)
        if seeds.missing or seeds.outdated:
            return False
        self._tell(head, seeds.current, "skipped")
        return True

    def make(self, heads: Sequence[str]) -> list[RunError]:
        """Make what is missing or outdated of some heads; why some runs came to no result.

        What another process is at is left to it, waited for, and then used as it stands.
        """
        failed: list[RunError] = []
        left = {self._name_lock(head): head for head in heads}
        waiting = False
        while left:
            with lock_free(self.request.runs, list(left)) as free:
                mine = [left.pop(name) for name in free]
                for head in mine:
                    for path in self.paths[head].values():
                        restore_folder(path)
                failed += self._make_locked(mine)
            if not mine:
                if not waiting:
                    _log.info(
                        "%s: another process trains %s; waiting for its runs",
                        self.request.runs,
                        ", ".join(left.values()),
                    )
                waiting = True
                time.sleep(_WAIT_S)
        return failed

    def _find_seeds(self, head: str) -> _Seeds:
        seeds = _Seeds(missing=[], outdated=[], current=[])
        for seed, path in self.paths[head].items():
            if not is_run(path):
                seeds.missing.append(seed)
            elif self.data.has_scored(path):
                seeds.current.append(seed)
            else:
                seeds.outdated.append(seed)
        return seeds

    def _make_locked(self, heads: Sequence[str]) -> list[RunError]:
        found = {head: self._find_seeds(head) for head in heads}
        for head, seeds in found.items():
            if seeds.current:
                self._tell(head, seeds.current, "skipped")
        if ENSEMBLE in found:
            return self._make_ensembles([*found[ENSEMBLE].missing, *found[ENSEMBLE].outdated])
        missing = {head: seeds.missing for head, seeds in found.items() if seeds.missing}
        outdated = {head: seeds.outdated for head, seeds in found.items() if seeds.outdated}
        if not missing and not outdated:
            return []
        stores = leave_out_unlabelled(self.data.stores, ["train"])  # nothing is learned from them
        tables = read_tables(
            stores if missing else leave_out_train(stores),
            self.request.config,
            find_matrices({*missing, *outdated}, self.request.config),
            memory_gb=self.request.memory_gb,
            scratch=self.request.runs,
        )
        for head, outdated_seeds in outdated.items():
            self._score_again(head, outdated_seeds, tables)
        return self._train(missing, tables)

    def _train(
        self, missing: Mapping[str, Sequence[int]], tables: Mapping[str, ClipTable]
    ) -> list[RunError]:
        if not missing:
            return []
        n_workers, lock = count_workers(self.request.device), Lock()
        failed: list[RunError] = []
        jobs = [
            _Job(
                task=self._make_task(head, tables),
                scored={split: tables[split] for split in ("val", "test")},
                paths={seed: self.paths[head][seed] for seed in group},
                described=self.data.describe(),
                failed=failed,
                progress=_one_at_a_time(self.progress, lock),
                observe=_one_at_a_time(self.observe, lock),
            )
            for head, seeds in missing.items()
            for group in split_seeds(seeds, len(missing), n_workers)
        ]
        run_jobs([job.run for job in jobs], n_workers)
        return failed

    def _score_again(
        self, head: str, seeds: Sequence[int], tables: Mapping[str, ClipTable]
    ) -> None:
        _log.info(
            "%s: %d run(s) are scored on the clips that the store holds now; nothing that they "
            "learned from has changed",
            head,
            len(seeds),
        )
        scored = {split: tables[split] for split in ("val", "test")}
        for seed in seeds:
            run = read_run(self.paths[head][seed])
            again = score_again(run, self._make_task(head, tables), scored, self.data.describe())
            write_run(again, run.weights_path.read_bytes())
        self._tell(head, seeds, "scored")

    def _make_ensembles(self, seeds: Sequence[int]) -> list[RunError]:
        members = split_names("members", self.request.config.members)
        failed: list[RunError] = []
        made = []
        clips = list_clips(self.data.stores)
        for seed in seeds:
            paths = [self.paths[member][seed] for member in members]
            if gone := [path.name for path in paths if not is_run(path)]:
                failed.append(
                    RunError(f"head {ENSEMBLE}, seed {seed}: its member {gone[0]} has no result.")
                )
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
        return failed

    def _make_task(self, head: str, tables: Mapping[str, ClipTable]) -> Task:
        return Task(
            head=head,
            classes=self.data.stores[0].classes,
            train=tables["train"],
            val=tables["val"].choose_labelled(),
            config=self.request.config,
            shapes=self.shapes,
            device=self.request.device,
        )

    def _name_lock(self, head: str) -> str:
        """One for all seeds: they are trained side by side."""
        (seed, path) = next(iter(self.paths[head].items()))
        return path.name.removesuffix(f"-seed{seed}")

    def _tell(self, head: str, seeds: Sequence[int], state: str) -> None:
        self.progress(FitProgress(head=head, seeds=tuple(seeds), state=state))


@dataclass(frozen=True, kw_only=True)
class _Seeds:
    """The seeds of one head, by what there is of each."""

    missing: list[int]
    outdated: list[int]
    """There are runs, scored on other clips."""
    current: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """Some seeds of one head, trained side by side and written."""

    task: Task
    scored: Mapping[str, ClipTable]
    paths: Mapping[int, Path]
    """Seed -> run folder."""
    described: Mapping[str, Any]
    failed: list[RunError]
    """Takes why a run came to no result."""
    progress: Callable[[FitProgress], None]
    observe: Observe

    def run(self, stop: Event) -> None:
        specs = [RunSpec(seed=seed, config=self.task.config) for seed in self.paths]
        trained = train_runs(self.task, specs, self._tell_epoch, stop)
        for run in trained:
            if run.error is None:
                path = self.paths[run.spec.seed]
                write_run(*finish_run(path, self.task, run, self.scored, self.described))
        self.failed.extend(run.error for run in trained if run.error is not None)
        for state, has_failed in (("done", False), ("failed", True)):
            seeds = tuple(run.spec.seed for run in trained if bool(run.error) == has_failed)
            if seeds:
                self.progress(FitProgress(head=self.task.head, seeds=seeds, state=state))

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


_P = ParamSpec("_P")


def _one_at_a_time(call: Callable[_P, None], lock: Lock) -> Callable[_P, None]:
    """The same callback, never called from two threads at once."""

    def tell(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with lock:
            call(*args, **kwargs)

    return tell
