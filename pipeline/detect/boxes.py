"""Overlap of boxes, and suppression of boxes by better-scored ones, in memory that grows with N.

A table of boxes is [N, 6] float32: row of the frame, left, top, right, bottom in pixels, score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]

Overlap = Callable[[Boxes, Boxes], NDArray[np.float32]]
"""[N, 4], [M, 4] -> [N, M]; 0, or not a number, where two boxes do not touch."""

_BLOCK = 256
"""Boxes that are compared with as many others at once."""


def suppress(
    rows: NDArray[np.float32],
    threshold: float,
    overlap: Overlap,
    *,
    group: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Drop each row that any better-scored row of its group overlaps by more than ``threshold``.

    Args:
        rows: [N, >=6]: frame, box, score, anything.
        threshold: Of ``overlap``, at least 0.
        overlap: ``iou`` or ``overlap_over_smaller``.
        group: [N] Number of each row's group; by default its frame.

    Returns:
        The kept rows, best first in each group.
    """
    group = rows[:, 0] if group is None else group
    order = np.lexsort((-rows[:, 5], group))
    rows = rows[order]
    kept = []
    for part in np.split(rows, np.flatnonzero(np.diff(group[order])) + 1):
        kept.append(part[~_find_suppressed(part[:, 1:5], threshold, overlap)])
    return np.concatenate(kept)


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Intersection over union (IoU): [N, 4], [M, 4] -> [N, M]."""
    inter = _intersections(a, b)
    return np.asarray(inter / (_areas(a)[:, None] + _areas(b) - inter), dtype=np.float32)


def overlap_over_smaller(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Intersection over the area of the smaller box: [N, 4], [M, 4] -> [N, M]."""
    smaller = np.minimum(_areas(a)[:, None], _areas(b))
    return np.asarray(_intersections(a, b) / smaller, dtype=np.float32)


def _intersections(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    width = np.minimum(a[:, 2, None], b[:, 2]) - np.maximum(a[:, 0, None], b[:, 0])
    height = np.minimum(a[:, 3, None], b[:, 3]) - np.maximum(a[:, 1, None], b[:, 1])
    return np.asarray(np.maximum(width, 0) * np.maximum(height, 0))


def _areas(boxes: Boxes) -> NDArray[np.float32]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _find_suppressed(boxes: Boxes, threshold: float, overlap: Overlap) -> NDArray[np.bool_]:
    """[N, 4], best first -> [N] whether any better one overlaps it by more than ``threshold``."""
    if len(boxes) <= _BLOCK:  # above the diagonal: row i is better than column j
        return np.asarray(np.triu(overlap(boxes, boxes) > threshold, k=1).any(axis=0))
    suppressed = np.zeros(len(boxes), dtype=bool)
    for block in _split_by_place(boxes):
        near = _find_near(boxes, boxes[block])
        for first in range(0, len(near), _BLOCK):
            some = near[first : first + _BLOCK]
            beats = overlap(boxes[some], boxes[block]) > threshold
            falls = (beats & (some[:, None] < block)).any(axis=0)
            suppressed[block[falls]] = True
            block = block[~falls]
    return suppressed


def _split_by_place(boxes: Boxes) -> Iterator[NDArray[np.intp]]:
    """Rows of [N, 4] in blocks of boxes that lie close together: bands, cut from left to right."""
    n_bands = math.isqrt(math.ceil(len(boxes) / _BLOCK))
    for band in np.array_split(np.argsort(boxes[:, 1]), n_bands):
        from_left = band[np.argsort(boxes[band, 0])]
        for first in range(0, len(band), _BLOCK):
            yield from_left[first : first + _BLOCK]


def _find_near(boxes: Boxes, block: Boxes) -> NDArray[np.intp]:
    """Rows of the boxes that may touch one of a block: all that touch the box around it."""
    left, top = block[:, :2].min(axis=0)
    right, bottom = block[:, 2:].max(axis=0)
    touch = (boxes[:, 0] < right) & (boxes[:, 2] > left)
    touch &= (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    return np.flatnonzero(touch)
