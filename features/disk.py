"""Writes files so that a reader sees the old content or the new, never a part; tells them apart."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

Progress = Callable[[int, int], None]
"""Told how many bytes were gone through, and how many there are to go through in all."""


ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Ctrl-C, a batch system's stop, a lost terminal: they ask a command to end."""


def ignore_progress(n_done: int, n_all: int) -> None:
    """A ``Progress`` that nobody looks at."""


@dataclass(frozen=True, kw_only=True)
class FileState:
    """Differs where a file was replaced or written to."""

    device: int
    inode: int
    n_bytes: int
    mtime_ns: int


def read_state(file: int | Path) -> FileState:
    """The state of an open file, by its descriptor, or of the one that a path leads to now.

    Raises:
        OSError: The path leads nowhere.
    """
    found = file.stat() if isinstance(file, Path) else os.fstat(file)
    return FileState(
        device=found.st_dev, inode=found.st_ino, n_bytes=found.st_size, mtime_ns=found.st_mtime_ns
    )


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside, fsync, rename. Raises OSError; the old file then still stands."""
    data = content.encode() if isinstance(content, str) else content
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # none is named while it is written
        raise
    sync_folder(path.parent)


def append_whole(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made if absent. Raises OSError; none is then added.

    Not durable at once: it outlives this process, not a power cut.
    """
    left = memoryview(text.encode())
    with path.open("ab", buffering=0) as file:
        n_bytes = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            file.truncate(n_bytes)
            error.filename = str(path)
            raise


def publish(partial: Path, path: Path) -> None:
    """Make a finished partial file or folder durable and give it its final name."""
    files = [p for p in partial.rglob("*") if p.is_file()] if partial.is_dir() else [partial]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if partial.is_dir():
        sync_folder(partial)
    partial.rename(path)
    sync_folder(path.parent)


def partial_path(path: Path) -> Path:
    """Where a file or folder stands while it is being written."""
    return path.with_name(f".{path.name}.partial")


def sync_folder(folder: Path) -> None:
    """Make a rename inside the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off what asks to end until the block is done, so that no half of it stays on disk."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    arrived: list[signal.Signals] = []

    def put_off(signum: int, frame: FrameType | None) -> None:
        arrived.append(signal.Signals(signum))

    previous = {s: signal.signal(s, put_off) for s in ENDING}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        for arrival in arrived:
            signal.raise_signal(arrival)
