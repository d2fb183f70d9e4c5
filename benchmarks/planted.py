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
import torch
from numpy.typing import NDArray

from benchmarks.planted_store import CLASSES, N_STEPS, PLANTED, PLANTED_STEP, write_planted_store
from features.store.reader import open_store
from train.config import FitConfig
from train.fit import run_fit
from train.heads.cascade import Cascade
from train.request import FitRequest
from train.runs.folder import RunSummary, read_run
from train.runs.weights import read_head
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


def read_attention(run: Path, store: Path) -> NDArray[np.float64]:
    """What a run looks at when it has seen all faces of a clip: the test clips of a store.

    Args:
        run: Folder of a run of ``caca`` or ``caca-a``: its face RNN attends to the frames.
        store: A store planted in ``both``.

    Returns:
        [N, T] Attention weights of the last step (Eq. 2), the planted frame's first, then the
        others in their order.
    """
    trained = read_run(run)
    config, head = trained.config, read_head(trained)
    if not isinstance(head, Cascade):
        raise ValueError(f"{config['head']} has no attention")
    rows = []
    for clip in open_store(store).iter_clips(context_7x7=True):
        if clip.split != "test":
            continue
        context = clip.context_7x7 if config["context"] == "7x7" else clip.context_2x2
        streams = {
            "context": torch.from_numpy(context).float().reshape(1, clip.n_frames, -1),
            "face": torch.from_numpy(clip.face_vector).float()[None],
        }
        with torch.no_grad():
            (weights,) = head.attend(streams, torch.tensor([clip.n_frames]))  # [1, T, T]
        planted = int(clip.extra[PLANTED_STEP])
        last = weights[0, -1].double().numpy()
        rows.append(np.concatenate([last[planted : planted + 1], np.delete(last, planted)]))
    return np.stack(rows)


def tell_spread(shares: Sequence[float]) -> str:
    return f"{100 * np.median(shares):5.1f} ({100 * min(shares):5.1f}-{100 * max(shares):5.1f})"


if __name__ == "__main__":
    main()
