"""Feature matrices, a row a frame or face: in memory, or in a scratch file where they do not fit.

Either gives the same rows, so training from disk is training from memory, only slower.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.errors import ConfigError


class DiskMatrix:
    """A matrix in a file without a name: gone when it is closed, also after a crash.

    Only the rows asked for are in memory. Threads may read at the same time.
    """

    def __init__(self, n_rows: int, n_values: int, dtype: torch.dtype, folder: Path | None) -> None:
        """All zeros.

        Args:
            n_rows: Rows.
            n_values: Of each.
            dtype: Of 16 bits.
            folder: Where the file's space is taken; None: the system's scratch folder.
        """
        self.shape = (n_rows, n_values)
        self.dtype = dtype
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as we live
        weakref.finalize(self, self._file.close)
        self._file.truncate(n_rows * n_values * dtype.itemsize)
        self._rows = np.memmap(self._file, np.int16, "r", shape=self.shape)

    def write(self, first: int, rows: Tensor) -> None:
        """Write rows [N, n_values] from row ``first`` on. Raises ConfigError on a full disk."""
        # Not through the map: there a full disk ends the process.
        data = rows.to(self.dtype).contiguous().flatten().view(torch.uint8).numpy().data
        at = first * self._rows.strides[0]
        while data:
            try:
                n = os.pwrite(self._file.fileno(), data, at)
            except OSError as error:
                where = self._folder or tempfile.gettempdir()
                raise ConfigError(
                    f"{where}: features that exceed the memory are kept here while fit runs, and "
                    f"writing them failed ({error.strerror}). Free disk space, or give --memory."
                ) from error
            data, at = data[n:], at + n

    def gather(self, rows: Tensor) -> Tensor:
        """[N] row numbers to [N, n_values]."""
        return torch.from_numpy(np.asarray(self._rows[rows.numpy()])).view(self.dtype)


Matrix = Tensor | DiskMatrix
"""[rows, values]"""


def write_rows(matrix: Matrix, first: int, rows: Tensor) -> None:
    """Put rows [N, D] into a matrix from row ``first`` on."""
    if isinstance(matrix, DiskMatrix):
        matrix.write(first, rows)
    else:
        matrix[first : first + len(rows)] = rows


def gather_rows(matrix: Matrix, rows: Tensor) -> Tensor:
    """[N] row numbers to [N, D]."""
    if isinstance(matrix, DiskMatrix):
        return matrix.gather(rows)
    return matrix.index_select(0, rows)
