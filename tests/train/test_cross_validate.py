"""fit --folds and --test-store: every clip tested once, by a run that did not learn from it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from features.errors import ConfigError
from features.store.reader import open_store
from features.store.writer import write_store
from tests.builders import clip_features
from tests.fits import fit_folds, fit_runs
from train.config import FitConfig
from train.fit import FitResult
from train.metrics import score_predictions
from train.runs.folder import read_run
from train.runs.pooled import find_pooled

CLASSES = ("happy", "sad", "angry")
QUICK = FitConfig(epochs=2, min_updates=0, batch_size=8, precision="float32")


def people_store(path: Path, *, prefix: str = "c", **changed: Any) -> Path:
    """18 clips of two steps, three of each of six people, from two films."""
    clips = [
        clip_features(
            f"{prefix}{i:02}",
            **{
                "n_frames": 2,
                "label": CLASSES[i % 3],
                "split": ("train", "train", "val", "test")[i % 4],
                "subject": f"{prefix}-s{i // 3}",
                "source": f"film{i // 9}",
            }
            | changed,
        )
        for i in range(18)
    ]
    return write_store(path, clips, classes=CLASSES, fingerprint="test")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folds(store: Path, runs: Path) -> FitResult:
    """Three folds, two seeds, trained once for the tests that only look."""
    return fit_folds([store], runs, ["face"], [0, 1], QUICK, folds="3")


def test_each_fold_is_a_run_that_tells_its_fold(folds: FitResult, runs: Path, store: Path) -> None:
    assert len(folds.runs) == 6
    subjects = open_store(store).clips.set_index("clip_id")["subject"]
    for summary in folds.runs:
        run = read_run(runs / summary.run)
        fold = run.config["fold"]
        assert f"fold{fold['number']}of3-seed{summary.seed}" in summary.run
        scored = run.predictions.assign(subject=run.predictions["clip_id"].map(subjects))
        assert set(scored["split"]) == {"val", "test"}
        assert (scored.groupby("subject")["split"].nunique() == 1).all()
        assert run.config["store"]["splits"]["train"]["n_clips"] == 18 - len(scored)


def test_the_pooled_result_scores_every_clip_once(
    folds: FitResult, runs: Path, store: Path
) -> None:
    assert list(folds.pooled) == find_pooled(runs)
    for one in folds.pooled:
        assert one.runs == tuple(s.run for s in folds.runs if s.seed == one.seed)
        parts = [read_run(runs / name).predictions for name in one.runs]
        tested = {
            row["clip_id"]: row
            for part in parts
            for row in part[part["split"] == "test"].to_dict("records")
        }
        assert sorted(tested) == sorted(open_store(store).clips["clip_id"])
        labels = np.array([CLASSES.index(row["label"]) for row in tested.values()])
        scores = np.array([[row[f"p_{name}"] for name in CLASSES] for row in tested.values()])
        expected = score_predictions(labels, scores)
        assert one.test["n_clips"] == 18
        assert one.test["map_mec"] == pytest.approx(expected.map_mec)
        assert one.test["confusion"] == expected.confusion.tolist()
        low, high = one.test["intervals"]["acc"]
        assert low <= one.test["acc"] <= high


def test_complete_folds_are_kept(
    folds: FitResult, runs: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states = []
    again = fit_folds(
        [store],
        runs,
        ["face"],
        [0, 1],
        QUICK,
        folds="3",
        progress=lambda told: states.append(told.state),
    )
    assert set(states) == {"skipped"}
    assert again == folds
    # Subjects share splits of the manifest, which play no part, and none of a fold.
    assert caplog.text == ""


def test_leaving_a_source_out_scores_it_from_the_other(store: Path, tmp_path: Path) -> None:
    summary = fit_folds([store], tmp_path, ["face"], [0], QUICK, folds="source")
    sources = open_store(store).clips.set_index("clip_id")["source"]
    for one in summary.runs:
        run = read_run(tmp_path / one.run)
        test = run.predictions[run.predictions["split"] == "test"]
        assert set(test["clip_id"].map(sources)) == {run.config["fold"]["name"]}
    assert summary.pooled[0].protocol == "source"


def test_clips_without_a_subject_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = people_store(tmp_path / "store", subject="")
    with caplog.at_level(logging.WARNING):
        fit_folds([store], tmp_path / "runs", ["face"], [0], QUICK, folds="2")
    assert "18 of 18 clips have no subject" in caplog.text


def test_test_stores_are_tested_on_and_learned_nothing_from(store: Path, tmp_path: Path) -> None:
    more = people_store(tmp_path / "more", prefix="d")
    other = people_store(tmp_path / "other", prefix="e")
    (summary,) = fit_runs(
        [store, more], tmp_path / "runs", ["face"], [0], QUICK, test_stores=[other]
    )
    run = read_run(tmp_path / "runs" / summary.run)
    splits = run.config["store"]["splits"]
    assert [splits[s]["n_clips"] for s in ("train", "val", "test")] == [20, 8, 4]
    test = run.predictions[run.predictions["split"] == "test"]
    assert all(clip_id.startswith("e") for clip_id in test["clip_id"])
    assert run.config["store"]["paths"] == [str(store), str(more)]
    assert run.config["store"]["test_paths"] == [str(other)]


def test_a_test_store_of_another_kind_is_refused(store: Path, tmp_path: Path) -> None:
    clips = [clip_features("x", split="test", label="happy")]
    other = write_store(tmp_path / "other", clips, classes=CLASSES, fingerprint="other")
    with pytest.raises(ConfigError, match="fingerprint other"):
        fit_runs([store], tmp_path / "runs", ["face"], [0], QUICK, test_stores=[other])


def invoke(*arguments: str | Path) -> Any:
    settings = ("epochs=1", "min_updates=0", "precision=float32")
    words = [str(a) for a in arguments]
    for setting in settings:
        words += ["--set", setting]
    return CliRunner().invoke(cli, ["fit", "--head", "face", "--seeds", "1", *words])


def test_folds_on_the_command_line(store: Path, tmp_path: Path) -> None:
    result = invoke("--store", store, "--runs", tmp_path, "--folds", "3", "--json")
    told = json.loads(result.stdout)
    assert (len(told["runs"]), len(told["pooled"])) == (3, 1)
    assert told["pooled"][0]["test"]["n_clips"] == 18
    text = invoke("--store", store, "--runs", tmp_path, "--folds", "3").stdout
    assert "all folds together: 18 clips, map_mec" in text


def test_a_test_store_without_labels_gets_predictions(store: Path, tmp_path: Path) -> None:
    other = people_store(tmp_path / "other", prefix="e", label="", split="test")
    arguments = ("--store", store, "--test-store", other, "--runs", tmp_path / "runs", "--json")
    (told,) = json.loads(invoke(*arguments).stdout)["runs"]
    assert told["test"] == {}
    predictions = read_run(tmp_path / "runs" / told["run"]).predictions
    test = predictions[predictions["split"] == "test"]
    assert len(test) == 18
    assert set(test["label"]) == {""}
    assert set(test["predicted"]) <= set(CLASSES)


def test_folds_and_test_stores_exclude_each_other(store: Path, tmp_path: Path) -> None:
    result = invoke("--store", store, "--test-store", store, "--runs", tmp_path, "--folds", "3")
    assert result.exit_code == 2
    assert "--folds tests every clip of --store" in result.output


@pytest.mark.parametrize(
    ("changed", "head", "status", "message"),
    [
        pytest.param(
            {"face_vector": np.full((2, 512), np.nan, np.float16)},
            "face",
            1,
            "features that are not finite numbers: c",
            id="features not finite",
        ),
        pytest.param({"label": "sad"}, "face", 1, "every clip is 'sad'", id="one class"),
        pytest.param({"split": "val"}, "face", 1, "split train: no clip", id="no train clip"),
        pytest.param({"split": "train"}, "face", 1, "split val: no clip", id="no val clip"),
        pytest.param({}, "conv2d3d", 2, "reads face maps, which the store", id="no face map"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(
    changed: dict[str, Any], head: str, status: int, message: str, tmp_path: Path
) -> None:
    store = people_store(tmp_path / "store", **changed)
    arguments = ["fit", "--store", store, "--runs", tmp_path / "runs", "--head", head]
    arguments += ["--seeds", "1", "--set", "epochs=1", "--set", "min_updates=0"]
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == status
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert "Traceback" not in result.output
