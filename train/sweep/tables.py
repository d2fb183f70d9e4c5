"""What a sweep tells: its trials, the best of them, and which settings mattered."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution

from train.sweep.space import Space
from train.sweep.storage import COMPLETE, PRUNED, Trial, make_history

N_BANDS = 3
"""A range is told in so many parts of equal width."""


def find_best(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial of the highest value; ties go to accuracy, lower loss, the earlier one."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    return max(
        complete,
        key=lambda t: (t.value, t.result["acc"], -t.result["loss"], -t.slot),
        default=None,
    )


def tabulate_trials(trials: Sequence[Trial], space: Space, select: str) -> pd.DataFrame:
    """A row a trial, in order: trial, state, its settings, and its figures on val, 0..1."""
    rows = [
        {
            "trial": trial.slot,
            "state": trial.state,
            **{key: trial.settings[key] for key in space},
            f"val_{select}": trial.value,
            "val_acc": trial.result.get("acc"),
            "best_epoch": trial.result.get("best_epoch"),
            "n_epochs": trial.result.get("n_epochs"),
            "reason": trial.result.get("reason", ""),
        }
        for trial in trials
    ]
    counts = dict.fromkeys(["best_epoch", "n_epochs"], "Int64")
    return pd.DataFrame(rows).astype(counts if rows else {})


def tabulate_importance(trials: Sequence[Trial], space: Space, *, drawn: bool) -> pd.DataFrame:
    """What mattered: a row for each value of a setting, or each third of its range.

    ``importance`` sums to 1 over settings. Where trials were drawn it is PED-ANOVA (Watanabe et
    al., IJCAI 2023): how much the values of the best tenth differ from those of all. In a grid it
    is the share of the variance of the trials that the setting's means explain, of what all
    settings' means explain. ``mean`` and ``best`` are over complete trials.
    """
    importance = _rate_drawn(trials, space) if drawn else _rate_grid(trials, space)
    rows = []
    for key in sorted(space, key=lambda key: -importance[key]):
        for title, members in _band_trials(trials, key, space[key]):
            values = [t.value for t in members if t.state == COMPLETE and t.value is not None]
            rows.append(
                {
                    "setting": key,
                    "importance": importance[key],
                    "value": title,
                    "complete": len(values),
                    "pruned": sum(t.state == PRUNED for t in members),
                    "mean": float(np.mean(values)) if values else np.nan,
                    "best": max(values, default=np.nan),
                }
            )
    return pd.DataFrame(rows)


def _band_trials(trials: Sequence[Trial], key: str, of_key: Any) -> list[tuple[str, list[Trial]]]:
    if isinstance(of_key, CategoricalDistribution):
        return [
            (str(value), [t for t in trials if t.settings[key] == value])
            for value in of_key.choices
        ]
    space = np.geomspace if of_key.log else np.linspace
    edges = space(of_key.low, of_key.high, N_BANDS + 1)
    band = np.searchsorted(edges[1:-1], [t.settings[key] for t in trials], side="right")
    return [
        (
            f"{edges[i]:.3g}..{edges[i + 1]:.3g}",
            [t for t, of_trial in zip(trials, band, strict=True) if of_trial == i],
        )
        for i in range(N_BANDS)
    ]


def _rate_drawn(trials: Sequence[Trial], space: Space) -> dict[str, float]:
    complete = [trial for trial in trials if trial.state == COMPLETE]
    if len({trial.value for trial in complete}) < 2:
        return dict.fromkeys(space, 0.0)
    study = make_history(complete, space, seed=0, n_startup=0, n_warmup=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(found.get(key, 0.0)) for key in space}


def _rate_grid(trials: Sequence[Trial], space: Space) -> dict[str, float]:
    complete = [trial for trial in trials if trial.state == COMPLETE]
    explained: dict[str, float] = {}
    overall = np.mean([_value(trial) for trial in complete]) if complete else 0.0
    for key, of_key in space.items():
        means = [
            [_value(t) for t in members if t.state == COMPLETE]
            for _, members in _band_trials(complete, key, of_key)
        ]
        explained[key] = float(
            sum(len(values) * (np.mean(values) - overall) ** 2 for values in means if values)
        )
    total = sum(explained.values())
    return {key: value / total if total else 0.0 for key, value in explained.items()}


def _value(trial: Trial) -> float:
    return 0.0 if trial.value is None else trial.value


def describe_best(best: Trial) -> dict[str, Any]:
    """The best trial as JSON values."""
    return {"trial": best.slot, "settings": dict(best.settings), "value": best.value}
