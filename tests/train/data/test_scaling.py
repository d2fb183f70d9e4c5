"""Statistics of train rows: those of scikit-learn, in blocks, from memory and from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from features.store.reader import open_store
from tests.train.streams import AUDIO, DINO, write_streams
from train.config import FitConfig
from train.data.matrices import DiskMatrix
from train.data.scaling import find_scale, find_scales
from train.data.splits import leave_out_unlabelled
from train.data.store_streams import choose_matrices
from train.data.stores import read_tables
from train.heads.standardise import Standardise

ON = FitConfig(standardise="on", precision="float32")


@pytest.mark.parametrize("block_bytes", [1, 200, 1 << 20], ids=["a row", "some rows", "all rows"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_the_statistics_are_those_of_scikit_learn(block_bytes: int, on_disk: bool) -> None:
    rng = np.random.default_rng(0)
    # Large means beside small deviations, a value that never changes, one that is always 0.
    rows = rng.normal([500, 0.1, -3, 0, 7], [0.5, 4, 1, 0, 0], (37, 5)).astype(np.float16)
    matrix: DiskMatrix | torch.Tensor = torch.zeros(38, 5, dtype=torch.float16)
    matrix[1:] = torch.from_numpy(rows)
    if on_disk:
        whole, matrix = matrix, DiskMatrix(38, 5, torch.float16, None)
        matrix.write(0, whole)
    scale = find_scale(matrix, block_bytes)
    expected = StandardScaler().fit(rows.astype(np.float64))
    np.testing.assert_allclose(scale.mean, expected.mean_, rtol=1e-6)
    np.testing.assert_allclose(scale.deviation, expected.scale_, rtol=1e-6)
    layer = Standardise(5)
    layer.load_state_dict(vars(scale))
    found = layer(torch.from_numpy(rows))
    np.testing.assert_allclose(found, expected.transform(rows.astype(np.float64)), atol=1e-3)


def test_statistics_are_of_all_labelled_train_clips_each_row_once(tmp_path: Path) -> None:
    stores = [open_store(write_streams(tmp_path / "s", AUDIO, DINO))]
    stores = leave_out_unlabelled(stores, ["train"])
    matrices = choose_matrices(["parallel"], FitConfig(streams="audio,dino"), stores)
    scales = find_scales(read_tables(stores, ON, matrices)["train"], ON)
    train = [clip for clip in stores[0] if clip.split == "train"]
    for name, rows in (
        ("audio", np.concatenate([clip.streams["audio"] for clip in train])),
        ("dino", np.concatenate([clip.face_streams["dino"] for clip in train])),
    ):
        expected = StandardScaler().fit(rows.astype(np.float64))
        np.testing.assert_allclose(scales[name].mean, expected.mean_, rtol=1e-6)
        np.testing.assert_allclose(scales[name].deviation, expected.scale_, rtol=1e-6)


def test_train_rows_are_not_rounded_before_they_are_standardised(tmp_path: Path) -> None:
    stores = [open_store(write_streams(tmp_path / "s", AUDIO))]
    matrices = choose_matrices(["face"], FitConfig(streams="audio"), stores)
    for standardise, dtype in (("off", torch.bfloat16), ("on", torch.float16)):
        config = FitConfig(standardise=standardise, precision="bfloat16")
        tables = read_tables(stores, config, matrices)
        assert tables["train"].features["audio"].dtype == dtype


def test_nothing_is_measured_where_nothing_is_standardised(tmp_path: Path) -> None:
    stores = [open_store(write_streams(tmp_path / "s", AUDIO))]
    matrices = choose_matrices(["face"], FitConfig(streams="audio"), stores)
    train = read_tables(stores, ON, matrices)["train"]
    assert find_scales(train, FitConfig()) == {}
    assert find_scales(train, ON).keys() == {"audio"}
