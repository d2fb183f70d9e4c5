"""How a decoded frame is shown: with square pixels, upright, mirrored where its file says so."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from av.buffer import Buffer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from pipeline.decode.notes import Notes
from pipeline.decode.opening import check_size

MAX_RATIO = 4
"""Pixels wider or higher than this are taken for a damaged header; 32:11 is the widest in use."""

_LEAST_CHANGE = Fraction(1, 100)
"""Encoders make up for a width rounded to whole pixels by pixels that are 640:639 wide."""

_COMBED_LEVELS, _COMBED_BLOCK, _COMBED_PIXELS = 9, 16, 80
"""A frame is combed where one of its blocks has so many pixels that differ by so much from those
above and below, both ways alike: the values of TIVTC, a deinterlacer in wide use."""

_WEIGHT_BITS = 7  # products of 8 bits and a weight stay within an int16


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """One of the eight ways to lay out the pixels of a frame."""

    transposed: bool = False
    """Rows become columns; before the flips."""
    flipped_x: bool = False
    """Left becomes right."""
    flipped_y: bool = False
    """Top becomes bottom."""

    @property
    def is_mirrored(self) -> bool:
        """Whether writing in the picture comes out reversed: no turning alone does that."""
        return self.transposed ^ self.flipped_x ^ self.flipped_y


class Display:
    """Shows the frames of one stream, and notes what is done to them."""

    def __init__(self, stream: VideoStream, notes: Notes) -> None:
        self._context = stream.codec_context
        self._notes = notes
        stated, coded = stream.sample_aspect_ratio, self._context.sample_aspect_ratio
        # What the container states goes before what the coded pictures do; without it (MPEG-TS)
        # theirs counts, and may change on the way.
        self._container_ratio = None if (stated or 0) == (coded or 0) else stated

    def show(self, frame: VideoFrame, rgb: Tensor) -> Tensor:
        """The frame as a player shows it.

        Args:
            frame: As decoded.
            rgb: [H, W, 3] uint8, its colours as stored.

        Returns:
            [H', W', 3] uint8, contiguous, on the device of ``rgb``.

        Raises:
            ClipError: the shown picture is too large.
        """
        if frame.interlaced_frame and is_combed(rgb):
            self._notes.add("interlaced_frames")
            rgb = keep_first_field(rgb)
        ratio = self._container_ratio or self._context.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, MAX_RATIO) <= ratio <= MAX_RATIO:
            self._notes.add("ignored_shape_frames")
            ratio = Fraction(1)
        height, width = find_square_size(rgb.shape[0], rgb.shape[1], ratio)
        if (height, width) != tuple(rgb.shape[:2]):
            check_size(width, height)
            self._notes.add("stretched_frames")
            rgb = _stretch(_stretch(rgb, width, axis=1), height, axis=0)
        orientation = read_orientation(frame)
        if orientation.is_mirrored:
            self._notes.add("mirrored_frames")
        return lay_out(rgb, orientation)


def is_combed(rgb: Tensor) -> bool:
    """Whether the two fields of a frame show two moments. rgb: [H, W, 3] uint8."""
    green = rgb[..., 1].to(torch.int16)
    above, here, below = green[:-2], green[1:-1], green[2:]
    high = (here - above > _COMBED_LEVELS) & (here - below > _COMBED_LEVELS)
    low = (above - here > _COMBED_LEVELS) & (below - here > _COMBED_LEVELS)
    n_rows, n_columns = (n // _COMBED_BLOCK for n in here.shape)
    combed = (high | low)[: n_rows * _COMBED_BLOCK, : n_columns * _COMBED_BLOCK]
    blocks = combed.reshape(n_rows, _COMBED_BLOCK, n_columns, _COMBED_BLOCK).sum((1, 3))
    return bool((blocks > _COMBED_PIXELS).any())


def keep_first_field(rgb: Tensor) -> Tensor:
    """The even lines of a frame, and between them their means, rounded up. rgb: [H, W, 3] uint8."""
    even = rgb[::2].to(torch.int16)
    shown = rgb.clone()
    n_between = len(rgb[1:-1:2])
    shown[1:-1:2] = ((even[:n_between] + even[1 : n_between + 1] + 1) >> 1).to(torch.uint8)
    shown[-1] = even[-1]  # of an even height the last line has none below it
    return shown


def find_square_size(height: int, width: int, ratio: Fraction) -> tuple[int, int]:
    """Height and width with square pixels: the side that is too short grows, so no detail is lost.

    Args:
        height: Pixels.
        width: Pixels.
        ratio: Width of a pixel by its height: the sample aspect ratio.
    """
    if abs(ratio - 1) < _LEAST_CHANGE:
        return height, width
    if ratio > 1:
        return height, int(width * ratio + Fraction(1, 2))
    return int(height / ratio + Fraction(1, 2)), width


def read_orientation(frame: VideoFrame) -> Orientation:
    """How a frame is to be laid out, by the display matrix that came with it."""
    try:
        data: Mapping[Type, Buffer] = frame.side_data  # type: ignore[assignment]
        matrix = struct.unpack("=9i", data[Type.DISPLAYMATRIX])
    except KeyError:
        return Orientation()
    except ValueError:  # PyAV knows not all kinds of data that may come with a frame
        return _convert_rotation(frame.rotation)
    return choose_orientation(matrix)


def choose_orientation(matrix: tuple[int, ...]) -> Orientation:
    """The orientation that is nearest to a display matrix.

    matrix: [9] a, b, u, c, d, v, x, y, w (ISO 14496-12): what stands in x, y is shown at
    a x + c y, b x + d y.
    """
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(flipped_x=a < 0, flipped_y=d < 0)
    return Orientation(transposed=True, flipped_x=c < 0, flipped_y=b < 0)


def lay_out(rgb: Tensor, orientation: Orientation) -> Tensor:
    """Pixels in another order. rgb: [H, W, 3]; returns [H, W, 3] or [W, H, 3], contiguous."""
    if orientation.transposed:
        rgb = rgb.transpose(0, 1)
    axes = [0] * orientation.flipped_y + [1] * orientation.flipped_x
    return rgb.flip(axes).contiguous() if axes else rgb.contiguous()


def _convert_rotation(degrees: float) -> Orientation:
    """The orientation of a rotation, counter-clockwise."""
    quarter = round(degrees / 90) % 4
    return Orientation(
        transposed=quarter % 2 == 1, flipped_x=quarter in (2, 3), flipped_y=quarter in (1, 2)
    )


def _stretch(rgb: Tensor, size: int, axis: int) -> Tensor:
    """Grow one side by linear interpolation, in whole numbers: the same bits on every device.

    rgb: [H, W, 3] uint8; its centres keep their places in the picture.
    """
    old = rgb.shape[axis]
    if size == old:
        return rgb
    one = 1 << _WEIGHT_BITS
    # At the centre of pixel i: (i + 1/2) old / size - 1/2, in units of 1 / one, rounded.
    centre = torch.arange(size, dtype=torch.int64, device=rgb.device) * 2 + 1
    at = ((centre * old * one + size) // (2 * size) - one // 2).clamp(0, (old - 1) * one)
    shape = [1, 1, 1]
    shape[axis] = size
    weight = (at % one).to(torch.int16).reshape(shape)
    before = at // one
    after = (before + 1).clamp(max=old - 1)
    blend = rgb.index_select(axis, before).to(torch.int16) * (one - weight)
    blend += rgb.index_select(axis, after).to(torch.int16) * weight
    return ((blend + one // 2) >> _WEIGHT_BITS).to(torch.uint8)
