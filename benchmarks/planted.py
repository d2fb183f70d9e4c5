"""What each head finds in stores with a known answer: ``python -m benchmarks.planted``.

For each place that the label can be planted in (planted_store.py): accuracy on test of the heads of
Table I, of ``caca`` with its 25,088 context values and of ``conv2d3d`` on face maps, median
(lowest-highest) over the seeds; and for the label planted in both streams together, the attention
that the face RNN of ``caca`` and ``caca-a`` gives to the planted frame at its last step.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.planted_attention import read_attention
from benchmarks.planted_store import CLASSES, N_STEPS, PLANTED, write_planted_store
from train.config import FitConfig
from train.fit import run_fit
from train.request import FitRequest
from train.runs.folder import RunSummary
from train.streams import TABLE_1_HEADS

N_CLIPS = {"train": 400, "val": 100, "test": 300}
SEEDS = range(3)
EPOCHS = {"face": 6, "context": 6, "both": 25}
CONFIG = FitConfig(
    lr=5e-4, batch_size=16, min_updates=0, precision="float32", select="acc", patience=1.0
)
HEADS = (*TABLE_1_HEADS, "caca", "conv2d3d")


def main() -> None:
    print(f"clips {N_CLIPS} of {N_STEPS} steps; {len(SEEDS)} seeds; {CONFIG}")
    print(f"accuracy on test, %; by chance {100 / len(CLASSES):.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for planted in PLANTED:
            store, runs = Path(folder) / planted, Path(folder) / f"runs-{planted}"
            write_planted_store(store, planted, N_CLIPS, face_map=True)
            config = replace(CONFIG, epochs=EPOCHS[planted])
            print(f"\nplanted in {planted}, {config.epochs} epochs")
            for head in HEADS:
                request = FitRequest(
                    stores=[store], runs=runs, heads=[head], seeds=SEEDS, config=config
                )
                of_head = run_fit(request)
                print(f"  {head:13}{tell_spread([run.test['acc'] for run in of_head])}", end="")
                print(tell_attention(of_head, runs, store) if planted == "both" else "")
                sys.stdout.flush()


def tell_attention(of_head: Sequence[RunSummary], runs: Path, store: Path) -> str:
    """The planted frame's weight, and how often it has the greatest, for heads that attend."""
    if of_head[0].head not in ("caca", "caca-a"):
        return ""
    weights = [read_attention(runs / run.run, store) for run in of_head]
    mean = tell_spread([float(w[:, 0].mean()) for w in weights])
    first = tell_spread([float((w.argmax(1) == 0).mean()) for w in weights])
    return f"   attention on the planted frame {mean}, greatest in {first} of the clips"


def tell_spread(shares: Sequence[float]) -> str:
    return f"{100 * np.median(shares):5.1f} ({100 * min(shares):5.1f}-{100 * max(shares):5.1f})"


if __name__ == "__main__":
    main()
