"""Scales images along both axes by weighted sums of a few source rows and columns."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Taps:
    """For each of n output positions, which k source positions count, and how much."""

    index: NDArray[np.int64]
    """[k, n]"""
    weight: NDArray[np.float32]
    """[k, n], each column sums to 1."""


@functools.lru_cache(maxsize=256)
def area_taps(n_in: int, n_out: int) -> Taps:
    """Area averaging: an output pixel is the mean of what it covers, edges by their share::

    n_in = 5   |  0  |  1  |  2  |  3  |  4  |
    n_out = 2  |      0       |      1       |      output 0 = (in0 + in1 + in2 / 2) / 2.5
    """
    width = n_in / n_out
    start = np.arange(n_out) * width
    first = np.floor(start).astype(np.int64)
    n_taps = int(np.ceil(width)) + 1
    index = first + np.arange(n_taps)[:, None]  # (k, n)
    covered = np.minimum(index + 1, start + width) - np.maximum(index, start)
    weight = np.clip(covered, 0, None)
    weight /= weight.sum(axis=0)
    return Taps(np.minimum(index, n_in - 1), weight.astype(np.float32))


def resample(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """images: [B, C, H, W] float. Returns [B, C, len(rows), len(columns)]."""
    return _along(_along(images, rows, 2), columns, 3)


def _along(images: Tensor, taps: Taps, axis: int) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    index = torch.from_numpy(taps.index).to(images.device)
    weight = torch.from_numpy(taps.weight).to(images.device)
    out = images.index_select(axis, index[0]) * weight[0].view(shape)
    for k in range(1, len(index)):
        out.addcmul_(images.index_select(axis, index[k]), weight[k].view(shape))
    return out
