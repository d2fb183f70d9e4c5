"""A box falls to any better one that overlaps it, however many there are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.detect.boxes import Boxes, Overlap, iou, overlap_over_smaller, suppress


def overlap_of(a: list[float], b: list[float], *, of_smaller: bool) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return inter / (min(area_a, area_b) if of_smaller else area_a + area_b - inter)


box_rows = st.builds(
    lambda frame, x, y, w, h: [float(frame), float(x), float(y), float(x + w), float(y + h)],
    st.integers(0, 2), st.integers(0, 12), st.integers(0, 12), st.integers(1, 9), st.integers(1, 9),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(box_rows, max_size=12), st.permutations(range(12)), st.booleans())
def test_a_box_falls_to_any_better_one_of_its_frame_that_overlaps_it(
    boxes: list[list[float]], ranks: list[int], of_smaller: bool
) -> None:
    rows = [[*box, 1 - rank / 16] for box, rank in zip(boxes, ranks, strict=False)]
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    expected = [
        row
        for row in sorted(rows, key=lambda row: (row[0], -row[5]))
        if not any(
            other[0] == row[0]
            and other[5] > row[5]
            and overlap_of(other[1:5], row[1:5], of_smaller=of_smaller) > 0.45
            for other in rows
        )
    ]
    found = suppress(table, 0.45, overlap_over_smaller if of_smaller else iou)
    assert found.tolist() == expected


def draw_boxes(seed: int, n: int, *, n_frames: int, reach: int) -> NDArray[np.float32]:
    """[n, 7] A table with a column more, of whole numbers, so that many scores and edges are equal.

    reach: of the picture that the boxes lie in; their sides are up to 12.
    """
    rng = np.random.default_rng(seed)
    left_top, size = rng.integers(0, reach, (n, 2)), rng.integers(1, 13, (n, 2))
    scores, extra = rng.integers(0, 50, n) / 50, np.arange(n)
    columns = (rng.integers(0, n_frames, n), left_top, left_top + size, scores, extra)
    return np.column_stack(columns).astype(np.float32)


def suppress_all_at_once(
    rows: NDArray[np.float32], threshold: float, overlap: Overlap
) -> NDArray[np.float32]:
    """The same with the overlaps of all boxes of a frame as one n x n matrix."""
    rows = rows[np.lexsort((-rows[:, 5], rows[:, 0]))]
    overlaps = overlap(rows[:, 1:5], rows[:, 1:5]) > threshold
    same_frame = rows[:, None, 0] == rows[:, 0]
    return rows[~np.triu(overlaps & same_frame, k=1).any(axis=0)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(0, 1500),
    n_frames=st.integers(1, 3),
    reach=st.sampled_from([1, 30, 300]),
    threshold=st.sampled_from([0.0, 0.5, 0.7]),
    overlap=st.sampled_from([iou, overlap_over_smaller]),
)
def test_blocks_of_boxes_keep_what_one_large_matrix_keeps(
    seed: int, n: int, n_frames: int, reach: int, threshold: float, overlap: Overlap
) -> None:
    rows = draw_boxes(seed, n, n_frames=n_frames, reach=reach)
    expected = suppress_all_at_once(rows, threshold, overlap)
    np.testing.assert_array_equal(suppress(rows, threshold, overlap), expected)


@pytest.mark.parametrize("overlap", [iou, overlap_over_smaller])
@pytest.mark.parametrize("reach", [20, 1000], ids=["all in one place", "all over the picture"])
def test_thirty_thousand_boxes_of_a_frame_take_little_memory(reach: int, overlap: Overlap) -> None:
    rows = draw_boxes(0, 30_000, n_frames=1, reach=reach)
    tracemalloc.start()
    try:
        suppress(rows, 0.5, overlap)
        assert tracemalloc.get_traced_memory()[1] < 50e6  # one matrix of float32: 3,600e6
    finally:
        tracemalloc.stop()


def test_overlaps_of_boxes_that_touch_or_lie_apart_are_zero() -> None:
    box: Boxes = np.array([[0, 0, 10, 10]], dtype=np.float32)
    others = box + np.array([[10, 0], [0, 10], [30, 30], [5, 0]], dtype=np.float32)[:, [0, 1, 0, 1]]
    np.testing.assert_allclose(iou(box, others), [[0, 0, 0, 1 / 3]])
    np.testing.assert_allclose(overlap_over_smaller(box, others), [[0, 0, 0, 0.5]])
