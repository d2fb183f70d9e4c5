"""Faces that overlap from frame to frame are one person."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.detect.tracker import Tracker


def boxes(*lefts: float, side: float = 10) -> NDArray[np.float32]:
    """Square boxes on one line."""
    return np.array([[x, 0, x + side, side] for x in lefts], dtype=np.float32).reshape(-1, 4)


def follow(*frames: NDArray[np.float32], step_s: float = 0.2) -> list[list[int]]:
    tracker = Tracker()
    return [tracker.follow(box_px, i * step_s).tolist() for i, box_px in enumerate(frames)]


WAYS: dict[str, tuple[list[NDArray[np.float32]], list[list[int]]]] = {
    "one person who stays": ([boxes(0), boxes(0), boxes(0)], [[0], [0], [0]]),
    "one person who walks": ([boxes(0), boxes(4), boxes(8), boxes(12)], [[0], [0], [0], [0]]),
    "a jump is somebody new": ([boxes(0), boxes(8)], [[0], [1]]),
    "two who stand apart": ([boxes(0, 50), boxes(50, 0)], [[0, 1], [1, 0]]),
    "a third who comes in": ([boxes(0, 50), boxes(100, 0, 50)], [[0, 1], [2, 0, 1]]),
    "one who is away for a frame": ([boxes(0, 50), boxes(50), boxes(0, 50)], [[0, 1], [1], [0, 1]]),
    "the nearer of two keeps the number": ([boxes(0), boxes(4, 1)], [[0], [1, 0]]),
    "two who come near each other": ([boxes(0, 20), boxes(4, 16), boxes(7, 13)], [[0, 1]] * 3),
    "nobody, then somebody": ([boxes(), boxes(0)], [[], [0]]),
    "somebody, then nobody": ([boxes(0), boxes()], [[0], []]),
    "a face that grows": ([boxes(0, side=10), boxes(0, side=16)], [[0], [0]]),
    "a face twice as large is somebody new": ([boxes(0, side=10), boxes(0, side=20)], [[0], [1]]),
}


@pytest.mark.parametrize(("frames", "expected"), WAYS.values(), ids=WAYS)
def test_numbers_of(frames: list[NDArray[np.float32]], expected: list[list[int]]) -> None:
    assert follow(*frames) == expected


@pytest.mark.parametrize(("away_s", "number"), [(0.99, 0), (1.01, 1)])
def test_who_is_away_for_more_than_a_second_comes_back_as_somebody_new(
    away_s: float, number: int
) -> None:
    tracker = Tracker()
    tracker.follow(boxes(0), 0.0)
    assert tracker.follow(boxes(0), away_s).tolist() == [number]


def test_an_overlap_of_just_0_3_is_the_same_person() -> None:
    left = 10 - 20 * 0.3 / 1.3  # of two squares of side 10: inter / (20 - inter) = 0.3
    assert follow(boxes(0), boxes(left - 0.01)) == [[0], [0]]
    assert follow(boxes(0), boxes(left + 0.01)) == [[0], [1]]


def test_no_number_stands_twice_in_a_frame_however_faces_move() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker()
    for i in range(60):
        crowd = boxes(*rng.uniform(0, 60, rng.integers(0, 9)))
        numbers = tracker.follow(crowd, i / 5)
        assert numbers.dtype == np.int32
        assert len(set(numbers.tolist())) == len(crowd)
        assert (numbers >= 0).all()


def test_a_crowd_takes_memory_for_those_of_the_last_second_only() -> None:
    tracker, n = Tracker(), 2000
    crowd = boxes(*(np.arange(n) * 12))
    tracemalloc.start()
    try:
        for i in range(12):
            assert tracker.follow(crowd, 2.0 * i).tolist() == list(range(i * n, (i + 1) * n))
        assert tracker.follow(crowd[::-1], 23).tolist() == list(range(12 * n - 1, 11 * n - 1, -1))
        assert tracemalloc.get_traced_memory()[1] < 30e6  # of all with all: 2000 x 24,000 floats
    finally:
        tracemalloc.stop()
