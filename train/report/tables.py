"""The tables of the report, as data frames of texts, ready to print or to write as CSV.

Shares are in percent with two digits, as the paper prints them; "median (lowest-highest)" is over
seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from features.contracts import SPLITS
from train.config import PRESETS
from train.report.paper import TABLE_1, TABLE_2
from train.report.results import HeadResult, StoreResults
from train.runs.folder import Run
from train.streams import ENSEMBLE

NONE = "–"

_SUBMITTED = PRESETS["submitted"].config.members

_SINGLE_STREAMS = frozenset({"face", "context"})
"""Heads of Table I that read one stream."""


def tabulate_table_1(results: StoreResults) -> pd.DataFrame:
    """Table I: every head on val beside the paper; one row a head and setting.

    A head that is not in Table I, or reads other streams than it, has no paper's figures.
    """
    rows = []
    for result in results.heads:
        is_papers = result.context == "2x2" and not result.streams
        paper = TABLE_1.get(result.head) if is_papers else None
        median = result.median_run.summary
        rows.append(
            {
                "Model": result.title,
                "Head": result.name,
                "Parameters": f"{median.n_parameters:,}",
                "Parameters (paper)": paper.parameters if paper else NONE,
                "Seeds": str(len(result.runs)),
                "map_mec": format_spread(result.val_values("map_mec")),
                "acc": format_spread(result.val_values("acc")),
                "uar": format_spread(result.val_values("uar")),
                "Never predicted": f"{median.val['n_never_predicted']} of {len(results.classes)}",
                "mAP (paper)": f"{paper.val['map_mec']:.2f}" if paper else NONE,
                "ACC (paper)": f"{paper.val['acc']:.2f}" if paper else NONE,
            }
        )
    return pd.DataFrame(rows)


def tabulate_table_2(results: StoreResults) -> pd.DataFrame:
    """Table II: the submitted networks on val and test, median run; empty without such runs."""
    rows = []
    for head, row in TABLE_2.items():
        ours = [
            (result.title, result.median_run.summary.val, result.median_run.summary.test)
            for result in results.find([head], context="7x7")
            if result.settings.get("members", _SUBMITTED) == _SUBMITTED and not result.streams
        ]
        for title, val, test in ours if head else [(row.title, {}, {})]:
            scores = _format_scores("val", val, row.val) | _format_scores("test", test, row.test)
            rows.append({"Method": title, **scores})
    return pd.DataFrame(rows if len(rows) > 1 else [])


def tabulate_test(results: StoreResults) -> pd.DataFrame:
    """The median run of each head on val and test, with 95% intervals; a row a head and split."""
    return pd.DataFrame(
        [
            {
                "Model": result.title,
                "Seed": str(result.median_run.summary.seed),
                "Epoch": _format_epoch(result.median_run),
                "Split": split,
                "Clips": str(scores["n_clips"]),
                **{m: format_interval(scores, m) for m in ("map_mec", "acc", "uar")},
                "map_rank": _percent(scores["map_rank"]),
                "f1_macro": _percent(scores["f1_macro"]),
                "Never predicted": str(scores["n_never_predicted"]),
            }
            for result in results.heads
            for split, scores in result.median_scores.items()
        ]
    )


def tabulate_runs(results: StoreResults) -> pd.DataFrame:
    """Every run, with its seed; the one that is reported is marked."""
    return pd.DataFrame(
        [
            {
                "Run": run.path.name,
                "Seed": str(run.summary.seed),
                "Epoch": _format_epoch(run),
                "val map_mec": _percent(run.summary.val["map_mec"]),
                "val acc": _percent(run.summary.val["acc"]),
                "test map_mec": _percent(run.summary.test.get("map_mec")),
                "test acc": _percent(run.summary.test.get("acc")),
                "Reported": "median" if run is result.median_run else "",
            }
            for result in results.heads
            for run in result.runs
        ]
    )


def tabulate_ensembles(results: StoreResults) -> pd.DataFrame:
    """The weight of each member in each ensemble run; empty without ensembles."""
    return pd.DataFrame(
        [
            {
                "Ensemble": result.title,
                "Seed": str(run.summary.seed),
                "Weights": ", ".join(
                    f"{member['head']} {member['weight']:.3f}" for member in run.config["members"]
                ),
                "Temperatures": ", ".join(
                    f"{member['head']} {member.get('temperature', 1.0):.2f}"
                    for member in run.config["members"]
                ),
                "Reported": "median" if run is result.median_run else "",
            }
            for result in results.heads
            if result.head == ENSEMBLE
            for run in result.runs
        ]
    )


def tabulate_classes(results: StoreResults) -> pd.DataFrame:
    """Precision, recall and F1 of the median run of each head, a column a class, in percent."""
    # Not by name: a class may be called as a column is.
    rows = [
        [result.title, split, figure, *map(_percent, scores["per_class"][figure])]
        for result in results.heads
        for split, scores in result.median_scores.items()
        for figure in ("precision", "recall", "f1")
    ]
    return pd.DataFrame(rows, columns=["Model", "Split", "Figure", *results.classes])


def tabulate_coverage(results: StoreResults) -> pd.DataFrame:
    """What the store holds, by split: clips, labels, clips without a face, frames, faces."""
    titles = {
        "n_clips": "Clips",
        "n_labelled": "With a label",
        "n_no_face": "Without a face",
        "n_frames": "Frames",
        "n_faces": "Faces",
    }
    table = pd.DataFrame([results.store["splits"][split] for split in SPLITS], index=SPLITS)
    table = table[list(titles)].rename(columns=titles)
    table.loc["all"] = table.sum()
    return table.rename_axis("Split").reset_index()


def tabulate_labels(results: StoreResults) -> pd.DataFrame:
    """Clips of each class in each split."""
    labels = {split: results.store["splits"][split]["labels"] for split in SPLITS}
    table = pd.DataFrame(labels, index=list(results.classes))
    return table.rename_axis("Class").reset_index()


def tabulate_expressions(results: StoreResults) -> pd.DataFrame:
    """What the face CNN sees in the faces of each class's clips; empty where stores keep none."""
    means: Mapping[str, Mapping[str, float]] = results.store.get("expressions", {})
    rows = [
        {"Class": label, **{name: f"{100 * mean:.1f}" for name, mean in means[label].items()}}
        for label in results.classes
        if label in means
    ]
    return pd.DataFrame(rows)


def tabulate_settings(results: StoreResults) -> pd.DataFrame:
    """The settings of each head, a column a head; equal columns are joined into one."""
    columns: dict[str, Mapping[str, Any]] = {}
    for result in results.heads:
        settings = {**result.settings, "context": result.context}
        same = [name for name, other in columns.items() if other == settings]
        if same:
            columns[f"{same[0]}, {result.name}"] = columns.pop(same[0])
        else:
            columns[result.name] = settings
    names = dict.fromkeys(name for settings in columns.values() for name in settings)
    return pd.DataFrame(
        [
            {"Setting": name, **{heads: str(s.get(name, NONE)) for heads, s in columns.items()}}
            for name in names
        ]
    )


TABLES: Mapping[str, Callable[[StoreResults], pd.DataFrame]] = MappingProxyType(
    {
        "table1": tabulate_table_1,
        "table2": tabulate_table_2,
        "ensembles": tabulate_ensembles,
        "median_runs": tabulate_test,
        "classes": tabulate_classes,
        "coverage": tabulate_coverage,
        "labels": tabulate_labels,
        "expressions": tabulate_expressions,
        "settings": tabulate_settings,
        "runs": tabulate_runs,
    }
)
"""Name of a table's file -> what makes it."""


def compare_streams(results: StoreResults) -> str:
    """Do heads that read both streams beat each stream alone, by the median?

    Returns:
        A sentence for each group of equal settings that has both single streams and another head.
    """
    groups: dict[str, list[HeadResult]] = {}
    for result in results.find(TABLE_1, context="2x2"):
        # The grid is 2x2 whichever way the setting asked for it.
        settings = {k: v for k, v in result.settings.items() if k != "context"}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(result)
    return " ".join(filter(None, map(_compare_streams_of, groups.values())))


def _compare_streams_of(group: Sequence[HeadResult]) -> str:
    medians = {result.name: float(np.median(result.val_values("map_mec"))) for result in group}
    alone = [result.name for result in group if result.head in _SINGLE_STREAMS]
    fused = [result.name for result in group if result.head not in _SINGLE_STREAMS]
    if not fused or {result.head for result in group if result.name in alone} != _SINGLE_STREAMS:
        return ""
    single = max(alone, key=lambda name: medians[name])
    above = [name for name in fused if medians[name] > medians[single]]
    named = f": {', '.join(above)}" if above else ""
    return (
        f"The better single stream is {single} with {100 * medians[single]:.2f}% map_mec; "
        f"{len(above)} of {len(fused)} heads that read both streams are above it{named}."
    )


def _format_scores(
    split: str, ours: Mapping[str, Any], paper: Mapping[str, float]
) -> dict[str, str]:
    return {
        f"{split} map_mec": _percent(ours.get("map_mec")),
        f"{split} acc": _percent(ours.get("acc")),
        f"{split} mAP (paper)": f"{paper['map_mec']:.2f}",
        f"{split} ACC (paper)": f"{paper['acc']:.2f}",
    }


def _format_epoch(run: Run) -> str:
    """The chosen epoch and how many there may be; an ensemble has none."""
    if run.summary.head == ENSEMBLE:
        return NONE
    return f"{run.summary.best_epoch} of {run.config['n_epochs']}"


def format_spread(values: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Median in percent, and lowest and highest where there are several values."""
    middle, low, high = np.median(values), np.min(values), np.max(values)
    spread = f" ({100 * low:.2f}–{100 * high:.2f})" if len(values) > 1 else ""
    return f"{100 * middle:.2f}{spread}"


def format_interval(scores: Mapping[str, Any], metric: str) -> str:
    """A metric of metrics.json in percent, with its 95% interval."""
    low, high = scores["intervals"][metric]
    return f"{100 * scores[metric]:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f}"
