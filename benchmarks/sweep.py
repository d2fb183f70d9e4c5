"""How long a grid takes as a sweep, and point by point: ``python benchmarks/sweep.py``.

Both train the same runs on the same synthetic clips: a sweep trains eight points as one batched
model on each head, the other way is one ``fit`` a point. Scoring of test, which only ``fit`` does,
is left out by giving the store no test clips.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from features.contracts import MEC_CLASSES, ClipFeatures
from features.store.writer import write_store
from tests.builders import clip_features
from train.config import FitConfig
from train.fit import run_fit
from train.request import FitRequest
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep
from train.sweep.trainer import FIRST_SEED

N_TRAIN, N_VAL, N_STEPS = 768, 128, 16
HEADS = ("caca-a", "parallel")
CONFIG = FitConfig(context="2x2", epochs=3, min_updates=0, patience=1.0)
GRID = ("lr=1e-4,3e-4,1e-3,3e-3", "dropout=0,0.3")


def iter_clips() -> Iterator[ClipFeatures]:
    """Clips of ``N_STEPS`` frames with a face each; noise, with a little of the class in it."""
    rng = np.random.default_rng(0)
    of_class = rng.random((len(MEC_CLASSES), 512))
    for i in range(N_TRAIN + N_VAL):
        label = i % len(MEC_CLASSES)
        yield clip_features(
            f"c{i:05}",
            n_frames=N_STEPS,
            label=MEC_CLASSES[label],
            split="train" if i < N_TRAIN else "val",
            face_vector=(of_class[label] + rng.random((N_STEPS, 512))).astype(np.float16),
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = write_store(folder / "store", iter_clips(), classes=MEC_CLASSES, fingerprint="b")
        for head in HEADS:
            sweep = Sweep(head=head, config=CONFIG, space=parse_grid(GRID, CONFIG))
            started_s = time.perf_counter()
            trials = run_sweep([store], folder / "sweep", sweep, []).trials
            sweep_s = time.perf_counter() - started_s
            started_s = time.perf_counter()
            for row in trials.to_dict("records"):
                point = FitRequest(
                    stores=[store],
                    runs=folder / "runs",
                    heads=[head],
                    seeds=[FIRST_SEED],
                    config=replace(CONFIG, lr=row["lr"], dropout=row["dropout"]),
                )
                run_fit(point)
            single_s = time.perf_counter() - started_s
            print(
                f"{head}: {len(trials)} points of {CONFIG.epochs} epochs: sweep {sweep_s:.1f} s, "
                f"one fit a point {single_s:.1f} s, ratio {single_s / sweep_s:.1f}"
            )


if __name__ == "__main__":
    main()
