"""Class probabilities and metrics into what a run folder tells: metrics, predictions, history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from train.data.clips import UNLABELLED, ClipTable
from train.metrics import SCALARS, summarise_metrics
from train.training.loop import Epoch


def summarise_scores(table: ClipTable, scores: NDArray[np.float64]) -> dict[str, Any]:
    """The metrics of one split as metrics.json holds them; empty where no clip has a label."""
    known = table.labelled
    if len(known) == 0:
        return {}
    groups = [table.group[i] for i in known]
    return summarise_metrics(table.label[known], scores[known], groups)


def tabulate_predictions(
    tables: Mapping[str, ClipTable],
    scores: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
) -> pd.DataFrame:
    """One row a clip: clip_id, split, label, predicted, and ``p_<class>`` for each class."""
    parts = []
    for split, of_split in scores.items():
        table = tables[split]
        if len(table) == 0:
            continue
        part = pd.DataFrame(
            {
                "clip_id": table.clip_id,
                "split": split,
                "label": ["" if i == UNLABELLED else classes[i] for i in table.label],
                "predicted": [classes[i] for i in of_split.argmax(1)],
            }
        )
        for k, name in enumerate(classes):
            part[f"p_{name}"] = of_split[:, k]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def tabulate_history(epochs: Sequence[Epoch]) -> pd.DataFrame:
    """A row an epoch: epoch, train_loss, and ``val_<metric>``, empty where val was not scored."""
    return pd.DataFrame(
        [
            {
                "epoch": row.epoch,
                "train_loss": row.train_loss,
                **{f"val_{n}": getattr(row.val, n) if row.val else np.nan for n in SCALARS},
            }
            for row in epochs
        ]
    )
