"""The folder that a sweep leaves among the runs. Imports no network.

::

    sweep-caca-a-5be1d3a0c2f4/
        sweep.json       what was tried, the best settings, the runs that have them
        trials.csv       a row a trial
        importance.csv   what mattered
        trials.db        Optuna's storage, unless another was named
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from features.disk import write_atomically
from features.errors import RunError
from features.json_records import JsonFormat
from train.runs.folder import DamagedRunError, is_marked

SWEEP_FORMAT = "caca-rnn-sweep"
_SWEEP_JSON = JsonFormat(
    name=SWEEP_FORMAT,
    damaged=DamagedRunError,
    other_version=RunError,
    remedy="Run sweep again.",
    strict=True,
)


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """What sweep.json tells."""

    sweep: str
    """Name of the folder."""
    head: str
    kind: str
    """``grid`` or ``trials``."""
    settings: Mapping[str, Any]
    """Of every trial, but for what is varied."""
    space: Mapping[str, Any]
    """Setting -> what it may be, as Optuna writes a distribution; in older files a list of choices,
    or ``low``, ``high`` and ``whole``."""
    trial_seeds: int
    store: Mapping[str, Any]
    """``fingerprint``, and ``learned_sha256`` of the train and val clips that have a label."""
    best: Mapping[str, Any]
    """``trial``, ``value`` and ``settings``."""
    runs: tuple[str, ...]
    """Run folders with the best settings."""


def write_tables(folder: Path, trials: pd.DataFrame, importance: pd.DataFrame) -> None:
    """Write trials.csv and importance.csv."""
    for name, table in (("trials.csv", trials), ("importance.csv", importance)):
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        write_atomically(folder / name, text)


def write_record(folder: Path, record: SweepRecord) -> None:
    """Write sweep.json."""
    write_atomically(folder / "sweep.json", _SWEEP_JSON.dump(record))


def find_sweeps(runs: Path) -> list[Path]:
    """The folders of finished sweeps directly in a folder of runs, by name."""
    files = runs.glob("[!.]*/sweep.json")
    return sorted(file.parent for file in files if is_marked(file, SWEEP_FORMAT))


def read_record(folder: Path) -> SweepRecord:
    """sweep.json of a folder. Raises RunError where it cannot be read."""
    return _SWEEP_JSON.read(SweepRecord, folder / "sweep.json")


def read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """trials.csv and importance.csv, every cell as text. Raises RunError where one is missing."""
    try:
        trials, importance = (
            pd.read_csv(folder / name, dtype=str, keep_default_na=False)
            for name in ("trials.csv", "importance.csv")
        )
    except FileNotFoundError as error:
        raise DamagedRunError(f"{error.filename}: missing. Run the same sweep again.") from error
    except ValueError as error:
        raise DamagedRunError(
            f"{folder}: its tables cannot be read ({error}). Run the same sweep again."
        ) from error
    return trials, importance
