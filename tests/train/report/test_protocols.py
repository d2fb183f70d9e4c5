"""report: folds stand apart from plain runs, and sweeps are told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from cli import cli
from tests.fits import fit_folds, fit_runs
from tests.train.test_cross_validate import QUICK, people_store
from train.fit import FitResult
from train.report.report import run_report
from train.runs.folder import find_runs
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep


def read_table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folds(store: Path, runs: Path) -> FitResult:
    return fit_folds([store], runs, ["face"], [0, 1, 2], QUICK, folds="2")


def test_folds_are_told_one_by_one_and_together(
    folds: FitResult, runs: Path, tmp_path: Path
) -> None:
    page = run_report(runs, tmp_path / "out").read_text()
    table = read_table(tmp_path / "out", "folds1")
    assert table["Fold"].tolist() == ["1of2", "2of2", "all together"]
    assert table["Clips"].astype(int).tolist() == [9, 9, 18]
    test_by_seed = {one.seed: one.test for one in folds.pooled}
    seed, of, n_seeds = table["Seeds"].iloc[2].split()
    assert (of, n_seeds) == ("of", "3")
    assert table["acc"].iloc[2].startswith(f"{100 * test_by_seed[int(seed)]['acc']:.2f} [")
    assert "Cross-validation: 2 folds by subject" in page
    assert "Results on store" not in page  # there is no plain run


def test_folds_and_plain_runs_are_not_mixed(
    folds: FitResult, runs: Path, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    fit_runs([store], tmp_path / "runs", ["face"], [0], QUICK)
    run_report(tmp_path / "runs", tmp_path / "out")
    assert len(find_runs(tmp_path / "runs")) == 7
    assert read_table(tmp_path / "out", "table1")["Seeds"].tolist() == ["1"]
    assert len(read_table(tmp_path / "out", "runs")) == 1
    assert len(read_table(tmp_path / "out", "folds1")) == 3


@pytest.fixture
def unfinished(folds: FitResult, runs: Path, tmp_path: Path) -> Path:
    """Runs of which seed 0 lacks its second fold, and has nothing put together."""
    shutil.copytree(runs, tmp_path / "runs")
    for gone in (folds.runs[3].run, folds.pooled[0].pooled):
        shutil.rmtree(tmp_path / "runs" / gone)
    return tmp_path / "runs"


def test_folds_that_are_not_finished_are_shown_and_what_is_missing_is_named(
    unfinished: Path, store: Path, tmp_path: Path
) -> None:
    page = run_report(unfinished, tmp_path / "out").read_text()
    table = read_table(tmp_path / "out", "folds1")
    assert table["Fold"].tolist() == ["1of2", "2of2", "all together"]
    assert table["Seeds"].tolist()[:2] == ["3", "2"]
    assert "Missing: Face-RNN, seed 0: fold 2of2." in page
    command = f"fit --store {store} --runs {unfinished} --preset table1 --seeds 3 --head face "
    assert f"python cli.py {command}--folds 2 --set" in page


def test_one_fold_of_one_seed_is_a_report(
    unfinished: Path, folds: FitResult, tmp_path: Path
) -> None:
    for path in unfinished.iterdir():
        if path.name != folds.runs[0].run:
            shutil.rmtree(path)
    result = CliRunner().invoke(
        cli, ["report", "--runs", str(unfinished), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0
    assert read_table(tmp_path / "out", "folds1")["Fold"].tolist() == ["1of2"]
    assert "Missing: Face-RNN, seed 0: fold 2of2." in (tmp_path / "out/report.md").read_text()


def test_folds_that_were_not_put_together_are_told(
    folds: FitResult, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    for one in folds.pooled:
        shutil.rmtree(tmp_path / "runs" / one.pooled)
    page = run_report(tmp_path / "runs", tmp_path / "out").read_text()
    assert "Face-RNN, seed 2: all folds together" in page


def test_the_seed_of_all_folds_together_is_the_median_by_val(
    folds: FitResult, runs: Path, tmp_path: Path
) -> None:
    """Val and test rank the seeds in opposite ways, and differ in which is in the middle."""
    shutil.copytree(runs, tmp_path / "runs")
    for summary in folds.runs:
        file = tmp_path / "runs" / summary.run / "metrics.json"
        told = json.loads(file.read_text())
        told["val"]["map_mec"] = {0: 0.5, 1: 0.1, 2: 0.9}[summary.seed]
        file.write_text(json.dumps(told))
    for one in folds.pooled:
        file = tmp_path / "runs" / one.pooled / "pooled.json"
        told = json.loads(file.read_text())
        told["test"]["map_mec"] = {0: 0.9, 1: 0.5, 2: 0.1}[one.seed]
        file.write_text(json.dumps(told))
    run_report(tmp_path / "runs", tmp_path / "out")
    assert read_table(tmp_path / "out", "folds1")["Seeds"].iloc[2] == "0 of 3"


def test_a_sweep_is_told_with_all_its_trials(store: Path, tmp_path: Path) -> None:
    sweep = Sweep(head="face", config=QUICK, space=parse_grid(["lr=1e-4,1e-3"], QUICK))
    summary = run_sweep([store], tmp_path / "runs", sweep, [0])
    page = run_report(tmp_path / "runs", tmp_path / "out").read_text()
    assert "Sweep: Face-RNN" in page
    assert "2 trials (2 complete) on train and val; test was not read" in page
    assert summary.runs[0].run in page
    assert read_table(tmp_path / "out", f"{summary.folder.name}-trials")["lr"].tolist() == [
        "0.0001",
        "0.001",
    ]
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.search(r"^\| lr \| [01]", text, re.M)
    shutil.rmtree(summary.folder)
    assert "Sweep:" not in run_report(tmp_path / "runs", tmp_path / "out").read_text()
    assert not list((tmp_path / "out" / "tables").glob("sweep-*"))


def test_a_sweep_without_runs_is_a_report(store: Path, tmp_path: Path) -> None:
    sweep = Sweep(head="face", config=QUICK, space=parse_grid(["lr=1e-4,1e-3"], QUICK))
    run_sweep([store], tmp_path / "runs", sweep, [])
    page = run_report(tmp_path / "runs", tmp_path / "out").read_text()
    assert "Runs with these settings: none yet" in page


def test_a_run_on_test_stores_can_be_made_again_by_its_command(store: Path, tmp_path: Path) -> None:
    other = people_store(tmp_path / "other", prefix="e")
    fit_runs([store], tmp_path / "runs", ["face"], [0], QUICK, test_stores=[other])
    run_report(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"--store {store} --test-store {other} " in text


def test_newer_sweeps_and_folds_are_refused(folds: FitResult, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    file = tmp_path / "runs" / folds.pooled[0].pooled / "pooled.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 2}))
    with pytest.raises(Exception, match=r"version 2, but this code reads .* 1\. Update the code"):
        run_report(tmp_path / "runs", tmp_path / "out")


def test_the_parts_of_the_report_load_no_network() -> None:
    code = (
        "import sys, train.report.folds, train.report.sweeps\n"
        "sys.exit(bool({'torch', 'optuna'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
