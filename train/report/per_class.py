"""The part of the report on single classes: which of them a head finds."""

from __future__ import annotations

import pandas as pd

from train.report.collect import StoreResults

FIGURES = ("precision", "recall", "f1")


def tabulate_classes(results: StoreResults) -> pd.DataFrame:
    """Precision, recall and F1 of the median run of each head, a column a class, in percent."""
    # Not by name: a class may be called as a column is.
    rows = []
    for result in results.heads:
        for split, scores in result.median_scores.items():
            for figure in FIGURES:
                values = scores["per_class"][figure]
                shares = [f"{100 * value:.2f}" for value in values]
                rows.append([result.title, split, figure, *shares])
    return pd.DataFrame(rows, columns=["Model", "Split", "Figure", *results.classes])
