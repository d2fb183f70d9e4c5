"""The files of clips: opened without waiting for what is none, and seen to stay as they are."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

from features.disk import FileState, read_state
from features.errors import ClipError

_POINTERS = (
    (
        b"version https://git-lfs.github.com/spec/v1",
        "a Git LFS pointer, not the film itself: fetch it with `git lfs pull`",
    ),
    (
        b"version https://hawser.github.com/spec/v1",
        "a Git LFS pointer, not the film itself: fetch it with `git lfs pull`",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the film itself: `git annex get` fetches it"),
    (b"<!doctype html", "a web page, not a film: the download went wrong"),
    (b"<html", "a web page, not a film: the download went wrong"),
    (b"#extm3u", "a playlist (HLS), not a film: name the film's own file"),
    (b"ffconcat version", "a list of files (concat), not a film: name each film's own file"),
    (b"v=0", "the description of a stream (SDP), not a film: name a recording of it"),
)
"""What a file in a film's place begins with, in small letters, and what is said of it."""


class MissingFileError(ClipError):
    """No file has this path."""


class ChangedError(ClipError):
    """A file was replaced or written to while it was read."""

    def __init__(self) -> None:
        super().__init__("changed while it was read; run again")


def check_unchanged(path: Path, file: FileIO, before: FileState) -> None:
    """Raise ChangedError unless an open file is as before, and still the one of its path."""
    try:
        now = {read_state(file.fileno()), read_state(path)}
    except OSError:  # the path leads nowhere any more
        raise ChangedError from None
    if now != {before}:
        raise ChangedError


def open_file(path: Path) -> FileIO:
    """Open a regular file that may hold a film; never waits for one that is none.

    Raises:
        ClipError: no such file, no regular file (a folder, a pipe, a device), empty, or one that
            only stands for others.
        OSError: it cannot be read.
    """
    try:
        _check_regular(path.stat().st_mode)  # before opening: that wakes some devices
        file = FileIO(path, opener=_open_at_once)
    except FileNotFoundError:
        raise MissingFileError("no such file") from None
    try:
        found = os.fstat(file.fileno())
        _check_regular(found.st_mode)  # it may have been replaced
        if found.st_size == 0:
            raise ClipError("the file is empty (0 bytes)")
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        file.seek(0)
        for pointer, reason in _POINTERS:
            if start.startswith(pointer):
                raise ClipError(reason)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise ClipError("a folder, not a video file")
    kinds = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket"}
    raise ClipError(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a video file")


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe waits for who writes to it; the path may lead to one by now."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none, nor such pipes
