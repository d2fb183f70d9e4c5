"""The cascade finds the faces that the reference implementation finds."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from features.contracts import Faces
from pipeline.detect.boxes import iou
from pipeline.detect.mtcnn import FaceDetector, _make_square
from pipeline.detect.pyramid import pyramid_scales

ASTRONAUT_BOX = (182, 64, 265, 171)
"""By the ``mtcnn`` package 1.0.0, its own engine and default settings, on the whole picture."""
ASTRONAUT_LANDMARKS = ((204, 100), (245, 102), (224, 126), (202, 139), (244, 140))


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def astronaut() -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = skimage.data.astronaut()
    return picture


def small_frames() -> Tensor:
    """[4, 160, 160, 3] Nobody, one astronaut, two of unequal size, one moved."""
    face = astronaut()[40:200, 140:300]  # (160, 160)
    halved = face[::2, ::2]
    frames = np.full((4, 160, 160, 3), 90, dtype=np.uint8)
    frames[1] = face
    frames[2, :80, :80] = halved
    frames[2, 70:150, 70:150] = halved
    frames[3, 20:] = face[:140]
    return torch.from_numpy(frames)


def area(box_px: NDArray[np.float32]) -> NDArray[np.float32]:
    size: NDArray[np.float32] = (box_px[:, 2:] - box_px[:, :2]).prod(axis=1)
    return size


def test_the_astronauts_face_is_where_the_reference_finds_it(detector: FaceDetector) -> None:
    faces = detector.find_faces(torch.from_numpy(astronaut())[None])
    sure = faces.score >= 0.95
    assert sure.sum() == 1
    box = faces.box_px[sure][0]
    expected = np.array([ASTRONAUT_BOX], dtype=np.float32)
    assert iou(box[None], expected).item() >= 0.95
    assert faces.score[sure][0] == pytest.approx(0.99912, abs=0.005)
    off = np.abs(faces.landmarks_px[sure][0] - ASTRONAUT_LANDMARKS)
    assert off.max() <= 0.05 * (box[2:] - box[:2]).min()


def test_frames_in_a_batch_have_the_faces_that_they_have_alone(detector: FaceDetector) -> None:
    frames = small_frames()
    together = detector.find_faces(frames)
    assert {1, 2, 3} <= set(together.frame.tolist())
    for i, frame in enumerate(frames):
        alone, of_frame = detector.find_faces(frame[None]), together.frame == i
        for name in ("box_px", "score", "landmarks_px"):
            found, expected = getattr(together, name)[of_frame], getattr(alone, name)
            np.testing.assert_allclose(found, expected, atol=0.01, err_msg=f"{name} of {i}")


def test_faces_come_by_frame_and_then_by_area(detector: FaceDetector) -> None:
    picture = np.zeros((260, 420, 3), dtype=np.uint8)
    picture[:160, :160] = astronaut()[40:200, 140:300][::2, ::2].repeat(2, 0).repeat(2, 1)
    picture[:256, 160:416] = astronaut()[:256, 90:346]
    picture[165:245, 20:100] = astronaut()[40:200, 140:300][::2, ::2]
    faces = detector.find_faces(torch.from_numpy(np.stack([picture, picture[:, ::-1]])))
    assert np.all(np.diff(faces.frame) >= 0)
    for frame in (0, 1):
        sizes = area(faces.box_px[faces.frame == frame])
        assert len(sizes) >= 2
        assert np.all(np.diff(sizes) <= 0)


def test_left_and_right_are_the_viewers(detector: FaceDetector) -> None:
    faces = detector.find_faces(small_frames()[1:2])
    left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks_px[0]
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


def test_landmarks_lie_in_their_box(detector: FaceDetector) -> None:
    faces = detector.find_faces(small_frames())
    assert len(faces.frame) >= 3
    for box, points in zip(faces.box_px, faces.landmarks_px, strict=True):
        assert np.all(points > box[:2])
        assert np.all(points < box[2:])


@pytest.mark.parametrize(
    "size", [(1, 1), (10, 10), (11, 30), (30, 11), (12, 12), (13, 40), (21, 21), (40, 400)]
)
def test_blank_and_tiny_frames_have_no_face(detector: FaceDetector, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.integers(0, 256, (2, *size, 3), dtype=np.uint8))
    for frames in (torch.zeros_like(noise), torch.full_like(noise, 255), noise):
        faces: Faces = detector.find_faces(frames)
        assert faces.box_px.shape == (0, 4)
        assert faces.landmarks_px.shape == (0, 5, 2)


def test_no_frames_have_no_faces(detector: FaceDetector) -> None:
    assert len(detector.find_faces(torch.zeros((0, 64, 64, 3), dtype=torch.uint8)).frame) == 0


def test_faces_below_the_least_size_are_not_sought(detector: FaceDetector) -> None:
    frames = small_frames()[2:3]  # the faces are 53 pixels high
    assert len(detector.find_faces(frames, 30).frame) >= 1
    assert len(detector.find_faces(frames, 120).frame) == 0


@pytest.mark.parametrize("thresholds", [(1.0, 0.7, 0.8), (0.6, 1.0, 0.8), (0.6, 0.7, 1.0)])
def test_no_face_passes_a_threshold_of_one(thresholds: tuple[float, float, float]) -> None:
    assert len(FaceDetector(thresholds=thresholds).find_faces(small_frames()).frame) == 0


def test_every_window_passes_a_threshold_of_zero() -> None:
    frames = small_frames()[2:3, :80, :80]
    assert len(FaceDetector(thresholds=(0.0, 0.7, 0.8)).find_faces(frames).frame) >= 1


@given(st.integers(1, 2200), st.integers(1, 4000), st.integers(12, 200))
def test_every_scale_of_the_pyramid_holds_a_window(height: int, width: int, least: int) -> None:
    scales = pyramid_scales(height, width, least)
    assert all(int(min(height, width) * scale) >= 12 for scale in scales)
    assert scales == sorted(scales, reverse=True)
    assert not scales or scales[0] == pytest.approx(12 / least)


def test_squares_grow_about_the_centre() -> None:
    rows = np.array([[0, 10, 20, 20, 50, 0.9], [1, 0, 0, 8, 4, 0.8]], dtype=np.float32)
    expected = [[0.0, 0, 20, 30, 50, 0.9], [1.0, 0, -2, 8, 6, 0.8]]
    np.testing.assert_allclose(_make_square(rows), expected, rtol=1e-6)
