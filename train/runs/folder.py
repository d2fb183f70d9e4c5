"""Run folders on disk: one trained head each, complete or absent. Imports no network.

A run stays as it was trained; where the clips that it is scored on change, a folder with new scores
takes the place of the old one, whole.

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
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from features.disk import partial_path, publish, uninterrupted
from features.errors import RunError
from features.json_records import JsonFormat, parse_object
from train.config import rename_stored
from train.streams import ENSEMBLE

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

_PARTS = ("head", "seed", "context", "streams", "n_epochs", "settings", "store", "versions")
_PARTS_OF = {
    "settings": ("select",),
    "store": (
        "paths", "fingerprint", "clips_sha256", "classes", "splits", "sources", "n_failed",
        "versions",
    ),
    "fold": ("protocol", "name", "number", "n_folds", "key"),
}  # fmt: skip
"""Parts of config.json that are read; ``fold`` is there in runs of folds only."""

_REMEDY = "Copy the folder again, or move it away and run the same again."

_log = logging.getLogger(__name__)

T = TypeVar("T")


class DamagedRunError(RunError):
    """A file of a run's, sweep's or folds' folder is missing or cannot be read."""


_CONFIG_JSON = JsonFormat(
    name=RUN_FORMAT,
    version=RUN_VERSION,
    damaged=DamagedRunError,
    other_version=RunError,
    remedy=_REMEDY,
)
_METRICS_JSON = JsonFormat(name=None, damaged=DamagedRunError, remedy=_REMEDY, strict=True)


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
        key: ``train.naming.hash_runs`` gives it.
        seed: Its seed.
        fold: Of a run of a fold, for example ``fold2of5``.
    """
    return "-".join(filter(None, [head, key[:12], fold, f"seed{seed}"]))


def write_run(run: Run, weights: bytes) -> None:
    """Write a run beside its final name, fsync, rename: it appears whole or not at all.

    A run that stands there is replaced; killed in between, ``restore_folder`` brings it back.

    Args:
        run: Its parts.
        weights: Content of weights.safetensors.

    Raises:
        OSError: The disk is full, or the folder cannot be written; nothing is left.
    """
    partial = partial_path(run.path)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    try:
        _write_files(partial, run, weights)
        publish_folder(partial, run.path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        error.filename = error.filename or str(run.path)  # a failed write does not tell
        raise


def publish_folder(partial: Path, path: Path) -> None:
    """Give a finished folder its final name; the folder that has the name is moved away first."""
    aside = _aside(path)
    with uninterrupted():
        _remove(aside)
        if path.is_symlink() or path.exists():
            path.rename(aside)
        publish(partial, path)
        _remove(aside)


def restore_folder(path: Path) -> None:
    """Bring back a folder that was being replaced when the process was killed; or, where the other
    stands already, remove it."""
    aside = _aside(path)
    if not (path.is_symlink() or path.exists()) and aside.exists():
        aside.rename(path)
    _remove(aside)


def is_run(path: Path) -> bool:
    """True where a complete run stands.

    Raises:
        DamagedRunError: Something else stands there, which no interrupted ``fit`` can cause.
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise DamagedRunError(f"{path}: a file, expected a run folder. Move it away and run fit.")
    if missing := list_missing(path):
        raise DamagedRunError(
            f"{path}: {', '.join(missing)} missing. Copy the run again, or move the folder away "
            "and run fit again."
        )
    return True


def list_missing(path: Path) -> list[str]:
    """Files that a run folder lacks."""
    return [name for name in RUN_FILES if not (path / name).is_file()]


def find_runs(runs: Path) -> list[Path]:
    """The complete run folders directly in a folder, by name; all else is passed over."""
    files = sorted(runs.glob("[!.]*/config.json"))
    return [
        file.parent
        for file in files
        if is_marked(file, RUN_FORMAT) and not list_missing(file.parent)
    ]


def read_runs(runs: Path) -> list[Run]:
    """Read the complete runs in a folder, by name; one that cannot be read is logged, passed over.

    Raises:
        RunError: Newer code wrote one.
    """
    return read_undamaged(find_runs(runs), read_run)


def read_undamaged(places: Iterable[Path], read: Callable[[Path], T]) -> list[T]:
    """Read some folders or files, in order; one that is damaged is logged and passed over."""
    found = []
    for place in places:
        try:
            found.append(read(place))
        except DamagedRunError as error:
            _log.warning("passed over: %s", error)
    return found


def read_run(path: Path) -> Run:
    """Read a run folder, all but its weights.

    Raises:
        RunError: No run there, a file is missing or unreadable, or a newer code wrote it.
    """
    if not is_run(path):
        raise RunError(f"{path}: no run folder here. Train one with: cli.py fit")
    config = read_config(path)
    text = {"clip_id": str, "label": str, "predicted": str, "split": str}
    try:
        history = pd.read_csv(path / "history.csv")
        predictions = pd.read_csv(path / "predictions.csv", dtype=text, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedRunError(f"{path}: not readable ({error}). {_REMEDY}") from error
    return Run(
        path=path,
        config=config,
        summary=read_summary(path),
        history=history,
        predictions=predictions,
    )


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run. Raises RunError where it cannot be read, or newer code wrote it."""
    file = path / "config.json"
    return complete_config(_CONFIG_JSON.parse(file), file)


def complete_config(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """What config.json holds, its settings by the names of now.

    Raises:
        DamagedRunError: It lacks a part that is read.
    """
    parts = (*_PARTS, "members") if config.get("head") == ENSEMBLE else _PARTS
    missing = [name for name in parts if name not in config]
    for name in ("settings", "store", "fold"):
        value = config.get(name, {})
        if not isinstance(value, dict):
            raise DamagedRunError(f"{file}: {name} is {value!r}, expected a JSON object. {_REMEDY}")
        if name in config:
            missing += [f"{name}.{part}" for part in _PARTS_OF[name] if part not in value]
    if missing:
        raise DamagedRunError(f"{file}: lacks {', '.join(missing)}. {_REMEDY}")
    return {**config, "settings": rename_stored(config["settings"])}


def read_summary(path: Path) -> RunSummary:
    """metrics.json of a run. Raises RunError where it cannot be read."""
    return _METRICS_JSON.read(RunSummary, path / "metrics.json")


def is_marked(file: Path, expected: str) -> bool:
    """Whether a JSON file says that it is of one of our formats; what is no file is not opened."""
    try:
        return file.is_file() and parse_object(file.read_bytes()).get("format") == expected
    except (ValueError, OSError):
        return False


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def _write_files(partial: Path, run: Run, weights: bytes) -> None:
    partial.mkdir(parents=True)
    write_json(partial / "config.json", dict(run.config))
    (partial / "weights.safetensors").write_bytes(weights)
    write_json(partial / "metrics.json", asdict(run.summary))
    write_csv(partial / "history.csv", run.history)
    write_csv(partial / "predictions.csv", run.predictions)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table, its numbers with nine digits: enough for float32."""
    table.to_csv(path, index=False, lineterminator="\n", float_format="%.9g")


def _aside(path: Path) -> Path:
    """Where a folder stands while another takes its place."""
    return path.with_name(f".{path.name}.replaced")


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
