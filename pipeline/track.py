"""Follows people from frame to frame within a clip, by the overlap of their boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST_IOU = 0.3
_LONGEST_GAP_S = 1.0


class Tracker:
    """Gives each face of a clip the number of the person it belongs to; one object a clip."""

    def __init__(self) -> None:
        self._box_px = np.zeros((0, 4), dtype=np.float32)
        """[N, 4] Where each person was last seen."""
        self._seen_s = np.zeros(0)
        """[N] When."""

    def follow(self, box_px: NDArray[np.float32], pts_s: float) -> NDArray[np.int32]:
        """Number the faces of the next frame.

        The best overlaps are served first; a face that overlaps nobody seen within the last second
        by an IoU of 0.3 is a new person.

        Args:
            box_px: [A, 4] Boxes of one frame.
            pts_s: The frame's time, not before that of the last call.

        Returns:
            [A] Numbers from 0 on, each at most once.
        """
        track = np.full(len(box_px), -1, dtype=np.int32)
        overlap = _iou(box_px, self._box_px)  # (A, N)
        overlap[:, self._seen_s < pts_s - _LONGEST_GAP_S] = 0
        while overlap.size and overlap.max() >= _LEAST_IOU:
            face, person = np.unravel_index(np.argmax(overlap), overlap.shape)
            track[face] = person
            overlap[face], overlap[:, person] = 0, 0
        new = track < 0
        n_known = len(self._box_px)
        track[new] = np.arange(n_known, n_known + new.sum())
        self._box_px = np.concatenate([self._box_px, box_px[new]])
        self._seen_s = np.concatenate([self._seen_s, np.zeros(new.sum())])
        self._box_px[track], self._seen_s[track] = box_px, pts_s
        return track


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """[A, 4], [N, 4] -> [A, N]"""
    left_top = np.maximum(a[:, None, :2], b[None, :, :2])
    right_bottom = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(right_bottom - left_top, 0, None).prod(axis=2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))
    result: NDArray[np.float32] = inter / (area_a[:, None] + area_b[None] - inter)
    return result
