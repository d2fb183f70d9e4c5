"""Crops for the networks: the whole scene, and each face (IV-B)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
    return crop_frames(rgb, CONTEXT_CROP_PX, CONTEXT_CROP_PX)


def crop_frames(
    rgb: Tensor,
    height: int,
    width: int,
    *,
    squeezed: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Scale frames with antialiasing until they cover a size, and take the centre.

    Args:
        rgb: [F, H, W, 3] uint8.
        height: Of the crops.
        width: Of the crops.
        squeezed: Take the whole frame instead, whatever becomes of its proportions.
        dtype: ``torch.uint8`` rounds; float32 by default.

    Returns:
        [F, 3, height, width], 0..255.
    """
    full_height, full_width = rgb.shape[1:3]
    if squeezed:
        scaled = (height, width)
    elif full_width * height >= full_height * width:
        scaled = (height, full_width * height // full_height)
    else:
        scaled = (full_height * width // full_width, width)
    rows = _find_taps(full_height, scaled[0], height)
    columns = _find_taps(full_width, scaled[1], width)
    crops = torch.empty((len(rgb), 3, height, width), dtype=dtype, device=rgb.device)
    for i, frame in enumerate(rgb):  # one by one: a chunk of float frames would be large
        crops[i] = _as_type(_resample(frame, rows, columns), dtype)
    return crops


class FaceCut(NamedTuple):
    """What of a frame a face's crop is made of: for small faces far less than the crop."""

    pixels: Tensor
    """[h, w, 3] uint8, the part of the square that lies in the frame, or what is nearest to it."""
    left: int
    """Of the square, in columns of ``pixels``."""
    top: int
    side: int
    size: int
    """Of the crop."""
    dtype: torch.dtype | None

    def scale(self) -> Tensor:
        """The crop, [3, size, size], 0..255; edges are replicated."""
        height, width = self.pixels.shape[:2]
        taps = _find_taps(self.side, self.size, self.size)
        crop = _resample(self.pixels, taps.move(self.top, height), taps.move(self.left, width))
        return _as_type(crop, self.dtype)

    @property
    def crop_bytes(self) -> int:
        """Of the crop."""
        return 3 * self.size**2 * (self.dtype or torch.float32).itemsize


def cut_faces(
    rgb: Tensor,
    faces: Faces,
    size: int = FACE_CROP_PX,
    *,
    margin: float = 0.0,
    dtype: torch.dtype | None = None,
) -> list[FaceCut | Tensor]:
    """Cut faces out of their frames, so that these may go: all crops of a crowd would be large.

    Args:
        rgb: [F, H, W, 3] uint8.
        faces: A faces, their ``frame`` counting rows of ``rgb``.
        size: Side of the crops.
        margin: Share of its side by which each square is enlarged.
        dtype: Of the crops: ``torch.uint8`` rounds; float32 by default.

    Returns:
        [A] What ``crop_faces`` takes: a cut, or the crop itself where that is smaller.
    """
    height, width = rgb.shape[1:3]
    squares = square_boxes(faces.box_px, margin)
    cuts: list[FaceCut | Tensor] = []
    for frame, square in zip(faces.frame.tolist(), squares, strict=True):
        left, top, right, bottom = square.tolist()
        first_row, last_row = (min(max(y, 0), height - 1) for y in (top, bottom - 1))
        first_column, last_column = (min(max(x, 0), width - 1) for x in (left, right - 1))
        pixels = rgb[frame, first_row : last_row + 1, first_column : last_column + 1]
        cut = FaceCut(pixels, left - first_column, top - first_row, right - left, size, dtype)
        if pixels.nbytes > cut.crop_bytes:
            cuts.append(cut.scale())
        else:
            cuts.append(cut._replace(pixels=pixels.clone()))
    return cuts


def crop_faces(cuts: Sequence[FaceCut | Tensor]) -> Tensor:
    """Each face's box made square about its centre, edges replicated where it leaves the frame.

    Args:
        cuts: A faces, from ``cut_faces``, at least one.

    Returns:
        [A, 3, size, size], 0..255, antialiased.
    """
    return torch.stack([cut if isinstance(cut, Tensor) else cut.scale() for cut in cuts])


def square_boxes(box_px: NDArray[np.float32], margin: float = 0.0) -> NDArray[np.int64]:
    """[A, 4] boxes -> [A, 4] squares in whole pixels: same centre, the longer side, at least 1.

    margin: Share of that side by which it is enlarged.
    """
    centre = (box_px[:, :2] + box_px[:, 2:]) / 2
    longer = (box_px[:, 2:] - box_px[:, :2]).max(axis=1)
    side = np.maximum(np.rint(longer * np.float32(1 + margin)), 1)
    left_top = np.rint(centre - side[:, None] / 2).astype(np.int64)
    return np.concatenate([left_top, left_top + side[:, None].astype(np.int64)], axis=1)


class _Taps(NamedTuple):
    """What scaled pixels are made of, along one axis: each is a weighted sum of K pixels."""

    pixels: Tensor
    """[N, K] Pixels of the frame."""
    weight: Tensor
    """[N, K] float32; 0 where fewer pixels count."""

    def move(self, start: int, n_pixels: int) -> _Taps:
        """The same from ``start`` on; pixels beyond the frame's are those of its edges."""
        return self._replace(pixels=(self.pixels + start).clamp(0, n_pixels - 1))

    @property
    def read(self) -> slice:
        """The pixels that count."""
        return slice(int(self.pixels.min()), int(self.pixels.max()) + 1)


@lru_cache(maxsize=256)
def _find_taps(n_pixels: int, n_scaled: int, n_kept: int) -> _Taps:
    """The antialiased bilinear filter of ``torch.nn.functional.interpolate``.

    Args:
        n_pixels: Along this axis, before scaling.
        n_scaled: After scaling.
        n_kept: N, in the middle.
    """
    first = (n_scaled - n_kept) // 2
    scale = n_pixels / n_scaled
    reach = max(scale, 1.0)
    centre = (np.arange(first, first + n_kept)[:, None] + 0.5) * scale  # (N, 1)
    begin = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + reach + 0.5).astype(np.int64), n_pixels)
    index = begin + np.arange((end - begin).max())  # (N, K)
    weight = np.maximum(1 - np.abs(index + 0.5 - centre) / reach, 0) * (index < end)
    weight /= weight.sum(axis=1, keepdims=True)
    return _Taps(
        pixels=torch.from_numpy(np.minimum(index, n_pixels - 1)),
        weight=torch.from_numpy(weight.astype(np.float32)),
    )


def _resample(frame: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    """Scale part of a frame, [H, W, 3] uint8, to [3, rows, columns] float32.

    As sums of whole lines, first rows, then columns: on a CPU two and a half times as fast as
    ``interpolate``.
    """
    part = frame[rows.read, columns.read]
    n_columns = part.shape[1]
    lines = _sum_lines(part.flatten(1).float(), rows)  # (rows, W * 3)
    turned = lines.view(-1, n_columns, 3).permute(1, 2, 0).flatten(1)  # (W, 3 * rows)
    return _sum_lines(turned, columns).view(len(columns.pixels), 3, -1).permute(1, 2, 0)


def _as_type(crop: Tensor, dtype: torch.dtype | None) -> Tensor:
    return crop.round().clamp(0, 255).to(dtype) if dtype == torch.uint8 else crop


def _sum_lines(lines: Tensor, taps: _Taps) -> Tensor:
    """[n, values], n the pixels that are read, to [N, values]."""
    index = (taps.pixels - taps.read.start).to(lines.device)
    weight = taps.weight.to(lines.device)
    return F.embedding_bag(index, lines, mode="sum", per_sample_weights=weight)
