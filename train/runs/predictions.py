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
        part = pd.DataFrame(of_split, columns=[f"p_{name}" for name in classes])
        part.insert(0, "clip_id", table.clip_id)
        part.insert(1, "split", split)
        part.insert(2, "label", ["" if i == UNLABELLED else classes[i] for i in table.label])
        part.insert(3, "predicted", [classes[i] for i in of_split.argmax(1)])
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def tabulate_history(epochs: Sequence[Epoch]) -> pd.DataFrame:
    """A row an epoch: epoch, train_loss, and ``val_<metric>``, empty where val was not scored."""
    scored = [
        row.val.list_scalars() if row.val else dict.fromkeys(SCALARS, np.nan) for row in epochs
    ]
    table = pd.DataFrame(scored).add_prefix("val_")
    table.insert(0, "epoch", [row.epoch for row in epochs])
    table.insert(1, "train_loss", [row.train_loss for row in epochs])
    return table
