"""Cuts what the two CNNs look at out of frames: the whole scene, and each face (IV-B)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from features.contracts import CONTEXT_CROP_PX, FACE_CROP_PX, Faces


def crop_context(rgb: Tensor) -> Tensor:
    """The whole frame, shorter side scaled to 224 with antialiasing, centre-cropped.

    Args:
        rgb: [F, H, W, 3] uint8.

    Returns:
        [F, 3, 224, 224] float32, 0..255.
    """
    height, width = rgb.shape[1:3]
    shorter = min(height, width)
    size = (CONTEXT_CROP_PX * height // shorter, CONTEXT_CROP_PX * width // shorter)
    rows, columns = (_kept(n, n_scaled) for n, n_scaled in zip((height, width), size, strict=True))
    scaled = torch.empty((len(rgb), 3, CONTEXT_CROP_PX, CONTEXT_CROP_PX), device=rgb.device)
    for i, frame in enumerate(rgb):  # one by one: a chunk of float frames would be large
        image = frame[:, columns.read].permute(2, 0, 1)[None].float()
        image = _scale(image, (size[0], image.shape[3]))[:, :, rows.cropped]
        # Zeros stand for the columns that no pixel of the crop depends on: scaling them would be
        # a third of the work on a wide frame.
        wide = image.new_zeros((*image.shape[:3], width))
        wide[..., columns.read] = image
        scaled[i] = _scale(wide, (CONTEXT_CROP_PX, size[1]))[0, ..., columns.cropped]
    return scaled


class _Kept(NamedTuple):
    """What a centre crop of a scaled frame keeps, along one axis."""

    read: slice
    """Pixels of the frame that it depends on."""
    cropped: slice
    """Pixels of the scaled frame."""


def _kept(n_pixels: int, n_scaled: int) -> _Kept:
    first = (n_scaled - CONTEXT_CROP_PX) // 2
    factor, reach = n_pixels / n_scaled, 2  # pixels of the scaled frame that a kernel spans
    start = max(0, math.floor((first - reach) * factor))
    stop = min(n_pixels, math.ceil((first + CONTEXT_CROP_PX + reach) * factor))
    return _Kept(read=slice(start, stop), cropped=slice(first, first + CONTEXT_CROP_PX))


def _scale(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image, size=size, mode="bilinear", antialias=True)


def crop_faces(rgb: Tensor, faces: Faces) -> Tensor:
    """Each face's box made square about its centre, edges replicated where it leaves the frame.

    Args:
        rgb: [F, H, W, 3] uint8.
        faces: A faces, their ``frame`` counting rows of ``rgb``.

    Returns:
        [A, 3, 128, 128] float32, 0..255, antialiased.
    """
    size = (FACE_CROP_PX, FACE_CROP_PX)
    crops = torch.empty((len(faces.frame), 3, *size), device=rgb.device)
    for i, (frame, square) in enumerate(zip(faces.frame, square_boxes(faces.box_px), strict=True)):
        rows = _replicated(square[1], square[3], rgb.shape[1]).to(rgb.device)
        columns = _replicated(square[0], square[2], rgb.shape[2]).to(rgb.device)
        image = rgb[int(frame)].index_select(0, rows).index_select(1, columns)
        image = image.permute(2, 0, 1)[None].float()
        crops[i] = _scale(image, size)[0]
    return crops


def square_boxes(box_px: NDArray[np.float32]) -> NDArray[np.int64]:
    """[A, 4] boxes -> [A, 4] squares in whole pixels: same centre, the longer side, at least 1."""
    centre = (box_px[:, :2] + box_px[:, 2:]) / 2
    side = np.maximum(np.rint((box_px[:, 2:] - box_px[:, :2]).max(axis=1)), 1)
    left_top = np.rint(centre - side[:, None] / 2).astype(np.int64)
    return np.concatenate([left_top, left_top + side[:, None].astype(np.int64)], axis=1)


def _replicated(start: np.int64, stop: np.int64, n: int) -> Tensor:
    """Indices start..stop-1, those outside 0..n-1 moved to the nearest edge."""
    return torch.arange(int(start), int(stop)).clamp(0, n - 1)
