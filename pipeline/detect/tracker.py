"""Follows people from frame to frame within a clip, by the overlap of their boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.detect.boxes import iou

_LEAST_IOU = 0.3
_LONGEST_GAP_S = 1.0
_BLOCK = 256
"""Faces that are compared with all people at once."""


class Tracker:
    """Gives each face of a clip the number of the person it belongs to; one object a clip."""

    def __init__(self) -> None:
        self._n_people = 0
        """So far in this clip."""
        self._person = np.zeros(0, dtype=np.int32)
        """[N] Who was seen within the last second, increasing."""
        self._box_px = np.zeros((0, 4), dtype=np.float32)
        """[N, 4] Where each was last seen."""
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
        self._keep(self._seen_s >= pts_s - _LONGEST_GAP_S)
        track = np.full(len(box_px), -1, dtype=np.int32)
        seen_now = np.zeros(len(self._person), dtype=bool)
        for face, row in _find_overlaps(box_px, self._box_px):
            if track[face] < 0 and not seen_now[row]:
                track[face] = self._person[row]
                seen_now[row] = True
        is_new = track < 0
        track[is_new] = self._n_people + np.arange(is_new.sum())
        self._n_people += int(is_new.sum())
        self._keep(~seen_now)
        self._person = np.concatenate([self._person, track])
        self._box_px = np.concatenate([self._box_px, box_px])
        self._seen_s = np.concatenate([self._seen_s, np.full(len(track), pts_s)])
        self._keep(np.argsort(self._person))
        return track

    def _keep(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> None:
        self._person, self._box_px = self._person[rows], self._box_px[rows]
        self._seen_s = self._seen_s[rows]


def _find_overlaps(a: NDArray[np.float32], b: NDArray[np.float32]) -> list[list[int]]:
    """The pairs (row of ``a``, row of ``b``) of boxes that overlap enough, best first."""
    pairs, overlaps = [np.zeros((0, 2), dtype=np.intp)], [np.zeros(0, dtype=np.float32)]
    for first in range(0, len(a), _BLOCK):
        overlap = iou(a[first : first + _BLOCK], b)
        found = np.argwhere(overlap >= _LEAST_IOU)
        pairs.append(found + np.array([first, 0]))
        overlaps.append(overlap[tuple(found.T)])
    best_first = np.argsort(-np.concatenate(overlaps), kind="stable")
    ordered: list[list[int]] = np.concatenate(pairs)[best_first].tolist()
    return ordered
