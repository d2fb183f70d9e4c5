"""The preset ``submitted`` from a store to Table II: IV-C as far as it tells, and the ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cli import cli
from features.contracts import MEC_CLASSES
from features.store.writer import write_store
from tests.builders import clip_features
from train.runs.folder import Run, read_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with face maps; the runs and the report that two commands make of it."""
    path = tmp_path_factory.mktemp("submitted")
    rng = np.random.default_rng(0)
    clips = [
        clip_features(
            f"c{i:02}",
            label=MEC_CLASSES[i % 8],
            split=("train", "train", "val", "test")[i // 8],
            face_map=rng.random((3, 512, 7, 7)).astype(np.float16),
        )
        for i in range(32)
    ]
    write_store(
        path / "store",
        clips,
        classes=MEC_CLASSES,
        fingerprint="test",
        face_map_shape=(512, 7, 7),
    )
    call("fit", "--store", path / "store", "--runs", path / "runs", "--preset", "submitted",
         "--seeds", "2", "--set", "epochs=2", "--set", "min_updates=0")  # fmt: skip
    call("report", "--runs", path / "runs", "--out", path / "report")
    return path


def call(*arguments: str | Path) -> None:
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def read_runs(folder: Path, head: str) -> list[Run]:
    return [read_run(path) for path in sorted((folder / "runs").glob(f"{head}-*"))]


def test_the_preset_trains_the_networks_of_table_2_and_nothing_else(folder: Path) -> None:
    names = [path.name for path in sorted((folder / "runs").iterdir())]
    assert [(name.split("-")[0], name[-1]) for name in names] == [
        (head, seed) for head in ("caca", "conv2d3d", "ensemble") for seed in "01"
    ]


def test_the_settings_are_those_of_iv_c(folder: Path) -> None:
    (caca, _), (conv2d3d, _) = read_runs(folder, "caca"), read_runs(folder, "conv2d3d")
    for run in (caca, conv2d3d):
        told = {name: run.config["settings"][name] for name in ("lr", "batch_size", "faces")}
        assert told == {"lr": 1e-4, "batch_size": 32, "faces": "all"}
    assert caca.summary.n_parameters == 3_739_912
    assert shapes(caca) == {"context": [512, 7, 7], "face": [512]}  # 25,088 context values
    assert shapes(conv2d3d) == {"face_map": [512, 7, 7]}


def shapes(run: Run) -> dict[str, Any]:
    return {name: stream["shape"] for name, stream in run.config["streams"].items()}


def test_each_ensemble_weighs_the_two_networks_of_its_seed(folder: Path) -> None:
    members = [
        [run.path.name for run in pair]
        for pair in zip(read_runs(folder, "caca"), read_runs(folder, "conv2d3d"), strict=True)
    ]
    ensembles = read_runs(folder, "ensemble")
    assert [[m["run"] for m in run.config["members"]] for run in ensembles] == members
    assert all(sum(m["weight"] for m in r.config["members"]) == pytest.approx(1) for r in ensembles)


def test_table_2_shows_our_runs_beside_the_papers(folder: Path) -> None:
    table = pd.read_csv(folder / "report/tables/table2.csv", dtype=str)
    assert table["Method"].tolist() == ["CACA-RNN", "CACA-RNN + 2D-3D-CNN", "MEC 2017 baseline"]
    assert table["test ACC (paper)"].tolist() == ["47.30", "52.99", "35.30"]
    for told, head in zip(table["test acc"], ("caca", "ensemble"), strict=False):
        ours = [run.summary.test["acc"] for run in read_runs(folder, head)]
        assert told in [f"{100 * acc:.2f}" for acc in ours]
