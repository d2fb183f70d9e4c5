"""How long a face network takes for a face, and how large its file is.

python benchmarks/face_cnn.py [FILE]     FILE: any face network; default: the shipped weights
"""

from __future__ import annotations

import statistics
import sys
import timeit
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
    taken_s = timeit.repeat(lambda: network.embed(faces), number=1, repeat=REPEATS + 2)
    return [1000 * s / BATCH for s in taken_s[2:]]  # the first ones find memory and kernels


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
