"""Run folders on disk: one trained head each, complete or absent. Imports no network.

::

    caca-a-1f0c9e2ab34d-seed0/
        config.json          head, seed, settings, what the store held, library versions
        weights.safetensors  names and layouts of torch.nn
        metrics.json         the run's summary: best epoch, val and test metrics
        history.csv          a row per epoch
        predictions.csv      clip_id, split, label, predicted, p_<class> per class; val and test
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from features.disk import partial_path, publish
from features.errors import RunError

RUN_FORMAT = "caca-rnn-run"
RUN_VERSION = 1

RUN_FILES: tuple[str, ...] = (
    "config.json",
    "weights.safetensors",
    "metrics.json",
    "history.csv",
    "predictions.csv",
)
"""Exactly what a run folder holds."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What came of a run; metrics.json holds just these fields."""

    run: str
    """Name of the folder."""
    head: str
    seed: int
    n_parameters: int
    best_epoch: int
    """From 1."""
    val: Mapping[str, Any]
    """Metric -> value as in ``train.metrics.Metrics``, and ``intervals``: name -> [low, high]."""
    test: Mapping[str, Any]
    """The same; empty where no test clip has a label."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run folder as read from disk, without its weights."""

    path: Path
    config: Mapping[str, Any]
    summary: RunSummary
    history: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.safetensors"


def name_run(head: str, key: str, seed: int, fold: str = "") -> str:
    """The folder of a run.

    Args:
        head: Its head.
        key: A hash of the settings and of the store's clips.
        seed: Its seed.
        fold: Of a run of a fold, for example ``fold2of5``.
    """
    return "-".join(filter(None, [head, key[:12], fold, f"seed{seed}"]))


def write_run(run: Run, weights: bytes) -> None:
    """Write a run beside its final name, fsync, rename: it appears whole or not at all.

    Args:
        run: Its parts; the folder ``run.path`` must not exist.
        weights: Content of weights.safetensors.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    partial = partial_path(run.path)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    write_json(partial / "config.json", dict(run.config))
    (partial / "weights.safetensors").write_bytes(weights)
    write_json(partial / "metrics.json", asdict(run.summary))
    run.history.to_csv(
        partial / "history.csv", index=False, lineterminator="\n", float_format="%.9g"
    )
    run.predictions.to_csv(
        partial / "predictions.csv", index=False, lineterminator="\n", float_format="%.9g"
    )
    publish(partial, run.path)


def is_run(path: Path) -> bool:
    """True where a complete run stands.

    Raises:
        RunError: The folder is there but lacks a file, which no interrupted ``fit`` can cause.
    """
    if not path.is_dir():
        return False
    missing = [name for name in RUN_FILES if not (path / name).is_file()]
    if missing:
        raise RunError(
            f"{path}: {', '.join(missing)} missing. Delete the folder and run fit again, "
            "or copy the run again."
        )
    return True


def find_runs(runs: Path) -> list[Path]:
    """The run folders directly in a folder, by name; other folders are passed over."""
    return sorted(path.parent for path in runs.glob("[!.]*/config.json"))


def read_run(path: Path) -> Run:
    """Read a run folder, all but its weights.

    Raises:
        RunError: No run there, a file is missing or unreadable, or a newer code wrote it.
    """
    if not is_run(path):
        raise RunError(f"{path}: no run folder here. Train one with: cli.py fit")
    config = read_json(path / "config.json")
    found = (config.get("format"), config.get("version"))
    if found != (RUN_FORMAT, RUN_VERSION):
        raise RunError(
            f"{path / 'config.json'}: format {found[0]!r} version {found[1]!r}, but this code "
            f"reads {RUN_FORMAT!r} version {RUN_VERSION}. Update the code, or run fit again."
        )
    text = {"clip_id": str, "label": str, "predicted": str, "split": str}
    try:
        history = pd.read_csv(path / "history.csv")
        predictions = pd.read_csv(path / "predictions.csv", dtype=text, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not readable ({error}). Delete it and run fit again.") from error
    return Run(
        path=path,
        config=config,
        summary=read_summary(path),
        history=history,
        predictions=predictions,
    )


def read_summary(path: Path) -> RunSummary:
    """metrics.json of a run. Raises RunError where it cannot be read."""
    file = path / "metrics.json"
    try:
        return RunSummary(**read_json(file))
    except TypeError as error:
        raise RunError(f"{file}: not a run's summary ({error}). Delete the run and fit.") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}). Delete the run and fit again.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: not a JSON object. Delete the run and fit again.")
    return value
