"""What P-Net in bfloat16 gains as a screen: detection with and without it, on the same frames.

    python benchmarks/screen.py CSV [CSV ...] [--frames N] [--rounds R]

One thread, chunks of four frames, as stage one runs on a CPU. Both sides see each chunk, by turns;
times are those of the fastest round. Prints also how far the boxes of the two lie apart. Where the
processor does not multiply bfloat16 itself there is no screen, and nothing to measure.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import click
import numpy as np
import torch
from stage_one import mix_clips, read_clips

from features.contracts import Faces
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.detect.mtcnn import FaceDetector

CHUNK_FRAMES = 4


def read_chunks(manifests: tuple[Path, ...], n_frames: int) -> list[torch.Tensor]:
    """[at most 4, H, W, 3] uint8 each: the first frames of clips of all manifests."""
    n_chunks = -(-n_frames // CHUNK_FRAMES)
    chunks = []
    for clip in mix_clips(read_clips(manifests), n_chunks):
        frames = list(itertools.islice(iter_chosen_frames(clip, 1), CHUNK_FRAMES))
        chunks.append(torch.stack([frame.rgb for frame in frames]))
    return chunks


@click.command()
@click.argument("manifests", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--frames", "n_frames", default=96, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(manifests: tuple[Path, ...], n_frames: int, rounds: int) -> None:
    """Milliseconds of detection a frame, and whether the faces are the same."""
    torch.set_num_threads(1)
    chunks = read_chunks(manifests, n_frames)
    sides = {"float32": FaceDetector(), "screen": FaceDetector(precision="bfloat16")}
    if sides["screen"].screen is None:
        raise SystemExit("this processor does not multiply bfloat16 itself: there is no screen")
    faces: dict[str, list[Faces]] = {}
    times_s: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):  # the first finds memory and kernels
        for name in sorted(sides, reverse=round_ % 2 == 0):
            started_s = time.perf_counter()
            faces[name] = [sides[name].find_faces(chunk) for chunk in chunks]
            times_s[name].append(time.perf_counter() - started_s)
    n = sum(len(chunk) for chunk in chunks)
    for name, taken_s in times_s.items():
        print(f"{name:8} {1000 * min(taken_s[1:]) / n:6.2f} ms a frame")
    pairs = list(zip(faces["float32"], faces["screen"], strict=True))
    n_other = sum(not np.array_equal(a.frame, b.frame) for a, b in pairs)
    same = [(a, b) for a, b in pairs if len(a.frame) and np.array_equal(a.frame, b.frame)]
    apart = max((float(np.abs(a.box_px - b.box_px).max()) for a, b in same), default=0.0)
    print(
        f"{n} frames, {sum(len(a.frame) for a, _ in pairs)} faces; chunks with other faces: "
        f"{n_other}; boxes of the rest at most {apart:.4f} pixels apart"
    )


if __name__ == "__main__":
    main()
