"""The two crops show what they should, whatever the frame's shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from features.contracts import Faces
from pipeline.embed import crops
from pipeline.embed.crops import crop_context, square_boxes


def make_faces(*box_px: tuple[float, float, float, float], frame: list[int] | None = None) -> Faces:
    n = len(box_px)
    return Faces(
        frame=np.array(frame or [0] * n, dtype=np.int32),
        box_px=np.array(box_px, dtype=np.float32).reshape(n, 4),
        score=np.ones(n, dtype=np.float32),
        landmarks_px=np.zeros((n, 5, 2), dtype=np.float32),
    )


def crop_faces(rgb: Tensor, faces: Faces) -> Tensor:
    """The crops as the face CNN gets them."""
    return crops.crop_faces(crops.cut_faces(rgb, faces))


def ramp(height: int, width: int) -> Tensor:
    """[1, H, W, 3] Red tells the column, green the row, each 0..255 over the frame."""
    rgb = np.zeros((1, height, width, 3), dtype=np.uint8)
    rgb[..., 0] = np.rint(np.linspace(0, 255, width))
    rgb[..., 1] = np.rint(np.linspace(0, 255, height))[:, None]
    return torch.from_numpy(rgb)


def checks(height: int, width: int) -> Tensor:
    """[1, H, W, 3] Black and white from pixel to pixel."""
    white = (np.add.outer(np.arange(height), np.arange(width)) % 2 * 255).astype(np.uint8)
    return torch.from_numpy(np.repeat(white[None, ..., None], 3, axis=3))


SIZES = [(48, 64), (64, 48), (224, 224), (225, 224), (241, 321), (30, 300), (300, 30), (7, 5)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_context_is_the_centre_square_of_the_frame(height: int, width: int) -> None:
    crop = crop_context(ramp(height, width))[0]
    assert crop.shape == (3, 224, 224)
    shorter = min(height, width)
    for channel, side in ((0, width), (1, height)):
        levels = crop[channel].mean(dim=0 if channel == 0 else 1)
        margin = (side - shorter) / 2  # pixels left out at each end
        seen = np.linspace(margin, side - 1 - margin, 224) / max(side - 1, 1) * 255
        np.testing.assert_allclose(levels, seen, atol=255 / side + 1)
        assert float(levels.mean()) == pytest.approx(127.5, abs=1.5)


def test_a_frame_of_the_right_size_stays_as_it_is() -> None:
    rgb = torch.cat([ramp(224, 224), checks(224, 224)])
    torch.testing.assert_close(crop_context(rgb), rgb.permute(0, 3, 1, 2).float())


@settings(deadline=None, max_examples=30)
@given(st.integers(5, 700), st.integers(5, 700))
def test_scaling_is_that_of_torch(height: int, width: int) -> None:
    rgb = torch.from_numpy(
        np.random.default_rng([height, width]).integers(0, 256, (1, height, width, 3), np.uint8)
    )
    scaled = tuple(224 * side // min(height, width) for side in (height, width))
    image = rgb.permute(0, 3, 1, 2).float()
    whole = F.interpolate(image, size=scaled, mode="bilinear", antialias=True)
    top, left = ((side - 224) // 2 for side in scaled)
    expected = whole[..., top : top + 224, left : left + 224]
    torch.testing.assert_close(crop_context(rgb), expected, rtol=0, atol=0.02)


def test_shrinking_averages_what_it_leaves_out() -> None:
    context = crop_context(checks(480, 640))[0]
    face = crop_faces(checks(480, 640), make_faces((40, 40, 440, 440)))[0]
    for crop in (context, face):
        assert float(crop[:, 2:-2, 2:-2].sub(127.5).abs().max()) < 12


SQUARES: dict[str, tuple[tuple[float, float, float, float], list[int]]] = {
    "a square stays": ((10, 20, 40, 50), [10, 20, 40, 50]),
    "a tall box is widened": ((10, 20, 20, 50), [0, 20, 30, 50]),
    "a wide box is heightened": ((10, 20, 50, 30), [10, 5, 50, 45]),
    "it may leave the frame": ((-5, 0, 5, 40), [-20, 0, 20, 40]),
    "a box of less than a pixel is one": ((3.2, 3.2, 3.4, 3.4), [3, 3, 4, 4]),
    "a box of no size is one pixel": ((3.0, 3.0, 3.0, 3.0), [2, 2, 3, 3]),
}


@pytest.mark.parametrize(("box", "expected"), SQUARES.values(), ids=SQUARES)
def test_of_boxes(box: tuple[float, float, float, float], expected: list[int]) -> None:
    assert square_boxes(make_faces(box).box_px).tolist() == [expected]


def test_squares_keep_the_centre_within_a_pixel_and_the_longer_side() -> None:
    rng = np.random.default_rng(0)
    start: NDArray[np.float64] = rng.uniform(-50, 300, (200, 2))
    box = np.concatenate([start, start + rng.uniform(1, 200, (200, 2))], axis=1)
    square = square_boxes(box.astype(np.float32))
    side = square[:, 2:] - square[:, :2]
    np.testing.assert_array_equal(side[:, 0], side[:, 1])
    np.testing.assert_allclose(side[:, 0], (box[:, 2:] - box[:, :2]).max(axis=1), atol=0.51)
    centre, expected = (square[:, :2] + square[:, 2:]) / 2, (box[:, :2] + box[:, 2:]) / 2
    np.testing.assert_allclose(centre, expected, atol=1)


def test_a_face_crop_shows_its_box() -> None:
    rgb = ramp(100, 200)
    crop = crop_faces(rgb, make_faces((40, 20, 104, 84)))[0]
    assert crop.shape == (3, 128, 128)
    inside = rgb[0, 20:84, 40:104].permute(2, 0, 1).float()
    halved = torch.nn.functional.avg_pool2d(crop, 2)
    np.testing.assert_allclose(halved, inside, atol=2)


def test_edges_are_repeated_where_a_face_leaves_the_frame() -> None:
    rgb = ramp(64, 64)
    crop = crop_faces(rgb, make_faces((-64, -32, 64, 96)))[0]  # one pixel of the crop is one of it
    assert (crop[0, :, :64] == 0).all()  # left of the frame: its first column
    np.testing.assert_allclose(crop[0, 5, 64:], rgb[0, 0, :, 0], atol=1e-3)
    assert (crop[1, :32] == 0).all()
    assert (crop[1, 96:] == 255).all()


def test_a_face_wholly_outside_the_frame_is_its_nearest_corner() -> None:
    crop = crop_faces(ramp(50, 50), make_faces((80, 80, 90, 90)))[0]
    np.testing.assert_allclose(crop[:2], 255, atol=1e-3)


def test_each_face_is_cut_from_its_own_frame_in_order() -> None:
    rgb = torch.stack([torch.full((30, 30, 3), level, dtype=torch.uint8) for level in (10, 20, 30)])
    box = (5.0, 5.0, 20.0, 20.0)
    found = crop_faces(rgb, make_faces(box, box, box, frame=[0, 2, 2]))
    np.testing.assert_allclose(found.mean(dim=(1, 2, 3)), [10, 30, 30], atol=1e-3)


def test_no_faces_give_no_cuts() -> None:
    assert crops.cut_faces(ramp(30, 30), make_faces()) == []


def test_a_face_of_one_pixel_is_its_colour() -> None:
    rgb = torch.zeros((1, 9, 9, 3), dtype=torch.uint8)
    rgb[0, 4, 4] = torch.tensor([1, 2, 3])
    crop = crop_faces(rgb, make_faces((4.0, 4.0, 5.0, 5.0)))[0]
    np.testing.assert_allclose(crop.mean(dim=(1, 2)), [1, 2, 3], atol=1e-3)


@pytest.mark.parametrize(
    ("side", "n_bytes"),
    [(20, 3 * 20**2), (250, 3 * 250**2), (400, 4 * 3 * 128**2)],
    ids=["small", "large", "larger than its crop"],
)
def test_a_cut_keeps_no_more_than_its_pixels_or_its_crop(side: int, n_bytes: int) -> None:
    (cut,) = crops.cut_faces(ramp(480, 640), make_faces((30, 40, 30 + side, 40 + side)))
    pixels = cut if isinstance(cut, Tensor) else cut.pixels
    assert pixels.untyped_storage().nbytes() == n_bytes


@settings(deadline=None, max_examples=50)
@given(st.integers(-90, 90), st.integers(-90, 90), st.integers(1, 90))
def test_a_cut_gives_the_crop_of_a_frame_with_its_edges_repeated(
    left: int, top: int, side: int
) -> None:
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 50, 70, 3), np.uint8))
    margin = 100
    wide = F.pad(rgb.permute(0, 3, 1, 2).float(), (margin,) * 4, mode="replicate")
    square = wide[..., top + margin :, left + margin :][..., :side, :side]
    expected = F.interpolate(square, size=128, mode="bilinear", antialias=True)
    found = crop_faces(rgb, make_faces((left, top, left + side, top + side)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
