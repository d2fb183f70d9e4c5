"""The pyramid of scaled frames that P-Net is slid over."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

PYRAMID_FACTOR = 0.709
WINDOW_PX = 12
"""Side of P-Net's window."""


def pyramid_scales(height: int, width: int, min_face_px: int) -> list[float]:
    """The pyramid's scales; their number depends on the frame only, as in the ``mtcnn`` package."""
    shorter = min(height, width)
    n_scales = round(-(math.log(shorter / WINDOW_PX) / math.log(PYRAMID_FACTOR) + 1))
    largest = WINDOW_PX / min_face_px
    scales = [largest * PYRAMID_FACTOR**i for i in range(max(n_scales, 0))]
    return [s for s in scales if int(shorter * s) >= WINDOW_PX]


def make_pyramid(rgb: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """Scale frames down, antialiased: each level from the one before.

    The ``mtcnn`` package averages areas of the full frame for every level. The difference moves
    boxes by a pixel or so and costs a thirtieth of the time.

    Args:
        rgb: [F, H, W, 3] uint8.
        scales: As ``pyramid_scales`` gives them.

    Returns:
        [F, h, w, 3] uint8 for each scale.
    """
    height, width = rgb.shape[1:3]
    levels = []
    for scale in scales:
        rgb = _shrink(rgb, (int(height * scale), int(width * scale)))
        levels.append(rgb)
    return levels


def _shrink(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    planes = rgb.permute(0, 3, 1, 2)
    if rgb.device.type == "cpu":
        scaled = F.interpolate(planes, size=size, mode="bilinear", antialias=True)
    else:
        scaled = F.interpolate(planes.float(), size=size, mode="bilinear", antialias=True)
        scaled = scaled.round_().byte()
    return scaled.permute(0, 2, 3, 1).contiguous()
