"""Recall and precision of the faces that stage one finds, against the ``mtcnn`` package's engine.

    python benchmarks/faces.py CSV [CSV ...] --reference FILE [--frames N] [--store DIR]

N frames, evenly spread over all frames that stage one samples (five a second), are given to
both sides. Ours come from a store: --store, or one made for this and removed. The package's are in
FILE; where FILE is absent they are computed once and written to it, in a child process, because
the package needs TensorFlow, which this project does not::

    python -m venv tf && tf/bin/pip install mtcnn==1.0.0 tensorflow-cpu
    python benchmarks/faces.py a.csv b.csv --reference ref.json --reference-python tf/bin/python

Rules. A pair matches at IoU >= 0.5, one to one within its frame, greatest IoU first.
Recall: of the package's faces with score >= 0.95, those that match one of ours of any score (our
least is 0.8). Precision: of ours with score >= 0.95, those that match one of the package's of any
score (its least is 0.8 as well). Strict: both sides only with score >= 0.95.

FILE is JSON: ``package``, ``rule``, and ``frames``, a list of ``clip_id``, ``pts_s`` (presentation
time, seconds from the clip's start), ``height``, ``width``, ``rgb_sha256`` (of the frame's bytes,
[H, W, 3]), ``boxes_px`` (left, top, right, bottom, not clipped), ``scores``, ``landmarks_px``.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from stage_one import read_clips, write_manifest

from features.contracts import Clip
from features.store.reader import open_store
from pipeline.config import ExtractConfig
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.detect.boxes import iou
from pipeline.extract import run_extract

CHILD = Path(__file__).with_name("mtcnn_package.py")
SURE = 0.95
LEAST_IOU = 0.5
PTS_TOLERANCE_S = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The faces of one frame."""

    box_px: NDArray[np.float32]
    score: NDArray[np.float32]


def match_boxes(a: NDArray[np.float32], b: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Pairs (row of a, row of b, IoU), one to one, greatest IoU first, IoU >= 0.5."""
    overlap = iou(a, b)
    pairs = []
    while overlap.size and overlap.max() >= LEAST_IOU:
        i, j = (int(x) for x in np.unravel_index(overlap.argmax(), overlap.shape))
        pairs.append((i, j, float(overlap[i, j])))
        overlap[i], overlap[:, j] = -1, -1
    return pairs


class Tally:
    """Recall and precision of candidate faces against reference faces, over frames."""

    def __init__(self) -> None:
        self.n_frames = self.n_reference = self.n_recalled = self.n_candidate = self.n_right = 0
        self.n_both_sure = 0
        self.ious: list[float] = []

    def count(self, reference: Found, candidate: Found, sure: float) -> tuple[list[int], list[int]]:
        """Adds a frame. Returns the sure rows of either side that the other side lacks."""
        pairs = match_boxes(reference.box_px, candidate.box_px)
        self.n_frames += 1
        sure_reference = np.flatnonzero(reference.score >= sure).tolist()
        sure_candidate = np.flatnonzero(candidate.score >= sure).tolist()
        missed = sorted(set(sure_reference) - {i for i, _, _ in pairs})
        extra = sorted(set(sure_candidate) - {j for _, j, _ in pairs})
        self.n_reference += len(sure_reference)
        self.n_recalled += len(sure_reference) - len(missed)
        self.n_candidate += len(sure_candidate)
        self.n_right += len(sure_candidate) - len(extra)
        self.ious += [overlap for i, _, overlap in pairs if reference.score[i] >= sure]
        self.n_both_sure += len(
            match_boxes(reference.box_px[sure_reference], candidate.box_px[sure_candidate])
        )
        return missed, extra

    def __str__(self) -> str:
        def share(part: int, whole: int) -> str:
            return f"{part / whole if whole else 1:.4f} ({part}/{whole})"

        ious = self.ious or [float("nan")]
        return (
            f"{self.n_frames} frames: recall {share(self.n_recalled, self.n_reference)}, "
            f"precision {share(self.n_right, self.n_candidate)}; strict: recall "
            f"{share(self.n_both_sure, self.n_reference)}, precision "
            f"{share(self.n_both_sure, self.n_candidate)}; IoU median {np.median(ious):.3f}, "
            f"1% {np.quantile(ious, 0.01):.3f}, min {min(ious):.3f}"
        )


def iter_spread_frames(
    clips: Sequence[Clip], n_frames: int
) -> Iterator[tuple[Clip, float, NDArray[np.uint8]]]:
    """About ``n_frames`` of the sampled frames, evenly spaced; decodes every clip twice."""
    counts = [sum(1 for _ in iter_chosen_frames(clip, 1)) for clip in clips]
    wanted = set(np.unique(np.linspace(0, sum(counts) - 1, n_frames).round().astype(int)).tolist())
    start = 0
    for clip, count in zip(clips, counts, strict=True):
        for i, frame in enumerate(iter_chosen_frames(clip, 1), start):
            if i in wanted:
                yield clip, frame.record.pts_s, frame.rgb.numpy()
        start += count


def compute_reference(clips: Sequence[Clip], n_frames: int, python: Path) -> dict[str, Any]:
    """Has the package look at the frames; see the module's text for the format."""
    child = subprocess.Popen(
        [str(python), str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    package = child.stdout.readline().decode().strip()
    if not package:
        raise click.ClickException(
            f"{python} cannot run the mtcnn package's engine. Make an environment with "
            "`pip install mtcnn==1.0.0 tensorflow-cpu` and name its python: --reference-python"
        )
    frames = []
    spread = iter_spread_frames(clips, n_frames)
    with click.progressbar(spread, length=n_frames, file=sys.stderr) as spread_frames:
        for clip, pts_s, rgb in spread_frames:
            child.stdin.write(f"{rgb.shape[0]} {rgb.shape[1]}\n".encode() + rgb.tobytes())
            child.stdin.flush()
            identity = {
                "clip_id": clip.clip_id,
                "pts_s": round(pts_s, 6),
                "height": rgb.shape[0],
                "width": rgb.shape[1],
                "rgb_sha256": hashlib.sha256(rgb.tobytes()).hexdigest(),
            }
            frames.append(identity | json.loads(child.stdout.readline()))
    child.stdin.close()
    child.wait()
    rule = "min_face_size 20, thresholds 0.6 0.7 0.8, fit_to_image off"
    return {"package": package, "rule": rule, "frames": frames}


def read_store_faces(store: Path, wanted: dict[str, list[float]]) -> dict[tuple[str, float], Found]:
    """Our faces at the wanted times of the wanted clips."""
    faces = {}
    for clip in open_store(store):
        for pts_s in wanted.get(clip.clip_id, []):
            rows = np.flatnonzero(np.abs(clip.pts_s - pts_s) < PTS_TOLERANCE_S)
            if len(rows):
                in_frame = clip.face_frame == rows[0]
                faces[clip.clip_id, pts_s] = Found(
                    box_px=clip.box_px[in_frame], score=clip.score[in_frame]
                )
    return faces


def print_differences(rows: list[str], title: str) -> None:
    print(f"{title}: {len(rows)}")
    for row in rows[:30]:
        print("   ", row)


@click.command()
@click.argument("manifests", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--frames", "n_frames", default=320, show_default=True, help="Frames to compare.")
@click.option("--reference", required=True, type=click.Path(path_type=Path))
@click.option("--reference-python", default=Path(sys.executable), type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="A finished store of these clips.")
@click.option("--detect", default="exact", show_default=True, help="exact or tracked.")
@click.option("--reference-only", is_flag=True, help="Only write the reference file.")
def main(
    manifests: tuple[Path, ...],
    n_frames: int,
    reference: Path,
    reference_python: Path,
    store: Path | None,
    detect: str,
    reference_only: bool,
) -> None:
    """Recall and precision of our faces against the mtcnn package's own engine."""
    groups = read_clips(manifests)
    clips = [clip for group in groups for clip in group]
    if not reference.is_file():
        computed = compute_reference(clips, n_frames, reference_python)
        reference.write_text(json.dumps(computed) + "\n")
    if reference_only:
        return
    stored = json.loads(reference.read_text())
    source = {
        clip.clip_id: m.stem for m, group in zip(manifests, groups, strict=True) for clip in group
    }
    frames = [frame for frame in stored["frames"] if frame["clip_id"] in source]
    wanted: dict[str, list[float]] = {}
    for frame in frames:
        wanted.setdefault(frame["clip_id"], []).append(frame["pts_s"])
    with tempfile.TemporaryDirectory() as folder:
        if store is None:
            store = Path(folder) / "store"
            listed = [clip for clip in clips if clip.clip_id in wanted]
            manifest = write_manifest(listed, Path(folder) / "clips.csv")
            run_extract(manifest, store, ExtractConfig(detect=detect))
        ours = read_store_faces(store, wanted)

    tallies = {name: Tally() for name in (*(m.stem for m in manifests), "all")}
    missed, extra, n_absent = [], [], 0
    for frame in frames:
        found = ours.get((frame["clip_id"], frame["pts_s"]))
        if found is None:
            n_absent += 1
            continue
        package_faces = Found(
            box_px=np.array(frame["boxes_px"], dtype=np.float32).reshape(-1, 4),
            score=np.array(frame["scores"], dtype=np.float32),
        )
        where = f"{frame['clip_id']} {frame['pts_s']:.3f} s"
        for name in (source[frame["clip_id"]], "all"):
            lost, added = tallies[name].count(package_faces, found, SURE)
        missed += [f"{where}: {describe(package_faces, i, found)}" for i in lost]
        extra += [f"{where}: {describe(found, i, package_faces)}" for i in added]
    print(f"reference: {stored['package']}; {len(frames) - n_absent} frames", end="")
    print(f"; {n_absent} frames of it are not in the store" if n_absent else "")
    for name, tally in tallies.items():
        print(f"{name:10} {tally}")
    print_differences(missed, f"theirs, score >= {SURE}, that we lack")
    print_differences(extra, f"ours, score >= {SURE}, that they lack")


def describe(faces: Found, i: int, others: Found) -> str:
    """One face and how near the other side comes to it."""
    overlap = iou(faces.box_px[i : i + 1], others.box_px)
    box = " ".join(f"{value:.0f}" for value in faces.box_px[i])
    best = ""
    if overlap.size:
        j = int(overlap[0].argmax())
        best = f", best IoU {overlap[0, j]:.2f} with score {others.score[j]:.3f}"
    return f"box {box}, score {faces.score[i]:.3f}{best or ', no face there'}"


if __name__ == "__main__":
    main()
