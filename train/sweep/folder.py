"""The folder that a sweep leaves among the runs. Imports no network.

::

    sweep-caca-a-5be1d3a0c2f4/
        sweep.json       what was tried, the best settings, the runs that have them
        trials.csv       a row a trial
        importance.csv   what mattered
        trials.db        Optuna's storage, unless another was named
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from features.disk import write_atomically
from features.errors import RunError
from train.runs.folder import DamagedRunError, is_marked, read_json

SWEEP_FORMAT = "caca-rnn-sweep"
SWEEP_VERSION = 1


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
    told = {"format": SWEEP_FORMAT, "version": SWEEP_VERSION, **asdict(record)}
    write_atomically(folder / "sweep.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def find_sweeps(runs: Path) -> list[Path]:
    """The folders of finished sweeps directly in a folder of runs, by name."""
    files = runs.glob("[!.]*/sweep.json")
    return sorted(file.parent for file in files if is_marked(file, SWEEP_FORMAT))


def read_record(folder: Path) -> SweepRecord:
    """sweep.json of a folder. Raises RunError where it cannot be read."""
    file = folder / "sweep.json"
    told = read_json(file)
    found = (told.pop("format", None), told.pop("version", None))
    if found != (SWEEP_FORMAT, SWEEP_VERSION):
        raise RunError(
            f"{file}: format {found[0]!r} version {found[1]!r}, but this code reads "
            f"{SWEEP_FORMAT!r} version {SWEEP_VERSION}. Update the code, or run sweep again."
        )
    try:
        return SweepRecord(**{**told, "runs": tuple(told["runs"])})
    except (TypeError, KeyError) as error:
        raise DamagedRunError(
            f"{file}: not as sweep writes it ({error}). Run sweep again."
        ) from error


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
