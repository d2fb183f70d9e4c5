"""HDF5 files: opened for reading, and written beside their names on a disk that may get full.

With ``features.store.shard_checks``, and those who write columns of texts, the only door to h5py.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # HDF5 then reads columns packed by zstd
import numpy as np
from numpy.typing import NDArray

from features.disk import FileState, partial_path, publish, read_state
from features.errors import ShardError
from features.store.shard_checks import Columns

_CHUNK_BYTES = 1 << 19
_READ_FRAMES = 1024
"""Clips are read in blocks of about this many frames, so that chunks are inflated once."""
_RESERVE_BYTES = 8 << 20
"""More than it takes to finish a file: the last chunk of each column, the columns of clips."""


_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError)
"""What h5py and the checks raise where a shard is not as it should be."""

_REMEDY = "Delete it and run extract: its clips are extracted again"

_ACCESS = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
_ACCESS.set_fclose_degree(h5py.h5f.CLOSE_STRONG)


@contextmanager
def open_columns(path: Path, remedy: str = _REMEDY) -> Iterator[Columns]:
    """An open shard, damage told as ShardError. remedy: what to do about it."""
    if not path.is_file():
        raise ShardError(f"{path}: no such file")
    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, fapl=_ACCESS)
    except OSError as error:
        raise ShardError(f"{path}: damaged or not HDF5 ({error}). {remedy}.") from error
    try:
        yield Columns(file)
    except _DAMAGE as error:
        raise ShardError(
            f"{path}: damaged, or not as FORMAT.md says ({error}). {remedy}."
        ) from error
    finally:
        file.close()


def read_open_state(columns: Columns) -> FileState:
    """The state of an open file."""
    return read_state(columns.file.get_vfd_handle())


def check_state(path: Path, state: FileState, columns: Columns) -> None:
    """Raise ShardError where an open file is another than the one whose state this was."""
    if read_open_state(columns) != state:
        raise ShardError(f"{path}: changed while it was read. Run the same again.")


def iter_rows(
    path: Path,
    state: FileState,
    columns: Columns,
    name: str,
    offset: NDArray[np.int64],
    rows: Sequence[int],
) -> Iterator[NDArray[np.float16]]:
    """Yield the values of some clips, from a column of float16 that was checked.

    offset: [N+1] Clip i has the column's rows offset[i]..offset[i+1]-1. rows: of the clips.
    """
    for block in iter_blocks(offset, rows):
        check_state(path, state, columns)
        ends = offset[block[0] : block[-1] + 2].tolist()
        values = columns.read_rows(name, "f2", slice(ends[0], ends[-1]))
        for start, end in pairwise(ends):
            yield values[start - ends[0] : end - ends[0]]
    check_state(path, state, columns)


def iter_blocks(frame_offset: NDArray[np.int64], rows: Sequence[int]) -> Iterator[list[int]]:
    """Cut clips into runs of neighbours of about ``_READ_FRAMES`` rows. rows: of the clips."""
    block: list[int] = []
    for row in rows:
        full = block and frame_offset[row + 1] - frame_offset[block[0]] > _READ_FRAMES
        if block and (full or row != block[-1] + 1):
            yield block
            block = []
        block.append(row)
    if block:
        yield block


class Hdf5Output:
    """A file that is written beside its final name; ``publish`` gives it that name."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be made."""
        self.path = path
        self.partial = partial_path(path)
        self._reserve = partial_path(path.with_suffix(".reserve"))
        _reserve_space(self._reserve)
        self._disk = _CarefulFile(self.partial)
        self.file = h5py.File(self._disk, "w", libver="v110")

    def create_column(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """A packed column without rows. shape: of a row."""
        row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape))
        self.file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(max(1, min(4096, _CHUNK_BYTES // row_bytes)), *shape),
            dtype=dtype,
            fletcher32=True,
            **hdf5plugin.Zstd(clevel=3),
        )

    def put_rows(self, name: str, first: int, rows: NDArray[Any]) -> None:
        """Write the last rows of a column, from row ``first`` on."""
        dataset = self.file[name]
        dataset.resize(first + len(rows), axis=0)
        dataset[first:] = rows

    def check(self) -> None:
        """Raise OSError if the disk refused anything so far."""
        self._disk.check()

    def publish(self) -> None:
        """Make the file durable and give it its name. Raises OSError."""
        self.file.close()
        self._reserve.unlink(missing_ok=True)
        self._disk.retry()
        self._disk.close()
        publish(self.partial, self.path)

    def abandon(self) -> None:
        """Remove the unfinished file. Never raises for want of disk space."""
        self._disk.discard()
        self.file.close()
        self._disk.close()
        self.partial.unlink(missing_ok=True)
        self._reserve.unlink(missing_ok=True)


class _CarefulFile(io.RawIOBase):
    """A file under HDF5 that keeps what the disk refuses instead of raising inside HDF5.

    HDF5 cannot close a file that it could not write, and may end the process. So from the first
    failure on what it writes is kept in memory, from where it reads it again, until ``retry``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._raw = path.open("w+b", buffering=0)
        self._error: OSError | None = None
        self._discarding = False
        self._kept: list[tuple[int, bytes]] = []
        """Place in the file, content; later ones lie over earlier ones."""

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self._error is not None:
            raise self._error

    def _keep(self, error: OSError) -> None:
        error.filename = str(self._path)  # Python names no file that was open already
        self._error = self._error or error

    def discard(self) -> None:
        """Write nothing to the disk from now on."""
        self._discarding = True

    def retry(self) -> None:
        """Write what was kept. Raises OSError."""
        try:
            for start, content in self._kept:
                self._raw.seek(start)
                left = memoryview(content)
                while left:
                    left = left[self._raw.write(left) :]
        except OSError as error:
            self._keep(error)
            raise
        self._kept, self._error = [], None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        try:
            while left and self._error is None and not self._discarding:
                left = left[self._raw.write(left) :]
        except OSError as error:
            self._keep(error)
        if left:
            start = self._raw.tell()
            self._kept.append((start, bytes(left)))
            self._raw.seek(start + len(left))
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        size = self._raw.tell() if size is None else size
        try:
            self._raw.truncate(size)
        except OSError as error:
            self._keep(error)
        self._kept = [(at, content[: size - at]) for at, content in self._kept if at < size]
        return size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._raw.tell()
        n_bytes = self._raw.readinto(view) or 0
        view[n_bytes:] = bytes(len(view) - n_bytes)
        for at, content in self._kept:
            first, end = max(at, start), min(at + len(content), start + len(view))
            if first < end:
                view[first - start : end - start] = content[first - at : end - at]
        self._raw.seek(start + len(view))
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            ends = [at + len(content) for at, content in self._kept]
            offset += max([self._raw.seek(0, io.SEEK_END), *ends])
            whence = io.SEEK_SET
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def flush(self) -> None:
        """Unbuffered: nothing to do."""

    def close(self) -> None:
        self._raw.close()
        super().close()


def _reserve_space(path: Path) -> None:
    """Set space aside with which a file can be finished on a disk that is full by then."""
    with path.open("wb") as file, contextlib.suppress(OSError, AttributeError):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
