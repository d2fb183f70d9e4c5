"""Clips that lack a stream which a head reads are left out of training and scores."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from features.errors import ConfigError
from features.store.reader import open_store
from features.store.shard_format import Lack
from tests.added_streams import take_away
from tests.fits import fit_folds, fit_runs
from tests.train.streams import AUDIO, DINO, write_streams
from train.config import FitConfig
from train.runs.folder import Run, read_run
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep

QUICK = FitConfig(epochs=2, min_updates=0, batch_size=4, patience=1.0, precision="float32")
READS_AUDIO = replace(QUICK, streams="audio")
LACKING = ("c00", "c01", "c03")
"""One clip of each split."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """24 clips: 12 train, 8 val, 4 test; three lack their sound."""
    store = write_streams(tmp_path / "store", AUDIO, DINO)
    take_away(store, "audio", dict.fromkeys(LACKING, Lack.FINAL))
    return store


def fit(store: Path, runs: Path, head: str, config: FitConfig) -> Run:
    (summary,) = fit_runs([store], runs, [head], [0], config)
    return read_run(runs / summary.run)


def test_clips_that_lack_a_stream_are_neither_learned_nor_scored(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = fit(store, tmp_path / "runs", "face", READS_AUDIO)
    assert len(run.predictions) == 10
    assert not set(run.predictions["clip_id"]) & set(LACKING)
    splits = run.config["store"]["splits"]
    assert {name: split["n_clips"] for name, split in splits.items()} == {
        "train": 11, "val": 7, "test": 3,
    }  # fmt: skip
    assert run.config["store"]["n_lacking"] == 3
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told.startswith("3 of 24 clip(s) lack a stream that a head reads (audio)")
    assert "c00, c01, c03." in told


def test_a_head_that_does_not_read_the_stream_has_all_clips(store: Path, tmp_path: Path) -> None:
    run = fit(store, tmp_path / "runs", "face", QUICK)
    assert (len(run.predictions), run.config["store"]["n_lacking"]) == (12, 0)


def test_heads_that_are_trained_together_have_the_same_clips(store: Path, tmp_path: Path) -> None:
    config = replace(QUICK, streams="audio,dino")
    summaries = fit_runs([store], tmp_path / "runs", ["face", "parallel"], [0], config)
    found = [read_run(tmp_path / "runs" / summary.run) for summary in summaries]
    assert [len(run.predictions) for run in found] == [10, 10]


def test_a_run_is_another_once_its_train_clips_have_the_stream(store: Path, tmp_path: Path) -> None:
    before = fit(store, tmp_path / "runs", "face", READS_AUDIO)
    take_away(store, "audio", {"c03": Lack.FINAL})
    after = fit(store, tmp_path / "runs", "face", READS_AUDIO)
    assert before.path != after.path
    assert after.config["store"]["n_lacking"] == 1


def test_a_test_clip_that_gains_the_stream_is_scored_without_training(
    store: Path, tmp_path: Path
) -> None:
    before = fit(store, tmp_path / "runs", "face", READS_AUDIO)
    take_away(store, "audio", {"c00": Lack.FINAL, "c01": Lack.FINAL})
    after = fit(store, tmp_path / "runs", "face", READS_AUDIO)
    assert before.path == after.path
    assert "c03" in set(after.predictions["clip_id"])
    assert after.config["store"]["n_lacking"] == 2


def test_folds_divide_the_clips_that_have_the_stream(store: Path, tmp_path: Path) -> None:
    result = fit_folds([store], tmp_path / "runs", ["face"], [0], READS_AUDIO, folds="3")
    found = [read_run(tmp_path / "runs" / summary.run) for summary in result.runs]
    tested = [
        clip_id for run in found for clip_id in run.predictions.query("split == 'test'")["clip_id"]
    ]
    ids = set(open_store(store).clips["clip_id"])
    assert sorted(tested) == sorted(ids - set(LACKING))
    assert {run.config["store"]["n_lacking"] for run in found} == {3}


def test_trials_of_a_sweep_leave_them_out(store: Path, tmp_path: Path) -> None:
    sweep = Sweep(head="face", config=READS_AUDIO, space=parse_grid(["lr=0.001,0.01"], READS_AUDIO))
    summary = run_sweep([store], tmp_path / "runs", sweep, [0])
    (run,) = summary.runs
    assert len(read_run(tmp_path / "runs" / run.run).predictions) == 10


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_of_which_no_clip_is_left_is_an_error(
    store: Path, tmp_path: Path, split: str
) -> None:
    clips = open_store(store).clips
    ids = clips["clip_id"][clips["split"] == split]
    take_away(store, "audio", dict.fromkeys(ids, Lack.FINAL))
    with pytest.raises(ConfigError, match=rf"split {split}: all {len(ids)} clip.* \(audio\)"):
        fit(store, tmp_path / "runs", "face", READS_AUDIO)
    assert not (tmp_path / "runs").exists()
