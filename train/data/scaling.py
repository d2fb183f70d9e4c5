"""The mean and the standard deviation of each value of a matrix, a block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.config import FitConfig
from train.data.clips import ClipTable
from train.data.matrices import Matrix, gather_rows

BLOCK_BYTES = 1 << 26
"""Rows read at a time, as float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """What standardising takes from each value of a stream, and divides it by."""

    mean: Tensor
    """[D] float32."""
    deviation: Tensor
    """[D] float32, above 0: 1 where all rows have the same value."""


def find_scales(train: ClipTable, config: FitConfig) -> dict[str, Scale]:
    """Matrix -> its statistics on a train split; none where nothing is standardised, or read."""
    if config.standardise == "off" or len(train) == 0:
        return {}
    return {name: find_scale(matrix) for name, matrix in train.features.items()}


def find_scale(matrix: Matrix, block_bytes: int = BLOCK_BYTES) -> Scale:
    """The statistics of all rows of a train split's matrix but row 0, which pads.

    Sums of squares of a block are about its own mean, and then shifted to that of all rows (Chan,
    Golub, LeVeque 1983): nothing cancels where a mean is large beside its deviation.

    Args:
        matrix: [N+1, D], in memory or on disk.
        block_bytes: What the rows read at a time may take.
    """
    n_rows, n_values = matrix.shape
    mean = torch.zeros(n_values, dtype=torch.float64)
    squares = torch.zeros(n_values, dtype=torch.float64)  # about the mean
    size = max(1, block_bytes // (8 * n_values))
    for begin in range(1, n_rows, size):
        rows = gather_rows(matrix, torch.arange(begin, min(begin + size, n_rows))).double()
        n_before, n_block = begin - 1, len(rows)
        own = rows.mean(0)
        squares += rows.sub_(own).square_().sum(0)
        squares += (own - mean).square() * (n_before * n_block / (n_before + n_block))
        mean += (own - mean) * (n_block / (n_before + n_block))
    variance = squares / max(n_rows - 1, 1)
    deviation = torch.where(variance > 0, variance.sqrt(), 1.0)
    return Scale(mean=mean.float(), deviation=deviation.float())
