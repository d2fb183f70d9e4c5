"""The part of the report on sweeps: what was tried, what was best, what mattered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from train.config import CURRENT_NAMES, rename_stored
from train.report.results import find_title
from train.runs.folder import read_undamaged
from train.sweep.folder import find_sweeps, read_record, read_tables

MOST_TRIALS = 20
"""Trials that the page shows, the best ones; the CSV beside it has all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepPart:
    """One sweep as the pages show it; every cell a text."""

    name: str
    title: str
    summary: str
    trials: pd.DataFrame
    importance: pd.DataFrame

    @property
    def best_trials(self) -> pd.DataFrame:
        """The best trials first; those that ended early, or failed, last."""
        value = next(name for name in self.trials.columns if name.startswith("val_"))
        order = self.trials.assign(
            ended=(self.trials["state"] != "complete"),
            key=-pd.to_numeric(self.trials[value]).fillna(-1.0),
        ).sort_values(["ended", "key"], kind="stable")
        return self.trials.loc[order.index[:MOST_TRIALS]].drop(columns="reason")


def collect_sweeps(runs: Path) -> list[SweepPart]:
    """Read the finished sweeps in a folder of runs; one that cannot be read is logged, passed over.

    Raises:
        RunError: Newer code wrote one.
    """
    return read_undamaged(find_sweeps(runs), _read_part)


def _read_part(folder: Path) -> SweepPart:
    record = read_record(folder)
    trials, importance = read_tables(folder)
    counts = trials["state"].value_counts().sort_index()
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    settings = ", ".join(f"{k} = {v}" for k, v in rename_stored(record.best["settings"]).items())
    return SweepPart(
        name=folder.name,
        title=find_title(record.head, record.settings),
        summary=(
            f"{len(trials)} trials ({states}) on train and val; test was not read. "
            f"Best: trial {record.best['trial']}, {settings}. "
            f"Runs with these settings: {', '.join(record.runs) or 'none yet'}."
        ),
        trials=trials.rename(columns=CURRENT_NAMES),
        importance=importance.replace({"setting": dict(CURRENT_NAMES)}),
    )
