"""Samples the square patches that R-Net and O-Net look at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.detect.networks import normalise


def sample_patches(rgb: Tensor, boxes: NDArray[np.float32], size: int) -> Tensor:
    """Sample boxes at size x size points, bilinearly and without antialiasing, as ``mtcnn`` does.

    Only the pixels that are read are converted: whole frames as floats would cost more than the
    networks.

    Args:
        rgb: [F, H, W, 3] uint8, contiguous.
        boxes: [N, 6] row of the frame, left, top, right, bottom in pixels, score.
        size: Points a side.

    Returns:
        [N, 3, size, size] float32, about -1..1 on ``rgb``'s device; 0 outside the frame.
    """
    height, width = rgb.shape[1:3]
    table = torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32)).to(rgb.device)
    step = torch.linspace(0, 1, size, device=rgb.device)
    x, x_inside = _points(table[:, 1], table[:, 3], step, width)
    y, y_inside = _points(table[:, 2], table[:, 4], step, height)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    in_x, in_y = (x - left)[:, None, None], (y - top)[:, None, :, None]
    first = table[:, 0].long()[:, None] * height  # row of the first line of the frame
    rows = (first + torch.cat([top, bottom], dim=1)) * width  # (N, 2 * size)
    place = (rows[:, :, None] + torch.cat([left, right], dim=1)[:, None]) * 3
    flat = rgb.flatten()
    planes = [torch.take(flat[channel:], place) for channel in range(3)]
    pixels = torch.stack(planes, dim=1).float()  # (N, 3, 2 * size, 2 * size)
    lines = torch.lerp(pixels[..., :size], pixels[..., size:], in_x)
    patches = normalise(torch.lerp(lines[:, :, :size], lines[:, :, size:], in_y))
    patches *= (y_inside[:, :, None] & x_inside[:, None])[:, None]
    return patches


def _points(first: Tensor, last: Tensor, step: Tensor, n_pixels: int) -> tuple[Tensor, Tensor]:
    """[N] ends of the boxes along one axis -> [N, size] places, and which lie in the frame."""
    limit = n_pixels - 1
    scale = limit / n_pixels
    places = first[:, None] * scale + step * ((last - first) * scale)[:, None]
    inside = (places >= 0) & (places <= limit)
    return places.clamp(0, limit), inside
