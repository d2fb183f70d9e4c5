"""Where a trained cascade looks in a planted store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.planted_store import PLANTED_STEP
from features.store.reader import open_store
from train.heads.build import build_head
from train.heads.cascade import Cascade


def read_attention(run: Path, store: Path) -> NDArray[np.float64]:
    """What a run looks at when it has seen all faces of a clip: the test clips of a store.

    Args:
        run: Folder of a run of ``caca`` or ``caca-a``: its face RNN attends to the frames.
        store: A store planted in ``both``.

    Returns:
        [N, T] Attention weights of the last step (Eq. 2), the planted frame's first, then the
        others in their order.
    """
    config = json.loads((run / "config.json").read_text())
    head = build_head(config["head"], len(config["store"]["classes"]), context=config["context"])
    if not isinstance(head, Cascade):
        raise ValueError(f"{config['head']} has no attention")
    head.load_state_dict(load_file(run / "weights.safetensors"))
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
