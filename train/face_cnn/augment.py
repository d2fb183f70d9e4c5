"""Training pictures made to look like face crops from film: whole batches, in torch."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from features.contracts import FACE_CROP_PX
from train.face_cnn.config import FaceAugmentation

_LEAST_PX = 24
"""Width of the smallest faces that pictures are made to look like."""


def augment_faces(
    pixels: Tensor, augmentation: FaceAugmentation, draw: Generator, side: int = FACE_CROP_PX
) -> Tensor:
    """Change each picture of a batch in its own way, and scale it to a crop.

    Args:
        pixels: [B, 1, S, S] uint8.
        augmentation: How far.
        draw: Source of all randomness, on the device of ``pixels``.
        side: Of the crop.

    Returns:
        [B, 1, side, side] float32, 0..255.
    """
    # Light and grain come first: at the size of the source they cost a seventh.
    x = _relight(pixels.float() / 255, augmentation, draw)
    x = _sharpen(x, augmentation.sharpness, draw)
    if augmentation.noise:
        grain = torch.randn(x.shape, generator=draw, device=draw.device)
        x = x + grain * _uniform(len(x), 0, augmentation.noise / 255, draw)
    x = _show_part(x * 255, augmentation, draw, side)
    if augmentation.shrunk:
        x = _shrink(x, augmentation.shrunk, draw)
    if augmentation.moved:
        x = _move(x, augmentation.moved, draw)
    if augmentation.compressed:
        x = _compress(x, augmentation.compressed, draw)
    if augmentation.erased:
        x = _erase(x, augmentation.erased, draw)
    return x.clamp(0, 255)


def scale_faces(pixels: Tensor) -> Tensor:
    """[B, 1, S, S] uint8 unchanged but for the size of a face crop: [B, 1, 128, 128] float32."""
    if pixels.shape[-1] == FACE_CROP_PX:
        return pixels.float()
    side = (FACE_CROP_PX, FACE_CROP_PX)
    return F.interpolate(pixels.float(), side, mode="bilinear", antialias=True)


def _uniform(n: int, low: float, high: float, draw: Generator) -> Tensor:
    """[n, 1, 1, 1]"""
    return (torch.rand(n, generator=draw, device=draw.device) * (high - low) + low).view(n, 1, 1, 1)


def _show_part(x: Tensor, augmentation: FaceAugmentation, draw: Generator, side: int) -> Tensor:
    """Mirror, scale, stretch, turn and shift in one resampling to [B, 1, side, side]."""
    n = len(x)

    def between(low: float, high: float) -> Tensor:
        return _uniform(n, low, high, draw).view(n)

    view = between(math.log(augmentation.view[0]), math.log(augmentation.view[1])).exp()
    stretch = between(-augmentation.aspect, augmentation.aspect).exp()
    turn = torch.deg2rad(between(-augmentation.rotation_deg, augmentation.rotation_deg))
    mirror = torch.ones(n, device=draw.device)
    if augmentation.flip:
        mirror = (torch.rand(n, generator=draw, device=draw.device) < 0.5).float() * 2 - 1
    # grid_sample's picture spans -1..1, so a shift by its whole side is 2.
    shift = 2 * augmentation.shift
    x_row = torch.stack(
        [view * stretch * turn.cos() * mirror, -view * turn.sin(), between(-shift, shift)], dim=1
    )
    y_row = torch.stack(
        [view * turn.sin() * mirror, view / stretch * turn.cos(), between(-shift, shift)], dim=1
    )
    size = [n, 1, side, side]
    grid = F.affine_grid(torch.stack([x_row, y_row], dim=1), size, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _relight(x: Tensor, augmentation: FaceAugmentation, draw: Generator) -> Tensor:
    """Another exposure curve, and light that falls from one side. x: 0..1."""
    n, side = len(x), x.shape[-1]
    x = x ** _uniform(n, -augmentation.gamma, augmentation.gamma, draw).exp()
    ramp = torch.linspace(-0.5, 0.5, side, device=draw.device)
    across = _uniform(n, -augmentation.light, augmentation.light, draw)
    down = _uniform(n, -augmentation.light, augmentation.light, draw)
    return (x + across * ramp + down * ramp[:, None]).clamp(0, 1)


def _sharpen(x: Tensor, amount: float, draw: Generator) -> Tensor:
    """Take fine detail away, or add it; a detail is smaller than about a 16th of the side."""
    reach = max(1, round(x.shape[-1] / 48))
    blurred = F.avg_pool2d(x, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    return x + _uniform(len(x), -amount, amount, draw) * (x - blurred)


def _shrink(x: Tensor, share: float, draw: Generator) -> Tensor:
    """Some pictures as of faces that are few pixels wide: all at one size, down and up again."""
    n, side = len(x), x.shape[-1]
    chosen = torch.rand(n, generator=draw, device=draw.device).view(n, 1, 1, 1) < share
    low, high = math.log(_LEAST_PX), math.log(side)
    size = round(math.exp(float(_uniform(1, low, high, draw))))
    small = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return torch.where(chosen, F.interpolate(small, (side, side), mode="bilinear"), x)


def _move(x: Tensor, share: float, draw: Generator) -> Tensor:
    """Some pictures as of faces that move while the shutter is open: all along one line."""
    n, side = len(x), x.shape[-1]
    chosen = torch.rand(n, generator=draw, device=draw.device).view(n, 1, 1, 1) < share
    angle, length = math.pi * float(_uniform(1, 0, 1, draw)), float(_uniform(1, 2, side / 8, draw))
    reach = math.ceil(length / 2)
    along = torch.linspace(-length / 2, length / 2, 8 * reach)
    column = (reach + along * math.cos(angle)).round().long()
    row = (reach + along * math.sin(angle)).round().long()
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1)
    kernel.index_put_((row, column), torch.full(along.shape, 1 / len(along)), accumulate=True)
    padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    return torch.where(chosen, F.conv2d(padded, kernel[None, None].to(x.device)), x)


def _compress(x: Tensor, share: float, draw: Generator) -> Tensor:
    """Round the cosine transform of blocks of 8 x 8 pixels, coarser for finer detail (ITU T.81)."""
    n, side = len(x), x.shape[-1]
    chosen = torch.rand(n, generator=draw, device=draw.device).view(n, 1, 1, 1) < share
    place = torch.arange(8, dtype=torch.float32, device=x.device)
    cosines = torch.cos(math.pi / 8 * (place + 0.5) * place[:, None]) / 2
    cosines[0] /= math.sqrt(2)
    step = 3 + 3 * (place + place[:, None])
    step = step * _uniform(n, math.log(0.5), math.log(6), draw).exp().view(n, 1, 1, 1, 1)
    blocks = x.view(n, side // 8, 8, side // 8, 8).transpose(2, 3)
    waves = cosines @ blocks @ cosines.T
    rounded = cosines.T @ (torch.round(waves / step) * step) @ cosines
    return torch.where(chosen, rounded.transpose(2, 3).reshape(x.shape), x)


def _erase(x: Tensor, share: float, draw: Generator) -> Tensor:
    """A grey rectangle, a sixth to a half of the side wide and high, over some pictures."""
    n, side = len(x), x.shape[-1]
    place = torch.arange(side, device=draw.device).view(1, 1, 1, side)
    hidden = torch.rand(n, generator=draw, device=draw.device).view(n, 1, 1, 1) < share
    for axis_view in ((1, 1, 1, side), (1, 1, side, 1)):
        size = _uniform(n, side / 6, side / 2, draw)
        start = _uniform(n, 0, 1, draw) * (side - size)
        along = place.view(axis_view)
        hidden = hidden & (along >= start) & (along < start + size)
    return torch.where(hidden, _uniform(n, 0, 255, draw), x)
