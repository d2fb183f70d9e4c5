"""Folds put together: the test predictions of all folds of a head and seed, scored once.

::

    folds-caca-a-1f0c9e2ab34d-seed0/
        pooled.json       head, seed, protocol, the folds' runs, and the metrics of the whole
        predictions.csv   clip_id, fold, label, predicted, p_<class> per class; each clip once
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.disk import partial_path
from features.errors import RunError
from features.fingerprint import hash_json
from features.json_records import JsonFormat
from train.config import rename_stored
from train.metrics import summarise_metrics
from train.runs.folder import (
    DamagedRunError,
    Run,
    is_marked,
    publish_folder,
    read_undamaged,
    write_csv,
)

POOLED_FORMAT = "caca-rnn-folds"
_POOLED_JSON = JsonFormat(
    name=POOLED_FORMAT,
    damaged=DamagedRunError,
    other_version=RunError,
    remedy="Run fit again.",
    strict=True,
)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """What came of all folds of one head and seed; pooled.json holds these fields."""

    pooled: str
    """Name of the folder."""
    head: str
    seed: int
    protocol: str
    """``subject`` or ``source``."""
    key: str
    """Of the division into folds: the same for all heads and seeds."""
    context: str
    settings: Mapping[str, Any]
    store: Mapping[str, Any]
    """As ``train.data.stores.describe_stores`` tells of it; with the manifest's splits."""
    runs: tuple[str, ...]
    """The runs' folders, by fold."""
    test: Mapping[str, Any]
    """Metrics over the clips of all folds, and ``intervals``; empty where no clip has a label."""


def pool_runs(
    runs: Sequence[Run], store: Mapping[str, Any], subjects: Mapping[str, str]
) -> tuple[Pooled, pd.DataFrame]:
    """Put the test predictions of a head's folds together and score them as one set.

    Args:
        runs: One a fold, of one head, seed and setting.
        store: For ``Pooled.store``.
        subjects: Clip id -> subject, or empty where none is known: what intervals draw.

    Returns:
        The summary, and the predictions, a row a clip.
    """
    first = runs[0]
    fold, classes = first.config["fold"], list(store["classes"])
    tables = []
    for run in runs:
        test = run.predictions[run.predictions["split"] == "test"].drop(columns="split")
        tables.append(test.assign(fold=run.config["fold"]["name"]))
    table = pd.concat(tables, ignore_index=True).sort_values("clip_id", ignore_index=True)
    table.insert(1, "fold", table.pop("fold"))
    known = table[table["label"] != ""]
    metrics: dict[str, Any] = {}
    if len(known):
        labels = np.array([classes.index(label) for label in known["label"]], np.intp)
        scores = known[[f"p_{name}" for name in classes]].to_numpy(np.float64)
        groups = [subjects[clip_id] or clip_id for clip_id in known["clip_id"]]
        metrics = summarise_metrics(labels, scores, groups)
    # Named by its runs: where those stay and are scored on other clips, it is replaced.
    key = hash_json([run.path.name.removesuffix(f"-seed{run.summary.seed}") for run in runs])
    pooled = Pooled(
        pooled=f"folds-{first.summary.head}-{key[:12]}-seed{first.summary.seed}",
        head=first.summary.head,
        seed=first.summary.seed,
        protocol=fold["protocol"],
        key=fold["key"],
        context=first.config["context"],
        settings=first.config["settings"],
        store=store,
        runs=tuple(run.path.name for run in runs),
        test=metrics,
    )
    return pooled, table


def write_pooled(folder: Path, pooled: Pooled, predictions: pd.DataFrame) -> None:
    """Write ``folder / pooled.pooled``, whole or not at all; another one is replaced."""
    path = folder / pooled.pooled
    file = path / "pooled.json"
    if is_marked(file, POOLED_FORMAT) and _POOLED_JSON.read(Pooled, file) == pooled:
        return
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed fit left
    partial.mkdir(parents=True)
    (partial / "pooled.json").write_text(_POOLED_JSON.dump(pooled), encoding="utf-8")
    write_csv(partial / "predictions.csv", predictions)
    publish_folder(partial, path)


def find_pooled(runs: Path) -> list[Pooled]:
    """All that were put together in a folder of runs, by name; what is none is passed over.

    One that cannot be read is logged and passed over.

    Raises:
        RunError: Newer code wrote one.
    """
    files = sorted(runs.glob("[!.]*/pooled.json"))
    return read_undamaged([f for f in files if is_marked(f, POOLED_FORMAT)], _read_pooled)


def _read_pooled(file: Path) -> Pooled:
    pooled = _POOLED_JSON.read(Pooled, file)
    return replace(pooled, settings=rename_stored(pooled.settings))
