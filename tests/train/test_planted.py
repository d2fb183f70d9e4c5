"""The science on stores with a known answer: a head finds what its streams say, and only that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.planted import read_attention
from benchmarks.planted_store import CLASSES, N_STEPS, write_planted_store
from tests.fits import fit_runs
from train.config import FitConfig

CONFIG = FitConfig(
    context="2x2",
    lr=5e-4,
    batch_size=16,
    epochs=2,
    min_updates=0,
    patience=1.0,
    precision="float32",
    select="acc",
)
N_TEST = 150
CHANCE = 1 / len(CLASSES)
NEAR_CHANCE = CHANCE + 4 * (CHANCE * (1 - CHANCE) / N_TEST) ** 0.5
"""Four standard deviations of what guessing gets: 49%."""


def fit_accuracy(store: Path, runs: Path, heads: list[str], config: FitConfig) -> dict[str, float]:
    """Accuracy on test, which no choice was made on."""
    return {s.head: s.test["acc"] for s in fit_runs([store], runs, heads, [0], config)}


@pytest.mark.parametrize(("planted", "other"), [("face", "context"), ("context", "face")])
def test_a_label_in_one_stream_is_found_there_by_fused_heads_too_and_not_in_the_other(
    planted: str, other: str, tmp_path: Path
) -> None:
    n_clips = {"train": 120, "val": 12, "test": N_TEST}
    store = write_planted_store(tmp_path / "store", planted, n_clips)
    heads = [planted, other, "caca"]
    acc = fit_accuracy(store, tmp_path / "runs", heads, CONFIG)
    assert acc.pop(other) < NEAR_CHANCE
    assert min(acc.values()) > 0.95, acc


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mood that counts is that of the place which the faces name."""
    n_clips = {"train": 400, "val": 48, "test": N_TEST}
    return write_planted_store(tmp_path_factory.mktemp("both"), "both", n_clips)


def test_a_label_in_both_together_is_in_neither_stream_nor_in_their_sum(
    both: Path, tmp_path: Path
) -> None:
    # Parallel-RNN adds what its branches say; where each alone says nothing, so does the sum.
    heads = ["face", "context", "parallel"]
    acc = fit_accuracy(both, tmp_path, heads, replace(CONFIG, epochs=4))
    assert max(acc.values()) < NEAR_CHANCE, acc


def test_heads_that_relate_the_streams_find_it_and_the_submitted_cascade_looks_at_its_step(
    both: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=12)
    concatenated, caca = fit_runs([both], tmp_path, ["concatenated", "caca"], [0], config)
    assert concatenated.test["acc"] > 0.75
    assert caca.test["acc"] > 0.9
    weights = read_attention(tmp_path / caca.run, both)  # the planted step's first
    assert weights.shape == (N_TEST, N_STEPS)
    assert weights[:, 0].mean() > 0.7
    assert (weights.argmax(1) == 0).mean() > 0.9
