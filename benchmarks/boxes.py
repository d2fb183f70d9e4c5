"""Matches the boxes of two sides, frame by frame, and counts recall and precision."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.detect.boxes import iou

LEAST_IOU = 0.5


class Boxed(Protocol):
    """Faces of one frame: [A, 4] left, top, right, bottom and [A] scores."""

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

    def count(self, reference: Boxed, candidate: Boxed, sure: float) -> tuple[list[int], list[int]]:
        """Adds a frame. Returns the sure rows of either side that the other side lacks."""
        pairs = match_boxes(reference.box_px, candidate.box_px)
        self.n_frames += 1
        matched_reference = {i for i, _, _ in pairs}
        matched_candidate = {j for _, j, _ in pairs}
        sure_reference = [int(i) for i in np.flatnonzero(reference.score >= sure)]
        sure_candidate = [int(j) for j in np.flatnonzero(candidate.score >= sure)]
        missed = [i for i in sure_reference if i not in matched_reference]
        extra = [j for j in sure_candidate if j not in matched_candidate]
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
