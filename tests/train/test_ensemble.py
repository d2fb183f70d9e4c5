"""The ensemble: the likeliest weights, kept members, and a run folder like any other."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from features.errors import ConfigError, RunError
from features.fingerprint import hash_file
from features.store.writer import write_store
from tests.builders import clip_features
from tests.fits import fit_runs
from train.config import FitConfig
from train.ensemble import (
    PRIOR_CLIPS,
    TEMPERATURES,
    find_member_weights,
    find_temperature,
    mix_probabilities,
    scale_probabilities,
)
from train.fit_jobs import FitProgress
from train.metrics import score_predictions
from train.report.report import run_report
from train.runs.folder import RUN_FILES, find_runs, read_run

CLASSES = ("happy", "sad", "angry")
QUICK = FitConfig(
    epochs=2, min_updates=0, batch_size=4, precision="float32", members="face,context"
)


def objective(weights: NDArray[np.float64], true_class: NDArray[np.float64]) -> float:
    return float(np.log(weights @ true_class).sum() + PRIOR_CLIPS * np.log(weights).sum())


def test_no_other_weights_of_two_members_are_better() -> None:
    true_class = np.random.default_rng(0).random((2, 40))
    found = find_member_weights(true_class)
    assert found.sum() == pytest.approx(1)
    grid = np.linspace(0.001, 0.999, 999)
    best = max(grid, key=lambda w: objective(np.array([w, 1 - w]), true_class))
    assert found[0] == pytest.approx(best, abs=0.001)


@pytest.mark.parametrize(
    ("true_class", "expected"),
    [
        pytest.param([[0.9] * 5, [0.9] * 5, [0.9] * 5], [1 / 3] * 3, id="equal members"),
        pytest.param([[0.9] * 1000, [0.1] * 1000], [1, 0], id="many clips for the first"),
        pytest.param([[0.5, 0.5], [0.0, 0.0]], [0.75, 0.25], id="two clips cannot rule one out"),
        pytest.param([[0.0], [0.0]], [0.5, 0.5], id="nobody gave it a chance"),
    ],
)
def test_weights_follow_the_val_clips_and_few_clips_move_them_little(
    true_class: list[list[float]], expected: list[float]
) -> None:
    np.testing.assert_allclose(find_member_weights(np.array(true_class)), expected, atol=2e-3)


@pytest.mark.parametrize("true_temperature", [0.25, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    told = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    drawn_at = np.exp(logits / true_temperature)
    drawn_at /= drawn_at.sum(1, keepdims=True)
    label = (drawn_at.cumsum(1) < rng.random((len(logits), 1))).sum(1)
    found = find_temperature(told, label)
    assert found == pytest.approx(true_temperature, rel=0.05)


def test_no_other_temperature_makes_the_labels_likelier() -> None:
    rng = np.random.default_rng(1)
    told = rng.dirichlet(np.ones(3), 30)
    label = rng.integers(0, 3, 30)

    def loss(temperature: float) -> float:
        powers = told ** (1 / temperature)
        log_p = np.log(powers / powers.sum(1, keepdims=True))
        imaginary = PRIOR_CLIPS * (told * log_p).sum(1).mean()
        return float(-log_p[np.arange(30), label].sum() - imaginary)

    grid = np.geomspace(*TEMPERATURES, 2000)
    best = min(grid, key=loss)
    assert find_temperature(told, label) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("n_clips", [1, 2])
def test_few_clips_that_are_all_right_make_no_member_sure(n_clips: int) -> None:
    told = np.array([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3]])[:n_clips]
    temperature = find_temperature(told, np.arange(n_clips))
    assert 0.2 < temperature < 1
    assert scale_probabilities(told, temperature).max() < 0.9


def test_many_clips_that_are_all_right_make_a_member_sure() -> None:
    told = np.full((1000, 2), [0.6, 0.4])
    temperature = find_temperature(told, np.zeros(1000, dtype=np.intp))
    # Of 1,001 clips 1,000.6 are of the first class: T is log(0.6 / 0.4) / log(1,000.6 / 0.4).
    assert temperature == pytest.approx(np.log(1.5) / np.log(1000.6 / 0.4), rel=1e-6)


def test_a_member_of_faint_probabilities_that_ranks_well_is_heard() -> None:
    """Two members rank all clips alike; one is ten times as sure: their weights must be equal."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 200)
    logits = rng.normal(0, 1, (200, 3))
    logits[np.arange(200), label] += 2
    members = [np.exp(s * logits) / np.exp(s * logits).sum(1, keepdims=True) for s in (1, 0.1)]
    scaled = [scale_probabilities(p, find_temperature(p, label)) for p in members]
    true_class = np.stack(scaled)[:, np.arange(200), label]
    np.testing.assert_allclose(find_member_weights(true_class), [0.5, 0.5], atol=0.01)


def test_mixing_is_linear() -> None:
    probabilities = np.array([[[0.2, 0.8]], [[0.6, 0.4]]])
    mixed = mix_probabilities(np.array([0.25, 0.75]), probabilities)
    np.testing.assert_allclose(mixed, [[0.5, 0.5]])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [
        clip_features(
            f"c{i:02}",
            label=CLASSES[i % 3] if i != 22 else "",
            split=("train", "train", "val", "test")[i // 3 % 4],
            subject=f"s{i % 5}" if i % 2 else "",
        )
        for i in range(24)
    ]
    path = tmp_path_factory.mktemp("store")
    return write_store(path, clips, classes=CLASSES, fingerprint="test")


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    fit_runs([store], folder, ["ensemble"], [0, 1], QUICK)
    return folder


def test_the_members_are_trained_first_and_then_kept(store: Path, runs: Path) -> None:
    names = [path.name.split("-")[0] for path in find_runs(runs)]
    assert names == ["context"] * 2 + ["ensemble"] * 2 + ["face"] * 2
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*")}
    events: list[FitProgress] = []
    summaries = fit_runs([store], runs, ["ensemble"], [0, 1], QUICK, progress=events.append)
    assert [(e.head, e.seeds, e.state) for e in events] == [
        (head, (0, 1), "skipped") for head in ("face", "context", "ensemble")
    ]
    assert [s.head for s in summaries] == ["face"] * 2 + ["context"] * 2 + ["ensemble"] * 2
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*")} == before


def test_an_ensemble_mixes_the_runs_of_its_own_seed(runs: Path) -> None:
    for run in map(read_run, runs.glob("ensemble-*")):
        assert sorted(file.name for file in run.path.iterdir()) == sorted(RUN_FILES)
        members = [read_run(runs / member["run"]) for member in run.config["members"]]
        assert [member.summary.head for member in members] == ["face", "context"]
        assert {member.summary.seed for member in members} == {run.summary.seed}
        assert [hash_file(member.weights_path) for member in members] == [
            member["weights_sha256"] for member in run.config["members"]
        ]
        stored = load_file(run.weights_path)
        weights, temperatures = stored["member_weights"], stored["member_temperatures"]
        assert weights.tolist() == [member["weight"] for member in run.config["members"]]
        assert temperatures.tolist() == [m["temperature"] for m in run.config["members"]]
        columns = [f"p_{name}" for name in CLASSES]
        scaled = [
            scale_probabilities(member.predictions[columns].to_numpy(), temperature)
            for member, temperature in zip(members, temperatures, strict=True)
        ]
        mixed = mix_probabilities(weights, np.stack(scaled))
        np.testing.assert_allclose(run.predictions[columns], mixed, atol=1e-8)
        assert run.summary.n_parameters == 2 + sum(m.summary.n_parameters for m in members)


def test_metrics_and_intervals_are_those_of_the_predictions(runs: Path) -> None:
    run = read_run(next(runs.glob("ensemble-*")))
    for split, told in (("val", run.summary.val), ("test", run.summary.test)):
        rows = run.predictions[run.predictions["split"] == split]
        rows = rows[rows["label"] != ""]
        labels = np.array([CLASSES.index(label) for label in rows["label"]])
        scored = score_predictions(labels, rows[[f"p_{name}" for name in CLASSES]].to_numpy())
        assert told["n_clips"] == len(rows)
        assert told["confusion"] == scored.confusion.tolist()
        low, high = told["intervals"]["acc"]
        assert low <= told["acc"] <= high
    assert run.history["val_acc"].tolist() == [pytest.approx(run.summary.val["acc"])]


def test_the_weights_never_see_test(store: Path, runs: Path, tmp_path: Path) -> None:
    for path in runs.iterdir():
        if path.name.startswith("ensemble"):
            continue
        copy = tmp_path / path.name
        copy.mkdir()
        for file in path.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        predictions = read_run(copy).predictions
        at = predictions["split"] == "test"
        predictions.loc[at, [f"p_{name}" for name in CLASSES]] = 1 / 3
        predictions.to_csv(copy / "predictions.csv", index=False)
    fit_runs([store], tmp_path, ["ensemble"], [0], QUICK)
    (one,), (other,) = tmp_path.glob("ensemble-*seed0"), runs.glob("ensemble-*seed0")
    name = "weights.safetensors"
    assert (one / name).read_bytes() == (other / name).read_bytes()


def test_other_members_make_another_run(store: Path, runs: Path, tmp_path: Path) -> None:
    for path in runs.glob("[cf]*"):
        (tmp_path / path.name).symlink_to(path)
    fit_runs([store], tmp_path, ["ensemble"], [0], QUICK)
    fit_runs([store], tmp_path, ["ensemble"], [0], replace(QUICK, members="context,face"))
    assert len(list(tmp_path.glob("ensemble-*"))) == 2


def test_a_member_of_other_clips_is_refused(store: Path, runs: Path, tmp_path: Path) -> None:
    for path in runs.glob("[cf]*seed0"):
        copy = tmp_path / path.name
        copy.mkdir()
        for file in path.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    table = read_run(copy).predictions
    table.iloc[1:].to_csv(copy / "predictions.csv", index=False)
    with pytest.raises(RunError, match=r"its val clips are not those of the store"):
        fit_runs([store], tmp_path, ["ensemble"], [0], QUICK)
    assert not list(tmp_path.glob("ensemble-*"))


@pytest.mark.parametrize("members", ["caca", "caca,caca", "caca,cacao", "caca,ensemble", ""])
def test_members_are_two_heads_or_more(members: str) -> None:
    with pytest.raises(ConfigError, match="members"):
        FitConfig(members=members)


def test_the_report_names_an_ensembles_members(runs: Path, tmp_path: Path) -> None:
    run_report(runs, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "Face-RNN + Context-RNN" in page
    assert re.search(r"--head ensemble .*--set members=face,context", page)
    assert json.loads((next(runs.glob("ensemble-*")) / "config.json").read_text())["n_epochs"] == 1
