"""What a run folder holds of a trained head, and of a run that is scored on other clips."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save
from torch import Tensor

from train.config import describe_settings
from train.data.clips import ClipTable
from train.heads.build import count_parameters
from train.runs.folder import RUN_FORMAT, RUN_VERSION, Run, RunSummary
from train.runs.predictions import summarise_scores, tabulate_history, tabulate_predictions
from train.streams import choose_grid
from train.training.loop import Task, TrainedRun, plan_epochs
from train.training.scoring import score_clips


def finish_run(
    path: Path,
    task: Task,
    trained: TrainedRun,
    scored: Mapping[str, ClipTable],
    described: Mapping[str, Any],
) -> tuple[Run, bytes]:
    """Score the chosen epoch on val and, this once, on test; gather what the folder holds.

    Args:
        path: The run folder to be.
        task: What it was trained on.
        trained: The run.
        scored: ``val`` and ``test``, clips without a label among them.
        described: What config.json tells of the clips: ``store``, and ``fold`` where it is one.

    Returns:
        The run, and the content of weights.safetensors.
    """
    config = task.config
    metrics, predictions = _score(task, trained.state, scored)
    summary = RunSummary(
        run=path.name,
        head=task.head,
        seed=trained.spec.seed,
        n_parameters=count_parameters(task.build_head()),
        best_epoch=trained.best_epoch,
        **metrics,
    )
    run = Run(
        path=path,
        config={
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "head": task.head,
            "seed": trained.spec.seed,
            "context": choose_grid(task.head, config.context),
            "streams": {
                name: {"matrix": matrix, **task.matrices[matrix].describe()}
                for name, matrix in task.streams.items()
            },
            "n_epochs": plan_epochs(len(task.train.labelled), config).n_epochs,
            "settings": describe_settings(task.head, config),
            "device": task.device,
            **described,
            "versions": _find_versions(),
        },
        summary=summary,
        history=tabulate_history(trained.history),
        predictions=predictions,
    )
    weights = {name: tensor.contiguous() for name, tensor in trained.state.items()}
    return run, save(weights)


def score_again(
    run: Run, task: Task, scored: Mapping[str, ClipTable], described: Mapping[str, Any]
) -> Run:
    """A run with the scores of the clips of now; its weights and history stay.

    Args:
        run: As it stands.
        task: Of its head; its train clips are not looked at.
        scored: As of ``finish_run``.
        described: As of ``finish_run``.
    """
    metrics, predictions = _score(task, load_file(run.weights_path), scored)
    return replace(
        run,
        config={**run.config, **described},
        summary=replace(run.summary, **metrics),
        predictions=predictions,
    )


def _score(
    task: Task, weights: Mapping[str, Tensor], scored: Mapping[str, ClipTable]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Split -> its metrics, and the predictions of all."""
    head = task.build_head()
    head.load_state_dict(dict(weights))
    scores = {split: score_clips(head, table, task.streams) for split, table in scored.items()}
    metrics = {split: summarise_scores(scored[split], scores[split]) for split in scored}
    return metrics, tabulate_predictions(scored, scores, task.classes)


def _find_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("caca-rnn", "torch", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was not installed
            versions[package] = "not installed"
    return versions
