"""Memory and time of busy pictures: suppression of many windows, and a wall of faces.

python benchmarks/busy.py [--windows 30000]     needs Linux, which tells a process's peak memory
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import torch

from pipeline.detect.boxes import iou, overlap_over_smaller, suppress
from pipeline.detect.mtcnn import FaceDetector

HEIGHT, WIDTH = 1080, 1920
LEVEL_WINDOWS = (319, 571)
"""Rows and columns of P-Net's windows in the first level of a picture of this size."""


def draw_windows(n: int) -> np.ndarray:
    """[n, 6] Windows of that level as P-Net gives them: 12 pixels wide, their edges a bit moved."""
    rng = np.random.default_rng(0)
    row, column = np.divmod(
        rng.choice(LEVEL_WINDOWS[0] * LEVEL_WINDOWS[1], n, replace=False), LEVEL_WINDOWS[1]
    )
    left_top = np.stack([column, row], axis=1) * 2 + 1
    boxes = np.concatenate([left_top, left_top + 11], axis=1) + rng.normal(0, 1.1, (n, 4))
    scores = rng.uniform(0.6, 1, n)
    return np.column_stack([np.zeros(n), boxes, scores]).astype(np.float32)


def measure(name: str, action: Callable[[], int]) -> None:
    """Print what an action returns, how long it takes, and what memory it takes at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before_mb, started = read_peak_mb(), time.perf_counter()
    n_left = action()
    taken_s, peak_mb = time.perf_counter() - started, read_peak_mb() - before_mb
    print(f"{name}: {n_left} left, {taken_s:.2f} s, {peak_mb:.0f} MB more than before")


def read_peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=30_000)
    n = parser.parse_args().windows
    torch.set_num_threads(1)
    windows = draw_windows(n)
    for name, overlap in (("union", iou), ("smaller box", overlap_over_smaller)):
        count = partial(lambda overlap: len(suppress(windows, 0.5, overlap)), overlap)
        measure(f"{n} windows of one level, overlap by {name}", count)
    face = skimage.data.astronaut()[58:178:3, 164:284:3]  # 40 x 40
    wall = torch.from_numpy(np.tile(face, (HEIGHT // 40, WIDTH // 40, 1)))[None]
    detector = FaceDetector()
    detector.find_faces(wall[:, :200, :200])  # the first call finds memory and kernels
    title = f"a wall of faces, {WIDTH}x{HEIGHT}, float32"
    measure(title, lambda: len(detector.find_faces(wall).frame))


if __name__ == "__main__":
    main()
