"""Trains the trials of a sweep on train and val; writes no run and knows no test clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import torch

from features.networks.runtime import choose_precision
from features.store.reader import Store
from train.config import FitConfig, find_matrices
from train.data.clips import ClipTable, check_train_table, check_val_table
from train.data.scaling import Scale, find_scales
from train.data.store_streams import choose_matrices
from train.data.stores import read_tables
from train.sweep.storage import COMPLETE, FAILED, PRUNED
from train.training.loop import Task, TrainedRun, train_runs
from train.training.parallel import count_workers, run_jobs
from train.training.specs import RunSpec, group_specs

FIRST_SEED = 1000
"""Trials have seeds of their own: the runs that are reported are not those that were chosen by."""

Judge = Callable[[int, int, float], bool]
"""Told of a trial's place, an epoch and its value; True ends the trial."""


@dataclass(kw_only=True, eq=False)
class TrainedTrial:
    """A trial as far as it has come."""

    config: FitConfig
    runs: list[TrainedRun] = field(default_factory=list)
    by_epoch: dict[int, float] = field(default_factory=dict)
    is_pruned: bool = False

    @property
    def error(self) -> str:
        """Why it has no value, or empty."""
        return next((str(run.error) for run in self.runs if run.error), "")

    @property
    def state(self) -> str:
        if self.error:
            return FAILED
        return PRUNED if self.is_pruned else COMPLETE

    @property
    def median_run(self) -> TrainedRun:
        """The run that stands for the trial; of an even number the lower one."""
        return sorted(self.runs, key=lambda run: run.best)[(len(self.runs) - 1) // 2]

    @property
    def result(self) -> Mapping[str, Any]:
        """As ``train.sweep.storage.Trial`` has it."""
        if self.error:
            return {"reason": self.error}
        median = self.median_run
        return {
            "best_epoch": median.best_epoch,
            "acc": float(median.best[1]),
            "loss": -float(median.best[2]),
            "n_epochs": max(len(run.history) for run in self.runs),
        }


class TrialTrainer:
    """Holds the features that the trials at hand read."""

    def __init__(
        self, stores: Sequence[Store], head: str, device: torch.device, scratch: Path
    ) -> None:
        """Read no feature yet.

        Args:
            stores: Checked, without test clips.
            head: Whose settings are tried.
            device: Of the trainings.
            scratch: Folder for features that exceed the memory.
        """
        self._stores = stores
        self._head = head
        self._device = device
        self._scratch = scratch
        self._tables: Mapping[str, ClipTable] = {}
        self._scales: Mapping[str, Scale] = {}
        self._tables_of: tuple[object, ...] = ()

    def train(
        self,
        configs: Sequence[FitConfig],
        n_seeds: int,
        judge: Judge,
        on_epoch: Callable[[int], None],
    ) -> list[TrainedTrial]:
        """Train some trials, each over its seeds; those of equal shape as one batched model.

        Args:
            configs: A trial each.
            n_seeds: Runs of a trial.
            judge: Asked after each epoch on which val was scored.
            on_epoch: Told of every epoch of some trials.

        Raises:
            ConfigError: The stores lack what the head reads.
            ShardError: A store is damaged, or lacks labelled clips.
        """
        trials = [
            TrainedTrial(
                config=replace(config, precision=choose_precision(config.precision, self._device))
            )
            for config in configs
        ]
        n_workers = count_workers(str(self._device))
        # The place in the list stands for a seed here: groups are of trials, not of runs.
        places = [RunSpec(seed=i, config=trial.config) for i, trial in enumerate(trials)]
        lock = Lock()

        def tell(epoch: int) -> None:
            with lock:
                on_epoch(epoch)

        groups: dict[tuple[object, ...], list[list[int]]] = {}
        for group in group_specs(places, -(-len(trials) // n_workers)):
            of_group = [spec.seed for spec in group]
            groups.setdefault(self._key_tables(group[0].config), []).append(of_group)
        for same_tables in groups.values():
            task = self._make_task(trials[same_tables[0][0]].config)
            jobs = [
                partial(
                    _train_group,
                    replace(task, config=trials[group[0]].config),
                    {i: trials[i] for i in group},
                    range(FIRST_SEED, FIRST_SEED + n_seeds),
                    judge,
                    tell,
                )
                for group in same_tables
            ]
            run_jobs(jobs, n_workers)
        return trials

    def _make_task(self, config: FitConfig) -> Task:
        matrices = choose_matrices([self._head], config, self._stores)
        key = self._key_tables(config)
        if key != self._tables_of:
            self._tables = {}  # the old ones go before new ones come
            self._tables = read_tables(self._stores, config, matrices, scratch=self._scratch)
            self._tables_of = key
            check_train_table(self._tables["train"], self._stores[0].classes)
            check_val_table(self._tables["val"])
            self._scales = find_scales(self._tables["train"], config)
        return Task(
            head=self._head,
            classes=self._stores[0].classes,
            train=self._tables["train"],
            val=self._tables["val"],
            config=config,
            matrices=matrices,
            scales=self._scales,
            device=str(self._device),
        )

    def _key_tables(self, config: FitConfig) -> tuple[object, ...]:
        """What decides the tables that a trial reads."""
        matrices = sorted(find_matrices([self._head], config))
        return (
            config.faces,
            config.max_time_steps,
            config.precision,
            config.standardise,
            *matrices,
        )


def _train_group(
    task: Task,
    trials: Mapping[int, TrainedTrial],
    seeds: Sequence[int],
    judge: Judge,
    tell: Callable[[int], None],
    stop: Event,
) -> None:
    """Train trials as one batched model, all seeds of a trial with it."""

    def end_epoch(epoch: int, active: Sequence[TrainedRun]) -> list[TrainedRun]:
        """The runs that end here: those of trials that are judged to, or that have failed."""
        if epoch == 1:
            for place, trial in enumerate(trials.values()):
                trial.runs = list(active[place * len(seeds) : (place + 1) * len(seeds)])
        ended: list[TrainedRun] = []
        for i, trial in trials.items():
            going = [run for run in trial.runs if any(run is other for other in active)]
            if going and trial.error:
                ended += going
            elif any(run.history[-1].val is not None for run in going):
                trial.by_epoch[epoch] = float(trial.median_run.best[0])
                if judge(i, epoch, trial.by_epoch[epoch]):
                    trial.is_pruned = True
                    ended += going
        tell(epoch)
        return ended

    specs = [RunSpec(seed=seed, config=trial.config) for trial in trials.values() for seed in seeds]
    train_runs(task, specs, end_epoch, stop)
