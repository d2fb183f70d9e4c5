"""What is left out of the pyramid shows nothing, and what stays is found again."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.detect.mtcnn import FaceDetector
from pipeline.detect.networks import PNet
from pipeline.detect.packing import STRIDE_PX, cut_windows, find_windows, pack_pyramids
from pipeline.detect.pyramid import WINDOW_PX, make_pyramid, pyramid_scales

Place = tuple[int, int, int, int]
"""Frame, level, row and column of a window."""


def noise(n_frames: int, height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([n_frames, height, width])
    return rng.integers(0, 256, (n_frames, height, width, 3), dtype=np.uint8)


def levels_of(frames: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    scales = pyramid_scales(*frames.shape[1:3], 20)
    return [level.numpy() for level in make_pyramid(torch.from_numpy(frames), scales)]


def all_windows(levels: list[NDArray[np.uint8]]) -> list[Place]:
    """Those that P-Net makes of whole levels."""
    places = []
    for number, level in enumerate(levels):
        n_rows, n_columns = PNet()(torch.from_numpy(level[:1]))[0].shape[2:]
        grid = np.indices((len(level), n_rows, n_columns)).reshape(3, -1).T
        places += [(frame, number, row, column) for frame, row, column in grid.tolist()]
    return places


def seen_windows(levels: list[NDArray[np.uint8]]) -> dict[Place, NDArray[np.uint8]]:
    """Window -> the pixels that P-Net sees of it; fails where one is looked at twice."""
    seen: dict[Place, NDArray[np.uint8]] = {}
    for canvas in pack_pyramids(levels):
        n_rows, n_columns = ((side - 10) // STRIDE_PX for side in canvas.rgb.shape[:2])
        row, column = np.indices((n_rows, n_columns)).reshape(2, -1)
        at, real = find_windows(canvas, row, column)
        for place, y, x in zip(
            zip(*(axis.tolist() for axis in at), strict=True), row[real], column[real], strict=True
        ):
            top, left = y * STRIDE_PX, x * STRIDE_PX
            assert place not in seen
            seen[place] = canvas.rgb[top : top + WINDOW_PX, left : left + WINDOW_PX]
    return seen


@settings(max_examples=12, deadline=None)
@given(n_frames=st.integers(1, 2), height=st.integers(30, 150), width=st.integers(30, 260))
def test_every_window_with_contrast_is_seen_once_as_it_is(
    n_frames: int, height: int, width: int
) -> None:
    levels = levels_of(noise(n_frames, height, width))
    seen = seen_windows(levels)
    assert sorted(seen) == sorted(all_windows(levels))
    for (frame, level, row, column), pixels in seen.items():
        top, left = row * STRIDE_PX, column * STRIDE_PX
        # The last window of an odd side sticks out by a pixel.
        grown = np.pad(levels[level][frame], ((0, 1), (0, 1), (0, 0)), mode="edge")
        window = grown[top : top + WINDOW_PX, left : left + WINDOW_PX]
        np.testing.assert_array_equal(pixels, window)


@settings(max_examples=15, deadline=None)
@given(top=st.integers(0, 170), left=st.integers(0, 290), grey=st.integers(0, 255))
def test_only_what_is_near_contrast_is_seen(top: int, left: int, grey: int) -> None:
    frames = np.full((1, 200, 320, 3), grey, dtype=np.uint8)
    spot = np.arange(30) * 8
    frames[0, top : top + 30, left : left + 30] = spot[:, None, None]
    levels = levels_of(frames)
    seen = set(seen_windows(levels))
    largest = [place for place in all_windows(levels) if place[1] == 0]
    scale = 12 / 20
    centre_row = (top + 15) * scale / STRIDE_PX - WINDOW_PX / STRIDE_PX / 2
    centre_column = (left + 15) * scale / STRIDE_PX - WINDOW_PX / STRIDE_PX / 2
    for place in largest:
        away = max(abs(place[2] - centre_row), abs(place[3] - centre_column))
        if away < 4:  # its window covers half of the spot
            assert place in seen
    assert len(seen.intersection(largest)) < len(largest) / 2


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_a_picture_of_one_colour_is_looked_at_in_small_alone(grey: int) -> None:
    levels = levels_of(np.full((2, 200, 320, 3), grey, dtype=np.uint8))
    assert max(levels[level].shape[1] for _, level, _, _ in seen_windows(levels)) < 70


def test_a_dark_picture_is_looked_at_as_a_bright_one() -> None:
    bright = skimage.data.astronaut()[None]
    dark = (bright // 12).astype(np.uint8)
    n_bright, n_dark = (len(seen_windows(levels_of(frames))) for frames in (bright, dark))
    assert n_dark > 0.9 * n_bright


@pytest.mark.parametrize(
    ("gain", "lamp"),
    [(1.0, False), (0.3, False), (0.15, False), (0.15, True)],
    ids=["as it is", "dark", "very dark", "very dark beside a lamp"],
)
def test_the_faces_are_those_of_the_whole_pyramid(
    gain: float, lamp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = (skimage.data.astronaut() * gain).astype(np.uint8)
    if lamp:
        picture[:60, :60] = 255
    frames = torch.from_numpy(np.stack([picture, picture[:, ::-1]]))
    detector = FaceDetector()
    packed = detector.find_faces(frames)
    monkeypatch.setattr(detector, "_scan_canvases", detector._scan_levels)
    whole = detector.find_faces(frames)
    assert len(whole.frame) >= 2
    np.testing.assert_array_equal(packed.frame, whole.frame)
    np.testing.assert_allclose(packed.box_px, whole.box_px, atol=0.01)


def test_a_screen_in_bfloat16_changes_no_face() -> None:
    picture = skimage.data.astronaut()
    frames = torch.from_numpy(np.stack([picture, (picture * 0.3).astype(np.uint8)]))
    detector = FaceDetector(precision="bfloat16")
    if detector.screen is None:  # this processor has no bfloat16: its rounding stands in for it
        detector.screen = lambda x: tuple(out.bfloat16().float() for out in detector.pnet(x))
    exact, screened = FaceDetector().find_faces(frames), detector.find_faces(frames)
    assert len(exact.frame) >= 2
    np.testing.assert_array_equal(screened.frame, exact.frame)
    np.testing.assert_allclose(screened.box_px, exact.box_px, atol=0.01)
    np.testing.assert_allclose(screened.score, exact.score, atol=1e-4)


def test_a_processor_without_bfloat16_has_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.detect.mtcnn.choose_precision", lambda *_: "float32")
    assert FaceDetector(precision="bfloat16").screen is None


def test_windows_that_pass_the_screen_are_decided_in_the_same_batches_however_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = FaceDetector(precision="bfloat16")
    batches = []

    def count_rows(x: torch.Tensor) -> tuple[torch.Tensor]:
        batches.append(x)
        return (torch.full((len(x), 5, 1, 1), -9.0),)  # no face

    monkeypatch.setattr(detector, "screen", detector.pnet)
    monkeypatch.setattr(detector, "pnet", count_rows)
    picture = torch.from_numpy(np.tile(skimage.data.astronaut(), (2, 2, 1)))[None]
    detector.find_faces(picture)
    together, batches = batches, []
    monkeypatch.setattr("pipeline.detect.mtcnn._MOST_GATHERED", 256)
    detector.find_faces(picture)
    assert len(together) == len(batches) > 2
    assert all(torch.equal(a, b) for a, b in zip(together, batches, strict=True))


def test_windows_are_cut_where_the_network_saw_them() -> None:
    for canvas in pack_pyramids(levels_of(skimage.data.astronaut()[None])):
        row, column = np.array([0, 3, 15, 0]), np.array([0, 20, 7, 41])
        for cut, r, c in zip(cut_windows(canvas, row, column), row, column, strict=True):
            np.testing.assert_array_equal(cut, canvas.rgb[2 * r : 2 * r + 12, 2 * c : 2 * c + 12])


def test_a_face_that_the_frame_cuts_off_is_found() -> None:
    picture = np.ascontiguousarray(skimage.data.astronaut()[:140, 40:242])  # without the chin
    faces = FaceDetector().find_faces(torch.from_numpy(picture)[None])
    assert len(faces.frame) == 1
    np.testing.assert_allclose(faces.box_px[0], (135, 58, 215, 166), atol=4)
