"""What tests of sweeps share: a store that is hard to learn, and quick sweeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.sweep.batches
from features.contracts import ClipFeatures
from features.store.writer import write_store
from tests.builders import clip_features
from train.config import FitConfig
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid, parse_space
from train.sweep.storage import TrialStorage
from train.sweep.sweep import SweepSummary

CLASSES = ("happy", "sad", "angry")
QUICK = FitConfig(epochs=3, min_updates=0, batch_size=8, precision="float32", patience=1.0)
GRID = parse_grid(["lr=1e-4,2e-3", "dropout=0,0.4"], QUICK)
SPACE = parse_space(["lr=1e-4..3e-3", "class_weights=none,balanced"], QUICK)


def hard_clips(**of_test: Any) -> list[ClipFeatures]:
    """24 clips of 2 steps, half told by their faces; ``of_test`` changes the test clips, a quarter.

    Its values are called with the clip's number where they can be.
    """
    rng = np.random.default_rng(5)
    faces = rng.random((3, 512))
    clips = []
    for i in range(24):
        split = ("train", "train", "val", "test")[i // 3 % 4]
        values: dict[str, Any] = {
            "label": CLASSES[i % 3],
            "subject": f"{split}{i % 2}",
            "face_vector": (0.3 * faces[i % 3] + rng.random((2, 512))).astype(np.float16),
        }
        if split == "test":
            values |= {
                key: of_test[key](i) if callable(of_test[key]) else of_test[key] for key in of_test
            }
        clips.append(clip_features(f"c{i:02}", n_frames=2, split=split, **values))
    return clips


def hard_store(path: Path, clips: list[ClipFeatures] | None = None) -> Path:
    return write_store(path, clips or hard_clips(), classes=CLASSES, fingerprint="test")


def draw(n_trials: int = 6) -> Sweep:
    return Sweep(head="face", config=QUICK, space=SPACE, n_trials=n_trials)


@contextmanager
def batches_of_three() -> Iterator[None]:
    """Three trials a batch, on one thread: as in the processes that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.sweep.batches, "TRIALS_AT_ONCE", 3)
        yield
    torch.set_num_threads(before)


def open_trials(folder: Path) -> TrialStorage:
    """The storage in a sweep's folder."""
    url, name = f"sqlite:///{folder}/trials.db", folder.name.removeprefix("sweep-")
    return TrialStorage(url, name, SPACE)


def read_tables(summary: SweepSummary) -> list[str]:
    return [(summary.folder / name).read_text() for name in ("trials.csv", "importance.csv")]
