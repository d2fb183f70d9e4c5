"""Metrics: their definitions, scikit-learn as the oracle, and intervals over subjects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    precision_score,
)

from train.metrics import bootstrap_intervals, score_predictions, summarise_metrics


def one_hot(predicted: list[int], n_classes: int) -> NDArray[np.float64]:
    return np.eye(n_classes)[predicted]


@pytest.mark.parametrize(
    ("labels", "predicted", "n_classes", "expected"),
    [
        pytest.param([0, 1, 2], [0, 1, 2], 3, 1.0, id="all right"),
        pytest.param([0, 0, 1, 1], [0, 0, 0, 1], 2, (2 / 3 + 1) / 2, id="precision, not recall"),
        pytest.param([0, 0, 1], [0, 0, 0], 2, (2 / 3 + 0) / 2, id="a class never predicted is 0"),
        pytest.param([0, 1], [0, 1], 4, 0.5, id="a declared class without clips counts"),
    ],
)
def test_map_mec_is_the_mean_precision_of_the_declared_classes(
    labels: list[int], predicted: list[int], n_classes: int, expected: float
) -> None:
    metrics = score_predictions(np.array(labels), one_hot(predicted, n_classes))
    assert metrics.map_mec == pytest.approx(expected)


def test_classes_never_predicted_are_counted() -> None:
    metrics = score_predictions(np.array([0, 1, 2]), one_hot([0, 0, 1], 4))
    assert metrics.n_never_predicted == 2


def test_the_confusion_matrix_has_true_classes_as_rows() -> None:
    metrics = score_predictions(np.array([0, 0, 1]), one_hot([0, 1, 1], 2))
    assert metrics.confusion.tolist() == [[1, 1], [0, 1]]


@given(seed=st.integers(0, 10_000), n=st.integers(2, 40), k=st.integers(2, 5))
def test_metrics_agree_with_scikit_learn(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n)])  # each class has a clip
    scores = rng.integers(0, 5, (len(labels), k)) + rng.random(k) * 1e-3  # with many ties
    ours = score_predictions(labels, scores / scores.sum(1, keepdims=True))
    scores = scores / scores.sum(1, keepdims=True)
    predicted = scores.argmax(1)
    precision = precision_score(
        labels, predicted, labels=range(k), average="macro", zero_division=0
    )
    ranked = [average_precision_score(labels == i, scores[:, i]) for i in range(k)]
    assert ours.map_mec == pytest.approx(precision)
    assert ours.map_rank == pytest.approx(np.mean(ranked))
    assert ours.uar == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert ours.f1_macro == pytest.approx(
        f1_score(labels, predicted, average="macro", zero_division=0)
    )
    assert ours.acc == pytest.approx(np.mean(labels == predicted))


def test_map_rank_does_not_depend_on_the_order_of_equal_scores() -> None:
    labels = np.array([1, 0, 0, 1])
    scores = np.full((4, 2), 0.5)
    forward = score_predictions(labels, scores).map_rank
    assert score_predictions(labels[::-1], scores).map_rank == forward


def test_the_loss_is_the_mean_negative_log_likelihood() -> None:
    metrics = score_predictions(np.array([0, 1]), np.array([[0.5, 0.5], [0.75, 0.25]]))
    assert metrics.loss == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 2)


def test_nothing_to_score_is_a_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        score_predictions(np.zeros(0, int), np.zeros((0, 2)))


def test_intervals_enclose_the_value_and_repeat_with_the_seed() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    predicted = np.where(rng.random(90) < 0.6, labels, rng.integers(0, 3, 90))
    groups = [f"subject{i % 30}" for i in range(90)]
    intervals = bootstrap_intervals(labels, predicted, groups, 3)
    metrics = score_predictions(labels, one_hot(predicted.tolist(), 3))
    for name, (low, high) in intervals.items():
        assert low < getattr(metrics, name) < high
    assert bootstrap_intervals(labels, predicted, groups, 3) == intervals


def test_intervals_are_wider_when_few_subjects_stand_for_many_clips() -> None:
    """Four people, each always right or always wrong: the clips say 160 times too much."""
    labels = np.zeros(160, int)
    predicted = np.repeat([0, 1, 0, 1], 40)
    by_subject = bootstrap_intervals(labels, predicted, [f"s{i // 40}" for i in range(160)], 2)
    by_clip = bootstrap_intervals(labels, predicted, [f"c{i}" for i in range(160)], 2)
    assert by_subject["acc"] == (0.0, 1.0)
    assert by_clip["acc"][1] - by_clip["acc"][0] < 0.2


def test_one_subject_says_nothing_about_others() -> None:
    intervals = bootstrap_intervals(np.array([0, 1]), np.array([0, 1]), ["a", "a"], 2)
    assert intervals["map_mec"] == (0.0, 1.0)


@given(seed=st.integers(0, 99), n_classes=st.integers(2, 5))
def test_figures_per_class_agree_with_scikit_learn(seed: int, n_classes: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, 12)
    predicted = rng.integers(0, n_classes, 12)
    groups = [f"c{i}" for i in range(12)]
    told = summarise_metrics(labels, one_hot(predicted.tolist(), n_classes), groups)
    expected = precision_recall_fscore_support(
        labels, predicted, labels=range(n_classes), zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(told["per_class"][name], values)
    assert told["map_mec"] == pytest.approx(np.mean(told["per_class"]["precision"]))
    assert told["n_never_predicted"] == n_classes - len(set(predicted))
    assert set(told["intervals"]) == {"map_mec", "acc", "uar"}
