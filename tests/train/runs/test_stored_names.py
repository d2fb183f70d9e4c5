"""Settings that got another name: what holds the old one is read, and is named the same."""

from __future__ import annotations

import logging
import sqlite3
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.sweep.sweeps import QUICK, hard_store, read_tables
from train.config import STORED_NAMES, FitConfig, parse_settings
from train.naming import hash_runs
from train.report.report import run_report
from train.runs.folder import find_runs, read_run
from train.runs.pooled import find_pooled
from train.streams import HEADS, MATRICES, MatrixSpec
from train.sweep.batches import Sweep
from train.sweep.space import DEFAULT_SPACE, parse_grid, parse_space
from train.sweep.sweep import hash_sweep, run_sweep

STORE = {"fingerprint": "f", "learned_sha256": "l"}
CHANGED = FitConfig(
    precision="float32",
    min_updates=7,
    max_time_steps=8,
    max_scorings=9,
    members="face,caca",
    streams="face,context",
)
ARCHIVE = Path(__file__).parents[2] / "archives/runs-v1.tar.xz"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(
            FitConfig(precision="float32"),
            "df19fbec00e2 5d402bcc2882 b0ec04ce3f57 b0ec04ce3f57 b0ec04ce3f57 b0ec04ce3f57 "
            "339a0b6f348e be89472b9b9c 3aacb2706e96 e961f61ac800",
            id="defaults",
        ),
        pytest.param(
            CHANGED,
            "2123fa178167 f6cba585b0c5 b369d5f5203b b369d5f5203b b369d5f5203b b369d5f5203b "
            "1f4c1e995235 d2597d4a2de7 0098482fbc7d 2039cd488805",
            id="changed",
        ),
    ],
)
def test_a_run_has_the_name_it_had(config: FitConfig, expected: str) -> None:
    keys = hash_runs(tuple(HEADS), replace(config, streams="own"), STORE, MATRICES)
    if config.streams != "own":  # a setting of ``cascade`` alone when these names were given
        keys["cascade"] = hash_runs(["cascade"], config, STORE, MATRICES)["cascade"]
    assert {head: key[:12] for head, key in keys.items()} == dict(
        zip(HEADS, expected.split(), strict=True)
    )


@pytest.mark.parametrize("head", [head for head in HEADS if head != "ensemble"])
def test_a_run_has_another_name_just_where_its_streams_are_not_the_heads_own(head: str) -> None:
    own = HEADS[head].streams
    others = ("audio",) if len(own) == 1 else ("context", "audio", "face")
    matrices = MATRICES | {"audio": MatrixSpec(shape=(12, 1, 1))}
    names = {
        streams: hash_runs([head], FitConfig(streams=streams), STORE, matrices)[head]
        for streams in ("own", ",".join(own), ",".join(others))
    }
    assert names["own"] == names[",".join(own)]
    assert names[",".join(others)] != names["own"]
    if len(own) > 1:
        swapped = FitConfig(streams=",".join(own[::-1]))
        assert hash_runs([head], swapped, STORE, matrices)[head] != names["own"]


def test_a_run_has_another_name_where_an_added_stream_was_made_otherwise() -> None:
    names = {
        hash_runs(
            ["face"],
            FitConfig(streams="audio"),
            STORE,
            {"audio": MatrixSpec(shape=(12,), fingerprint=fingerprint)},
        )["face"]
        for fingerprint in ("", "one", "other")
    }
    assert len(names) == 3


def test_standardised_runs_and_sweeps_have_names_of_their_own() -> None:
    config = FitConfig(standardise="on")
    for names in (
        {hash_runs(["face"], c, STORE, MATRICES)["face"] for c in (FitConfig(), config)},
        {
            hash_sweep(Sweep(head="face", config=c, space=DEFAULT_SPACE, n_trials=1), STORE, {})
            for c in (FitConfig(), config)
        },
    ):
        assert len(names) == 2


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (["lr=1e-4,1e-3", "max_time_steps=8,16"], "7fc0e9e8aa17"),
        (["lr=1e-4..1e-2", "min_updates=1..20", "faces=all,track"], "0a60f003e6ad"),
        ([], "eb1f98c641c7"),
    ],
    ids=["grid", "ranges", "what is drawn by default"],
)
def test_a_sweep_has_the_name_it_had(sweep: list[str], expected: str) -> None:
    grid = any("max_time_steps" in text for text in sweep)
    space = (parse_grid if grid else parse_space)(sweep, FitConfig()) or DEFAULT_SPACE
    asked = Sweep(head="caca-a", config=FitConfig(), space=space, n_trials=0 if grid else 5)
    assert hash_sweep(asked, STORE, MATRICES)[:12] == expected


def test_an_old_name_is_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"{old}=3" for old in STORED_NAMES.values()]
    config = parse_settings(texts, FitConfig())
    assert config == FitConfig(min_updates=3, max_time_steps=3, max_scorings=3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "setting min_steps: is called min_updates now" in caplog.text


def test_an_old_name_in_a_grid_is_read_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert list(parse_grid(["max_steps=8,16"], FitConfig())) == ["max_time_steps"]
    assert len(caplog.records) == 1


def test_old_runs_are_read_by_the_names_of_now(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    runs = tmp_path / "runs"
    read = [read_run(path).config["settings"] for path in find_runs(runs)]
    read += [dict(pooled.settings) for pooled in find_pooled(runs)]
    assert len(read) == 9
    for settings in read:
        assert settings["min_updates"] == 0
        assert not set(STORED_NAMES.values()) & set(settings)
    run_report(runs, tmp_path / "out")
    assert "min_steps" not in (tmp_path / "out/report.md").read_text()


def test_a_sweep_goes_on_from_trials_of_the_old_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hard_store(tmp_path / "store")
    space = parse_grid(["lr=1e-4,2e-3", "max_time_steps=1,2"], QUICK)
    sweep = Sweep(head="face", config=QUICK, space=space)
    first = run_sweep([store], tmp_path / "runs", sweep, [])
    tables = read_tables(first)
    with sqlite3.connect(first.folder / "trials.db") as storage:
        update = "UPDATE trial_params SET param_name = 'max_steps' WHERE param_name = ?"
        assert storage.execute(update, ["max_time_steps"]).rowcount == 4
    storage.close()
    monkeypatch.setattr("train.sweep.trainer.train_runs", None)  # nothing trains again
    assert read_tables(run_sweep([store], tmp_path / "runs", sweep, [])) == tables
