"""sweep: all points tried, test never read, the best ones trained, what went wrong told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import features.store.reader
from cli import cli
from features.contracts import ClipFeatures
from features.errors import ConfigError, RunError, ShardError, UserError
from tests.fits import fit_runs
from tests.train.sweep.sweeps import (
    CLASSES,
    GRID,
    QUICK,
    SPACE,
    draw,
    hard_clips,
    hard_store,
    read_tables,
)
from tests.train.training.losses import spoil_losses
from train.runs.folder import find_runs, read_run
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.storage import Trial, TrialStorage
from train.sweep.sweep import SweepSummary, run_sweep
from train.sweep.trainer import FIRST_SEED

NAN = np.full((2, 512), np.nan, np.float16)


pytestmark = pytest.mark.usefixtures("small_batches")


@pytest.fixture(scope="module")
def whole(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepSummary:
    """A sweep of six drawn trials."""
    return run_sweep([swept], tmp_path_factory.mktemp("runs"), draw(), [])


def test_a_grid_tries_every_combination_as_fit_would_train_it(swept: Path, tmp_path: Path) -> None:
    sweep = Sweep(head="face", config=QUICK, space=GRID)
    table = run_sweep([swept], tmp_path, sweep, []).trials
    points = [(1e-4, 0.0), (1e-4, 0.4), (2e-3, 0.0), (2e-3, 0.4)]
    assert list(zip(table["lr"], table["dropout"], strict=True)) == points
    assert set(table["state"]) == {"complete"}
    for row in table.to_dict("records"):
        config = replace(QUICK, lr=row["lr"], dropout=row["dropout"])
        (alone,) = fit_runs([swept], tmp_path / "alone", ["face"], [FIRST_SEED], config)
        assert row["val_map_mec"] == pytest.approx(alone.val["map_mec"])
        assert row["best_epoch"] == alone.best_epoch


def test_the_best_settings_are_trained_over_seeds_as_fit_trains(
    swept: Path, tmp_path: Path
) -> None:
    sweep = Sweep(head="face", config=QUICK, space=GRID)
    summary = run_sweep([swept], tmp_path / "runs", sweep, [0, 1])
    complete = summary.trials.sort_values(["val_map_mec", "val_acc"], ascending=False)
    assert summary.best.value == complete["val_map_mec"].iloc[0]
    config = replace(QUICK, **summary.best.settings)
    expected = fit_runs([swept], tmp_path / "other", ["face"], [0, 1], config)
    assert list(summary.runs) == expected
    assert all(run.test["n_clips"] == 6 for run in summary.runs)
    assert len(find_runs(tmp_path / "runs")) == 2
    told = json.loads((summary.folder / "sweep.json").read_text())
    assert told["runs"] == [run.run for run in summary.runs]
    assert told["best"]["settings"] == summary.best.settings


def test_points_of_other_shapes_are_tried_too(swept: Path, tmp_path: Path) -> None:
    grid = parse_grid(["batch_size=4,8", "faces=all,largest"], QUICK)
    summary = run_sweep([swept], tmp_path, Sweep(head="face", config=QUICK, space=grid), [])
    assert len(summary.trials.drop_duplicates(["batch_size", "faces"])) == 4
    # One face a frame: both choices of faces read the same rows.
    assert summary.trials.groupby("batch_size")["val_map_mec"].nunique().tolist() == [1, 1]


def test_a_trial_of_several_seeds_counts_by_its_median(swept: Path, tmp_path: Path) -> None:
    sweep = Sweep(head="face", config=QUICK, space=parse_grid(["lr=1e-4"], QUICK), trial_seeds=3)
    (row,) = run_sweep([swept], tmp_path / "sweep", sweep, []).trials.to_dict("records")
    seeds = range(FIRST_SEED, FIRST_SEED + 3)
    alone = fit_runs([swept], tmp_path / "alone", ["face"], seeds, QUICK)
    assert row["val_map_mec"] == pytest.approx(sorted(run.val["map_mec"] for run in alone)[1])


def test_trials_read_no_test_clip(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    read = features.store.reader.iter_shard_clips

    def note(index: Any, rows: Any, **kwargs: Any) -> Any:
        splits.extend(index.columns["split"][row] for row in rows)
        return read(index, rows, **kwargs)

    monkeypatch.setattr(features.store.reader, "iter_shard_clips", note)
    run_sweep([swept], tmp_path, draw(3), [])
    assert set(splits) == {"train", "val"}
    run_sweep([swept], tmp_path, draw(3), [0])
    assert "test" in splits


OTHER_TEST: dict[str, Callable[[], list[ClipFeatures]]] = {
    "poisoned": lambda: hard_clips(label=lambda i: CLASSES[(i + 1) % 3], face_vector=NAN),
    "without labels": lambda: hard_clips(label=""),
    "absent": lambda: [clip for clip in hard_clips() if clip.split != "test"],
}


@pytest.mark.parametrize("test_split", OTHER_TEST)
def test_another_test_split_gives_the_same_sweep(
    test_split: str, whole: SweepSummary, tmp_path: Path
) -> None:
    other = hard_store(tmp_path / "store", OTHER_TEST[test_split]())
    sweep = run_sweep([other], tmp_path / "runs", draw(), [])
    assert sweep.folder.name == whole.folder.name
    assert read_tables(sweep) == read_tables(whole)


def test_trials_below_the_median_end_early_and_stand_in_the_table(
    swept: Path, whole: SweepSummary, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    storage = TrialStorage(url, whole.folder.name.removeprefix("sweep-"), SPACE)
    settings = {"lr": 1e-3, "class_weights": "none"}
    result = {"acc": 1.0, "loss": 0.0, "best_epoch": 1, "n_epochs": 3}
    for slot, trial_id in storage.claim(dict.fromkeys(range(3), settings)).items():
        unreachable = {"by_epoch": {1: 1.5}, "state": "complete"}
        storage.write(trial_id, Trial(slot=slot, settings=settings, result=result, **unreachable))
    table = run_sweep([swept], tmp_path / "runs", draw(), [], storage=url).trials
    assert table["state"].tolist() == ["complete"] * 3 + ["pruned"] * 3
    assert table["n_epochs"].tolist() == [3, 3, 3, 1, 1, 1]
    assert table["val_map_mec"].iloc[3:].max() <= 1.0


def test_a_trial_whose_loss_is_not_a_number_is_a_row_and_the_others_go_on(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, dropout=0.4)
    sweep = Sweep(head="face", config=QUICK, space=GRID)
    summary = run_sweep([swept], tmp_path / "runs", sweep, [0])
    by_dropout = summary.trials.set_index("dropout")
    assert by_dropout.loc[0.4, "state"].tolist() == ["failed", "failed"]
    assert by_dropout.loc[0.4, "reason"].str.contains("the loss is nan in epoch 1").all()
    assert by_dropout.loc[0.0, "state"].tolist() == ["complete", "complete"]
    assert summary.best.settings["dropout"] == 0.0
    assert len(summary.runs) == 1
    told = json.loads(json.dumps(summary.as_json(), allow_nan=False))
    assert [trial["val_map_mec"] is None for trial in told["trials"]] == [False, True, False, True]


def test_a_sweep_without_a_finite_loss_ends_in_advice(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, dropout=QUICK.dropout)
    grid = parse_grid(["lr=1e-4,1e-3"], QUICK)
    message = (
        r"trials\.csv: none of 2 trials has come to a finite loss\. The first: .* is nan in epoch 1"
    )
    with pytest.raises(RunError, match=message):
        run_sweep([swept], tmp_path, Sweep(head="face", config=QUICK, space=grid), [0])
    (file,) = tmp_path.glob("sweep-*/trials.csv")
    assert file.read_text().count(",failed,") == 2


UNTRAINABLE: list[Any] = [
    pytest.param({"label": "sad"}, "face", ShardError, "every clip is 'sad'", id="one class"),
    pytest.param({"label": ""}, "face", ShardError, "no clip with a label", id="no label"),
    pytest.param({"split": "val"}, "face", ShardError, "split train: no clip", id="no train clip"),
    pytest.param({"split": "train"}, "face", ShardError, "split val: no clip", id="no val clip"),
    pytest.param({"split": "test"}, "face", ShardError, "split train: no clip", id="test only"),
    pytest.param({}, "conv2d3d", ConfigError, "face maps, which the store does not", id="no map"),
    pytest.param({}, "ensemble", ConfigError, "no settings of its own", id="ensemble"),
    pytest.param({}, "cacao", ConfigError, "'cacao', expected face, context", id="no such head"),
]


@pytest.mark.parametrize(("changed", "head", "kind", "message"), UNTRAINABLE)
def test_what_cannot_be_swept_is_told(
    changed: dict[str, str], head: str, kind: type[UserError], message: str, tmp_path: Path
) -> None:
    store = hard_store(tmp_path / "store", [replace(clip, **changed) for clip in hard_clips()])
    with pytest.raises(kind, match=message):
        run_sweep([store], tmp_path / "runs", Sweep(head=head, config=QUICK, space=GRID), [0])


def test_a_test_store_that_does_not_fit_is_refused_before_the_first_trial(
    swept: Path, tmp_path: Path
) -> None:
    for other, message in ((swept, "clip c09: stands in"), (tmp_path / "none", "no store.json")):
        with pytest.raises(UserError, match=message):
            run_sweep([swept], tmp_path / "runs", draw(), [0], test_stores=[other])
    assert not (tmp_path / "runs").exists()


def test_the_best_settings_are_tested_on_the_test_stores(swept: Path, tmp_path: Path) -> None:
    clips = [replace(clip, clip_id=f"e{clip.clip_id}") for clip in hard_clips()]
    other = hard_store(tmp_path / "other", clips)
    sweep = Sweep(head="face", config=QUICK, space=parse_grid(["lr=1e-3"], QUICK))
    (summary,) = run_sweep([swept], tmp_path / "runs", sweep, [0], test_stores=[other]).runs
    run = read_run(tmp_path / "runs" / summary.run)
    test = run.predictions[run.predictions["split"] == "test"]
    assert len(test) == 6
    assert all(clip_id.startswith("ec") for clip_id in test["clip_id"])


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_the_verb_prints_trials_what_mattered_and_runs(swept: Path, tmp_path: Path) -> None:
    arguments = ["sweep", "--store", swept, "--runs", tmp_path, "--head", "face"]
    arguments += ["--grid", "lr=1e-4,1e-3", "--seeds", "1"]
    for setting in ("epochs=2", "min_updates=0", "precision=float32"):
        arguments += ["--set", setting]
    told = json.loads(invoke(*arguments, "--json").stdout)
    assert [trial["lr"] for trial in told["trials"]] == [1e-4, 1e-3]
    assert {row["setting"] for row in told["importance"]} == {"lr"}
    (run,) = told["runs"]
    settings = read_run(tmp_path / run["run"]).config["settings"]
    assert settings["lr"] == told["best"]["settings"]["lr"]
    assert (settings["epochs"], settings["context"]) == (2, "2x2")
    text = invoke(*arguments).stdout
    assert "what mattered:" in text
    assert f"--set lr={settings['lr']}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --grid KEY=A,B,C or --trials N"),
        (["--grid", "lr=1e-3", "--trials", "3"], "give either"),
        (["--grid", "lr=1e-3", "--search", "lr=1..2"], "--search goes with --trials"),
        (["--trials", "3", "--storage", "nowhere"], "storage nowhere: cannot be opened"),
        (["--grid", "lr=fast"], "expected a number"),
        (["--grid", "rate=1,2"], "setting 'rate': unknown. Known settings: faces,"),
    ],
)
def test_wrong_usage_exits_2(
    arguments: list[str], message: str, swept: Path, tmp_path: Path
) -> None:
    result = invoke("sweep", "--store", swept, "--runs", tmp_path, "--head", "face", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
