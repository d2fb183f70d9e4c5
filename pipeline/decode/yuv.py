"""YCbCr planes to RGB on any device, level for level as swscale does it for software frames.

ITU-T H.273, 8.3, gives the matrices and ranges; the tags are numbered as it numbers them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_KR_KB = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}
_BT601_KR_KB = (0.299, 0.114)
_FULL_RANGE = 2

_EIGHTH_BITS, _FACTOR_BITS = 3, 13
"""Of frames of 8 bits: levels in eighths, factors in 2 ** -13, so that 16 bits down is a level."""

_TABLE_BITS = 16
_TABLE_LUMA, _TABLE_RGB = 326, 384
"""Of deeper frames in limited range: swscale's tables are aligned where luma -326 meets RGB -384
(less black), which is 1.8 levels darker than exact maths."""


@dataclass(frozen=True, kw_only=True)
class ColourTags:
    """What a frame says of its colours; what it does not say is BT.601 and limited range."""

    matrix: int
    """MatrixCoefficients."""
    color_range: int
    """FFmpeg's number: 2 is full, all else limited."""

    @property
    def is_full(self) -> bool:
        return self.color_range == _FULL_RANGE

    @property
    def luma_factor(self) -> float:
        """RGB levels of a level of luma."""
        return 1.0 if self.is_full else 255 / 219

    @property
    def chroma_factors(self) -> tuple[tuple[float, float], ...]:
        """RGB levels of a level of Cb and of Cr: in red, in green, in blue."""
        kr, kb = _KR_KB.get(self.matrix, _BT601_KR_KB)
        cb, cr = ((2 if self.is_full else 2 * 255 / 224) * (1 - k) for k in (kb, kr))
        kg = 1 - kr - kb
        return (0.0, cr), (-cb * kb / kg, -cr * kr / kg), (cb, 0.0)


def convert_to_rgb(luma: Tensor, chroma: Tensor, tags: ColourTags) -> Tensor:
    """Convert a frame of 4:2:0 as hardware decoders lay it out: NV12, P010, P016.

    swscale rounds products down one by one, which makes colours up to three levels darker than
    exact maths. So does this: features must not depend on where a clip was decoded. Measured over
    all matrices and ranges against swscale on x86: 8 bits are the same but for single levels under
    FCC; of 10 bits fewer than 7 values in 1,000 differ, by two levels at most.

    Where chroma lies is taken as swscale takes it. In 8 bits a sample stands for its 2 x 2 pixels.
    In more it is interpolated, as sited left between two rows: so H.264 and HEVC site it where they
    do not say otherwise. One that does (PyAV does not tell) gets chroma half a pixel off.

    Args:
        luma: [H, W] uint8, or uint16 with the value in its upper bits; H and W even.
        chroma: [H / 2, W / 2, 2] of the same type: Cb, Cr.
        tags: Of the frame.

    Returns:
        [H, W, 3] uint8 on the device of the planes.

    Raises:
        ValueError: sides are odd, or the planes do not fit together.
    """
    height, width = luma.shape
    if height % 2 or width % 2 or chroma.shape != (height // 2, width // 2, 2):
        raise ValueError(f"planes of {tuple(luma.shape)} and {tuple(chroma.shape)} are not 4:2:0")
    convert = _convert_8_bits if luma.dtype == torch.uint8 else _convert_more_bits
    levels = convert(luma, chroma, tags)  # (H, W/2, 2, 3)
    return levels.clamp_(0, 255).to(torch.uint8).view(height, width, 3)


def _convert_8_bits(luma: Tensor, chroma: Tensor, tags: ColourTags) -> Tensor:
    """Returns [H, W / 2, 2, 3] int32, levels of RGB."""

    def times(levels: Tensor, factor: float) -> Tensor:
        eighths: Tensor = levels << _EIGHTH_BITS
        products: Tensor = eighths * round(factor * 2**_FACTOR_BITS)
        return products >> (_FACTOR_BITS + _EIGHTH_BITS)

    light = times(luma.to(torch.int32) - (0 if tags.is_full else 16), tags.luma_factor)
    cb, cr = (chroma.to(torch.int32) - 128).unbind(2)
    factors = tags.chroma_factors
    chroma_rgb = torch.stack([times(cb, b) + times(cr, r) for b, r in factors], dim=2)
    return _add(light, chroma_rgb.repeat_interleave(2, dim=0))  # from (H/2, W/2, 3)


def _convert_more_bits(luma: Tensor, chroma: Tensor, tags: ColourTags) -> Tensor:
    """Returns [H, W / 2, 2, 3] int32, levels of RGB. What is added to luma is in levels of luma."""

    def times(levels: Tensor, factor: float) -> Tensor:
        steps = int(factor / tags.luma_factor * 2**_TABLE_BITS)
        return ((levels * steps) >> _TABLE_BITS) - (128 * steps >> _TABLE_BITS)

    levels = ((_sixteen_bits(luma) + 128) >> 8).clamp_(max=255)
    cb, cr = _read_sited_left(chroma).unbind(2)  # (H, W/2)
    factors = tags.chroma_factors
    chroma_rgb = torch.stack([times(cb, b) + times(cr, r) for b, r in factors], dim=2)
    if tags.is_full:
        return _add(levels, chroma_rgb)
    factor = int(tags.luma_factor * 2**_TABLE_BITS)
    offset = _TABLE_LUMA * factor - ((_TABLE_RGB + 16) << _TABLE_BITS) + (1 << _TABLE_BITS - 1)
    return (_add(levels, chroma_rgb) * factor + offset) >> _TABLE_BITS


def _add(light: Tensor, chroma_rgb: Tensor) -> Tensor:
    """[H, W] and [H, W / 2, 3] -> [H, W / 2, 2, 3]."""
    return light.view(*chroma_rgb.shape[:2], 2, 1) + chroma_rgb[:, :, None]


def _sixteen_bits(plane: Tensor) -> Tensor:
    """uint16 -> int32. CUDA has few kernels for uint16: the same bits are read as signed."""
    return plane.view(torch.int16).to(torch.int32) & 0xFFFF


def _read_sited_left(chroma: Tensor) -> Tensor:
    """[h, w, 2] uint16 -> [2h, w, 2] levels of 8 bits, each for the middle of its two pixels."""
    part = _sixteen_bits(chroma)
    right = torch.cat([part[:, 1:], part[:, -1:]], dim=1)
    part = (3 * part + right) >> 2
    above = torch.cat([part[:1], part[:-1]])
    below = torch.cat([part[1:], part[-1:]])
    pairs = torch.stack([3 * part + above, 3 * part + below], dim=1)  # (h, 2, w, 2)
    return ((pairs.flatten(0, 1) + 512) >> 10).clamp_(max=255)
