"""How long a face network takes for a face, and how large its file is.

python benchmarks/face_cnn.py [FILE]     FILE: any face network; default: the shipped weights
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from features.networks.face_cnn import SHIPPED_FACE_WEIGHTS
from features.networks.face_network import FaceNetwork, read_face_network

BATCH = 32
REPEATS = 15


def time_face_ms(network: FaceNetwork, n_threads: int) -> list[float]:
    """Milliseconds a face, of each repeat: float32 crops as stage one gives them."""
    torch.set_num_threads(n_threads)
    faces = torch.rand(BATCH, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 255
    taken_ms = []
    with torch.inference_mode():
        for repeat in range(REPEATS + 2):
            started = time.perf_counter()
            network.embed(faces)
            if repeat >= 2:  # the first ones find memory and kernels
                taken_ms.append((time.perf_counter() - started) * 1000 / BATCH)
    return taken_ms


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED_FACE_WEIGHTS
    network = read_face_network(path)
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, map {network.map_shape}")
    for n_threads in (1, 2):
        taken_ms = time_face_ms(network, n_threads)
        print(
            f"batch of {BATCH}, float32, {n_threads} thread(s): median "
            f"{statistics.median(taken_ms):.2f} ms a face, best {min(taken_ms):.2f}"
        )


if __name__ == "__main__":
    main()
