"""Features that exceed the memory: read from disk, to the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from features.errors import ConfigError
from features.store.reader import open_store
from features.store.writer import write_store
from tests.builders import clip_features
from tests.fits import fit_runs
from train.config import FitConfig
from train.data.clips import TableBuilder
from train.data.matrices import DiskMatrix
from train.data.memory import choose_limit, choose_on_disk
from train.data.stores import read_tables
from train.streams import MATRICES
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep

CLASSES = ("happy", "sad")
FACE = {"face": MATRICES["face"]}
CONFIG = FitConfig(epochs=2, min_updates=0, batch_size=4, patience=1.0, context="7x7")


def write_phased_store(path: Path, n_clips: int, n_ticks: int, n_phases: int) -> Path:
    clips = (
        clip_features(
            f"c{i:03}",
            n_frames=n_ticks * n_phases,
            n_faces=(n_ticks * n_phases) * (i % 4 > 0),
            phase=(np.arange(n_ticks * n_phases) % n_phases).astype(np.int16),
            n_phases=n_phases,
            label=CLASSES[i % 2],
            split=("train", "train", "train", "train", "val", "test")[i % 6],
        )
        for i in range(n_clips)
    )
    return write_store(path, clips, classes=CLASSES, fingerprint="test")


def assert_same_runs(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir() if path.is_dir())
    assert names == sorted(path.name for path in other.iterdir() if path.is_dir()) != []
    for name in names:
        for file in ("history.csv", "predictions.csv"):
            pd.testing.assert_frame_equal(
                pd.read_csv(one / name / file), pd.read_csv(other / name / file), check_exact=True
            )
        metrics = (json.loads((runs / name / "metrics.json").read_text()) for runs in (one, other))
        assert len({json.dumps(found, sort_keys=True) for found in metrics}) == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phased_store(tmp_path_factory.mktemp("small") / "store", 24, 3, 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory_gb", [0, 0.0001], ids=["nothing fits", "the faces fit"])
def test_training_from_disk_gives_the_numbers_of_training_from_memory(
    store: Path, tmp_path: Path, precision: str, memory_gb: float
) -> None:
    config = FitConfig(epochs=2, min_updates=0, batch_size=4, precision=precision, dropout=0.2)
    for name, memory in (("memory", 1.0), ("disk", memory_gb)):
        fit_runs([store], tmp_path / name, ["caca", "parallel"], range(2), config, memory_gb=memory)
    read = {name: MATRICES[name] for name in ("face", "context_7x7")}
    tables = read_tables([open_store(store)], config, read, memory_gb=memory_gb)
    assert isinstance(tables["train"].features["context_7x7"], DiskMatrix)
    assert_same_runs(tmp_path / "memory", tmp_path / "disk")


LIMITED = """
import resource, sys
from pathlib import Path
from tests.train.data.test_memory import CONFIG, fit_context
store, runs, mb = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
fit_context(store, runs / "warm", memory_gb=0, n_epochs=1)  # what libraries take is not the matter
used = [line for line in open("/proc/self/status") if line.startswith("VmData")][0].split()[1]
resource.setrlimit(resource.RLIMIT_DATA, (int(used) * 1024 + mb * 2**20,) * 2)
try:
    fit_context(store, runs / "memory", memory_gb=100)
except (MemoryError, RuntimeError) as error:
    print("refused:", error)
fit_context(store, runs / "disk", memory_gb=0.01)
print("trained")
"""


def fit_context(store: Path, runs: Path, *, memory_gb: float, n_epochs: int = 2) -> None:
    """One run of the head that reads most; torch with one thread, for the same sums."""
    torch.set_num_threads(1)
    config = FitConfig(
        epochs=n_epochs, min_updates=0, batch_size=4, context="7x7", precision="bfloat16"
    )
    fit_runs([store], runs, ["context"], [0], config, memory_gb=memory_gb)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's limit is Linux's")
def test_a_store_larger_than_the_memory_trains_to_the_same_numbers(tmp_path: Path) -> None:
    big = write_phased_store(tmp_path / "store", 80, 16, 5)  # 6,400 frames of 50 kB: 0.32 GB
    command = [sys.executable, "-c", LIMITED, str(big), str(tmp_path), "250"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout, "the limit did not bite"
    assert "trained" in done.stdout
    fit_context(big, tmp_path / "whole", memory_gb=100)
    assert_same_runs(tmp_path / "whole", tmp_path / "disk")


def test_rows_from_disk_are_those_from_memory() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 3, generator=rng).to(torch.bfloat16)
    rows[0] = 0
    matrix = DiskMatrix(20, 3, torch.bfloat16, None)
    matrix.write(1, rows[1:7])
    matrix.write(7, rows[7:])
    for chosen in ([], [0], [5, 6, 7, 0, 0, 19], [3, 3, 2], [0, 1, 2], [19, 0, 1], [0, 0]):
        index = torch.tensor(chosen, dtype=torch.int64)
        assert torch.equal(matrix.gather(index), rows[index]), chosen


def test_many_neighbours_on_disk_are_read_in_any_order() -> None:
    rows = torch.arange(5000).view(2500, 2).to(torch.bfloat16)
    matrix = DiskMatrix(2500, 2, torch.bfloat16, None)
    matrix.write(0, rows)
    index = torch.randperm(2500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(matrix.gather(index), rows[index])
    with pytest.raises(IndexError, match="index 2500 is out of bounds"):
        matrix.gather(torch.tensor([2499, 2500]))


def test_a_phase_lies_in_one_piece() -> None:
    builder = TableBuilder(
        n_frames=6,
        n_faces=6,
        matrices={"context_2x2": MATRICES["context_2x2"]},
        dtype=torch.float16,
    )
    clip = clip_features(n_frames=6, phase=np.array([0, 1, 0, 1, 0, 1], np.int16))
    builder.add(clip, 0, faces="all", max_time_steps=0)
    first, second = builder.finish().phases[0]
    assert (first.context.tolist(), second.context.tolist()) == ([1, 2, 3], [4, 5, 6])


def test_memory_takes_the_smallest_first() -> None:
    sizes = {"a": 30, "b": 10, "c": 15}
    assert choose_on_disk(sizes, 30) == {"a"}
    assert choose_on_disk(sizes, 9) == {"a", "b", "c"}
    assert choose_on_disk(sizes, None) == set()


def test_features_take_three_quarters_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.memory.find_free_bytes", lambda: 4000)
    assert choose_limit(None) == 3000
    assert choose_limit(0.001) == 1_000_000
    monkeypatch.setattr("train.data.memory.find_free_bytes", lambda: None)
    assert choose_limit(None) is None


def test_a_scratch_folder_without_room_is_told(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(ConfigError, match=r"need 0\.0 GB of disk here .* 0\.0 GB are free"):
        read_tables([open_store(store)], CONFIG, FACE, memory_gb=0, scratch=tmp_path)


def test_a_sweep_takes_its_scratch_from_the_folder_of_runs(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    class Noted(DiskMatrix):
        def __init__(self, *arguments: Any) -> None:
            folders.append(arguments[-1])
            super().__init__(*arguments)

    monkeypatch.setattr("train.data.clips.DiskMatrix", Noted)
    monkeypatch.setattr("train.data.stores.choose_limit", lambda _: 0)
    sweep = Sweep(head="face", config=CONFIG, space=parse_grid(["lr=1e-4"], CONFIG))
    run_sweep([store], tmp_path / "runs", sweep, [0])
    assert set(folders) == {tmp_path / "runs"}
