"""The figures of the report, as PNG and SVG; the same runs give the same bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from train.report.paper import TABLE_1
from train.report.results import HeadResult, StoreResults
from train.report.tick_labels import FAMILY, TickLabels

OURS, PAPER, INK, SOFT, GRID = "#1f5fa8", "#d0662a", "#222222", "#a3a3a3", "#d9d9d9"
PNG_DPI = 160

_STYLE: dict[Any, Any] = {
    "font.family": FAMILY,  # ships with matplotlib: the same everywhere
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "svg.hashsalt": "caca-rnn",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a $ in a name is a $
}


def draw_scores(results: StoreResults, path: Path) -> None:
    """Each head's val map_mec and acc: a dot a seed, a bar at the median, the paper's figure.

    Writes ``path`` with the endings .png and .svg, as all figures here do.
    """
    heads = list(reversed(results.heads))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 0.42 * len(heads) + 1.3), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, metric in zip(axes, ("map_mec", "acc"), strict=True):
            for y, result in enumerate(heads):
                values = 100 * result.val_values(metric)
                axis.plot(values, np.full(len(values), y), "o", color=OURS, alpha=0.45, ms=5, mew=0)
                axis.plot([np.median(values)] * 2, [y - 0.3, y + 0.3], color=OURS, lw=2.5)
                paper = TABLE_1.get(result.head) if result.context == "2x2" else None
                if paper:
                    axis.plot(paper.val[metric], y, "D", color=PAPER, mfc="none", ms=5)
            axis.set_xlim(0, 100)
            axis.set_ylim(-0.6, len(heads) - 0.4)
            axis.set_xlabel(f"val {metric}, %")
            axis.grid(axis="x", color=GRID, lw=0.6)
            axis.set_axisbelow(True)
        axes[0].set_yticks(range(len(heads)), [result.title for result in heads])
        axes[1].plot([], [], "o", color=OURS, alpha=0.45, mew=0, label="one seed")
        axes[1].plot([], [], color=OURS, lw=2.5, label="median")
        axes[1].plot([], [], "D", color=PAPER, mfc="none", ls="none", label="paper, CHEAVD 2.0")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        _save(figure, path)


def draw_confusion(result: HeadResult, labels: TickLabels, path: Path) -> None:
    """The median run's confusion matrices: on test, as Fig. 5, where it has labels, and on val.

    Counts of clips, shaded by their share of the true class.
    """
    scores = result.median_scores
    splits = [split for split in ("test", "val") if split in scores]
    # Inches: the cells, what stands around them, and the names, which slant below.
    cells, names = 0.5 * len(labels.texts), 0.085 * labels.n_columns
    width, height = (cells + 0.7 + names) * len(splits), cells + 1.1 + 0.75 * names
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, len(splits), squeeze=False)[0]
        for axis, split in zip(axes, splits, strict=True):
            _draw_counts(axis, np.array(scores[split]["confusion"]), labels)
            axis.set_title(split)
        title = textwrap.fill(result.title, int(10 * width))
        figure.suptitle(title, fontsize=10, fontweight="bold")
        _save(figure, path)


def _draw_counts(axis: Axes, counts: NDArray[np.integer], labels: TickLabels) -> None:
    """counts: [K, K] Clips by true and predicted class."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.ndindex(*counts.shape):
        if counts[true, predicted]:
            color = "white" if shares[true, predicted] > 0.55 else INK
            text = str(counts[true, predicted])
            axis.text(predicted, true, text, ha="center", va="center", color=color)
    ticks, fonts = range(len(counts)), list(labels.families)
    axis.set_xticks(
        ticks, labels.texts, rotation=45, ha="right", rotation_mode="anchor", fontfamily=fonts
    )
    axis.set_yticks(ticks, labels.texts, fontfamily=fonts)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")


def draw_histories(heads: Sequence[HeadResult], path: Path) -> None:
    """The median runs over epochs: train and val loss, and the epoch that was chosen.

    heads: One at least; no ensembles, of which nothing is trained.
    """
    n_columns = min(4, len(heads))
    n_rows = -(-len(heads) // n_columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.3 * n_columns + 0.6, 1.9 * n_rows + 0.5), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).ravel()
        for axis, result in zip(axes, heads, strict=False):
            run = result.median_run
            scored = run.history.dropna(subset=["val_loss"])
            axis.plot(run.history["epoch"], run.history["train_loss"], color=SOFT, lw=2)
            axis.plot(scored["epoch"], scored["val_loss"], color=OURS, lw=1.2)
            axis.axvline(run.summary.best_epoch, color=PAPER, lw=1, ls="--")
            axis.set_title(result.title)
        for axis in axes[len(heads) :]:
            axis.set_visible(False)
        axes[0].plot([], [], color=SOFT, lw=2, label="train")
        axes[0].plot([], [], color=OURS, lw=1.2, label="val")
        axes[0].plot([], [], color=PAPER, lw=1, ls="--", label="chosen epoch")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("loss, nats", fontsize=9)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path.with_suffix(".png"), dpi=PNG_DPI, metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
