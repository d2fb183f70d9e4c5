"""Feature matrices, a row a frame or face: in memory, or in a scratch file where they do not fit.

Either gives the same rows, so training from disk is training from memory, only slower.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from features.errors import ConfigError

T = TypeVar("T")

_MOST_PARTS = 1024
"""Of one read: what Linux and the BSDs allow."""


class DiskMatrix:
    """A matrix in a file without a name: gone when it is closed, also after a crash.

    Only the rows asked for are in memory. Threads may read at the same time.
    """

    def __init__(self, n_rows: int, n_values: int, dtype: torch.dtype, folder: Path | None) -> None:
        """All zeros. folder: where the file's space is taken; None: the system's scratch folder."""
        self.shape = (n_rows, n_values)
        self.dtype = dtype
        self._row_bytes = n_values * dtype.itemsize
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as we live
        weakref.finalize(self, self._file.close)
        self._file.truncate(n_rows * self._row_bytes)

    def write(self, first: int, rows: Tensor) -> None:
        """Write rows [N, n_values] from row ``first`` on. Raises ConfigError on a full disk."""
        data = _see_bytes(rows.to(self.dtype).contiguous())
        at = first * self._row_bytes
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
        """[N] row numbers to [N, n_values]. Neighbours in the file are read at once, in whatever
        order they are wanted; row 0 is known as zero."""
        out = torch.empty(len(rows), self.shape[1], dtype=self.dtype)
        out[rows == 0] = 0
        buffer, size = _see_bytes(out), self._row_bytes
        wanted = rows.numpy()
        places = np.argsort(wanted, kind="stable")
        places = places[np.searchsorted(wanted, 1, sorter=places) :]
        cuts = np.flatnonzero(np.diff(wanted[places]) != 1) + 1
        for neighbours in np.split(places, cuts) if len(places) else ():
            parts = [buffer[i * size : (i + 1) * size] for i in neighbours.tolist()]
            at = int(wanted[neighbours[0]]) * size
            while parts:
                n_read = os.preadv(self._file.fileno(), parts[:_MOST_PARTS], at) // size
                if n_read == 0:
                    raise ValueError(f"rows up to {wanted[neighbours[-1]]} of {self.shape[0]}")
                parts, at = parts[n_read:], at + n_read * size
        return out


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


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next of which a thread makes while this one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, items, None)
        while (item := ahead.result()) is not None:
            ahead = pool.submit(next, items, None)
            yield item


def _see_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.flatten().view(torch.uint8).numpy().data
