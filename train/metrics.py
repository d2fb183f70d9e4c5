"""How good predictions are: the metrics of MEC 2017 and their intervals. Pure numpy.

``labels`` are class numbers 0..K-1, ``scores`` are probabilities [N, K]. A bare "mAP" does not
exist here: ``map_mec`` and ``map_rank`` are two different things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.seeds import make_rng

N_RESAMPLES = 1000
"""Bootstrap resamples behind an interval."""

SCALARS: tuple[str, ...] = ("loss", "map_mec", "map_rank", "acc", "uar", "f1_macro")
"""The metrics that are plotted over epochs, in the order of history.csv."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """What is known of one set of predictions. All but the counts and the loss lie in 0..1."""

    n_clips: int
    map_mec: float
    """Macro average precision of MEC 2016/2017, which Tables I and II call mAP."""
    map_rank: float
    """Mean over classes of the average precision of the ranking by score."""
    acc: float
    uar: float
    """Unweighted average recall: the mean recall of the classes that have a clip."""
    f1_macro: float
    n_never_predicted: int
    """Declared classes that no clip was given; each counts 0 in ``map_mec``."""
    loss: float
    """Mean negative log-likelihood of the true class, in nats."""
    confusion: NDArray[np.int64]
    """[K, K] Clips by true class (row) and predicted class (column)."""

    def list_scalars(self) -> dict[str, float]:
        """What the history of a run tells of an epoch."""
        return {name: getattr(self, name) for name in SCALARS}


def score_predictions(labels: NDArray[np.intp], scores: NDArray[np.floating]) -> Metrics:
    """Score predictions against labels; the predicted class is the one of the highest score.

    Args:
        labels: [N] True class of each clip, 0..K-1, N >= 1.
        scores: [N, K] Probability of each class.

    Raises:
        ValueError: No clips, or shapes that do not belong together.
    """
    if len(labels) == 0 or scores.ndim != 2 or len(scores) != len(labels):
        raise ValueError(f"{labels.shape} labels and {scores.shape} scores cannot be compared")
    confusion = count_confusion(labels, scores.argmax(axis=1), scores.shape[1])
    true_class = scores[np.arange(len(labels)), labels].astype(np.float64)
    return Metrics(
        n_clips=len(labels),
        map_mec=float(compute_map_mec(confusion)),
        map_rank=compute_map_rank(labels, scores),
        acc=float(compute_acc(confusion)),
        uar=float(compute_uar(confusion)),
        f1_macro=compute_f1_macro(confusion),
        n_never_predicted=int((confusion.sum(axis=0) == 0).sum()),
        loss=float(-np.log(np.maximum(true_class, np.finfo(np.float32).tiny)).mean()),
        confusion=confusion,
    )


def summarise_metrics(
    labels: NDArray[np.intp], scores: NDArray[np.floating], groups: Sequence[str]
) -> dict[str, Any]:
    """What metrics.json tells of a set of predictions, as plain JSON values.

    The fields of ``Metrics``; ``per_class``, lists in the order of classes: ``precision``,
    ``recall``, ``f1`` (0 where there is nothing to divide by) and ``support``, the clips of the
    class; and ``intervals``, as ``bootstrap_intervals`` gives them.

    Args:
        labels: [N] As of ``score_predictions``.
        scores: [N, K] As of ``score_predictions``.
        groups: [N] As of ``bootstrap_intervals``.
    """
    metrics = score_predictions(labels, scores)
    intervals = bootstrap_intervals(labels, scores.argmax(1), groups, scores.shape[1])
    return {
        **asdict(metrics),
        "confusion": metrics.confusion.tolist(),
        "per_class": _describe_classes(metrics.confusion),
        "intervals": {name: list(ends) for name, ends in intervals.items()},
    }


def count_confusion(
    labels: NDArray[np.intp], predicted: NDArray[np.intp], n_classes: int
) -> NDArray[np.int64]:
    """Count clips by true class (row) and predicted class (column): [K, K]."""
    cells = labels * n_classes + predicted
    counts = np.bincount(cells, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes).astype(np.int64)


def compute_map_mec(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean over all declared classes of TP / (TP + FP); a class never predicted counts 0.

    The "macro average precision" of MEC 2016 and 2017. confusion: [..., K, K]; returns [...].
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.asarray(_divide(hits, confusion.sum(axis=-2)).mean(axis=-1))


def compute_acc(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of clips whose class was found. confusion: [..., K, K]; returns [...]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _divide(hits.sum(axis=-1), confusion.sum(axis=(-2, -1)))


def compute_uar(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Mean recall of the classes that have a clip. confusion: [..., K, K]; returns [...]."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    of_class = confusion.sum(axis=-1)
    return _divide(_divide(hits, of_class).sum(axis=-1), (of_class > 0).sum(axis=-1))


def compute_f1_macro(confusion: NDArray[np.integer]) -> float:
    """Mean F1 of the classes that have a clip or a prediction. confusion: [K, K]."""
    hits = np.diagonal(confusion)
    named = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(_divide(2 * hits, named).sum() / max((named > 0).sum(), 1))


def compute_map_rank(labels: NDArray[np.intp], scores: NDArray[np.floating]) -> float:
    """Mean over classes of average precision; a class without a clip has none and is left out.

    Average precision is the sum over score thresholds of precision times the step in recall; clips
    of equal score enter together, so their order does not matter.
    """
    per_class = [
        _average_precision(labels == k, scores[:, k])
        for k in range(scores.shape[1])
        if np.any(labels == k)
    ]
    return float(np.mean(per_class))


def bootstrap_intervals(
    labels: NDArray[np.intp],
    predicted: NDArray[np.intp],
    groups: Sequence[str],
    n_classes: int,
    *,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95% intervals of map_mec, acc and uar, by drawing whole groups with replacement.

    Clips of one person are alike, so the person is drawn, not the clip. With a single group
    nothing can be said, and the interval is 0..1.

    Args:
        labels: [N] True classes.
        predicted: [N] Predicted classes.
        groups: [N] Subject of each clip; the clip's own id where no subject is known.
        n_classes: K.
        seed: Of the draws.

    Returns:
        Metric name to (2.5%, 97.5%) percentiles.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == 1:
        return dict.fromkeys(("map_mec", "acc", "uar"), (0.0, 1.0))
    counts = np.zeros((len(names), n_classes, n_classes), np.int64)
    np.add.at(counts, (group, labels, predicted), 1)
    rng = make_rng("bootstrap", seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=N_RESAMPLES)
    confusions = np.tensordot(draws, counts, axes=1)  # [R, K, K]
    rates = {"map_mec": compute_map_mec, "acc": compute_acc, "uar": compute_uar}
    ends = {name: np.quantile(rate(confusions), (0.025, 0.975)) for name, rate in rates.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _describe_classes(confusion: NDArray[np.integer]) -> dict[str, list[float] | list[int]]:
    hits, support, named = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": _divide(hits, named).tolist(),
        "recall": _divide(hits, support).tolist(),
        "f1": _divide(2 * hits, support + named).tolist(),
        "support": support.tolist(),
    }


def _average_precision(is_class: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # last of equal scores
    hits = np.cumsum(is_class[order])[ends]
    recall = np.concatenate([[0.0], hits / hits[-1]])
    return float(np.sum(np.diff(recall) * hits / (ends + 1)))


def _divide(top: NDArray[np.integer], bottom: NDArray[np.integer]) -> NDArray[np.float64]:
    """Top / bottom, 0 where bottom is 0."""
    result = np.zeros(np.broadcast_shapes(np.shape(top), np.shape(bottom)))
    np.divide(top, bottom, out=result, where=np.asarray(bottom) > 0)
    return result
