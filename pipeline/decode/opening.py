"""Which files are opened, how, and by which FFmpeg: it is handed the one named file and opens none.

It reads through a Python file, so that the name of the file means nothing to it (no protocol, no
pattern, no option), and no protocol is left to it to open another file or a connection.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import cache
from io import FileIO
from pathlib import Path

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.format import ContainerFormat, formats_available
from av.stream import Disposition
from av.video.stream import VideoStream

from features.disk import FileState, read_state
from features.errors import ClipError

MAX_PIXELS = 64_000_000
"""Of a picture, stored or displayed; one of this size takes 192 MB as RGB."""

_REFUSED_FORMATS = frozenset({"concat", "dash", "dvdvideo", "hls", "imf", "sdp", "vobsub"})
"""They read what other files hold. With them go all that FFmpeg opens by themselves: devices,
numbered pictures, streams of a network."""

_TEXT_CODECS = ("ansi", "bintext", "idf", "xbin")
"""FFmpeg plays a text file as the screen of a terminal."""

_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails

_LFS = "a Git LFS pointer, not the film itself: fetch it with `git lfs pull`"
_WEB_PAGE = "a web page, not a film: the download went wrong"
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/v1", _LFS),
    (b"version https://hawser.github.com/spec/v1", _LFS),
    (b"/annex/objects/", "a git-annex pointer, not the film itself: `git annex get` fetches it"),
    (b"<!doctype html", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b"#extm3u", "a playlist (HLS), not a film: name the film's own file"),
    (b"ffconcat version", "a list of files (concat), not a film: name each film's own file"),
    (b"v=0", "the description of a stream (SDP), not a film: name a recording of it"),
)
"""What a file in a film's place begins with, in small letters, and what is said of it."""


class UnreadableError(ClipError):
    """A file is not to be had, whatever it holds."""


class MissingFileError(UnreadableError):
    """No file has this path."""


class ChangedError(UnreadableError):
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


def open_container(file: FileIO, hwaccel: HWAccel | None = None) -> InputContainer:
    """Let FFmpeg read an open file from its start; it is closed by whoever opened it.

    Raises:
        FFmpegError: it is none that FFmpeg reads.
        RuntimeError, NotImplementedError: the hardware cannot be used.
    """
    file.seek(0)
    return av.open(
        _Content(file),
        mode="r",
        options={"max_pixels": str(MAX_PIXELS)},  # of the decoders that guess what streams hold
        container_options={
            "protocol_whitelist": "none",
            "format_whitelist": ",".join(_list_formats()),
        },
        hwaccel=hwaccel,
    )


def find_film(container: InputContainer) -> VideoStream:
    """The video stream to decode: the first that is marked default, else the first.

    Cover pictures and thumbnails are passed over.

    Raises:
        ClipError: there is none, none that can be decoded, or its pictures are too large.
    """
    films = [s for s in container.streams.video if not s.disposition & _NO_FILM]
    if not films:
        found = ", ".join(sorted({s.type for s in container.streams} - {"video"}))
        raise ClipError("no video stream in the file" + (f", only {found}" if found else ""))
    film = next((s for s in films if s.disposition & Disposition.default), films[0])
    # PyAV gives no codec context where FFmpeg has no decoder, whatever its annotations say.
    context = film.codec_context
    if context is None:
        raise ClipError("its video is damaged, or of a codec that cannot be decoded")
    if context.name in _TEXT_CODECS:
        raise ClipError("not a video: the file is text")
    check_size(context.width, context.height)
    context.options = {"max_pixels": str(MAX_PIXELS)}  # of pictures that grow on the way
    return film


def check_size(width: int, height: int) -> None:
    """Raise ClipError where a picture has more pixels than are decoded."""
    if width * height > MAX_PIXELS:
        raise ClipError(
            f"its pictures are too large: {width} x {height} pixels, more than "
            f"{MAX_PIXELS // 10**6} megapixels"
        )


def check_decoded_size(stream: VideoStream) -> None:
    """Raise ClipError where a stream's last pictures were too large to be decoded.

    FFmpeg says then only that they are damaged, and gives their size, or none.
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    check_size(width, height)
    if width * height == 0:
        limit = MAX_PIXELS // 10**6
        raise ClipError(f"its pictures are damaged, or have more than {limit} megapixels")


def decoder_version() -> str:
    """Name and version of the decoder, for the fingerprint.

    The same wherever a clip is decoded: a GPU decodes only codecs whose standards say every bit of
    a frame (``pipeline.decode.nvdec``), and ``pipeline.decode.yuv`` makes of it the RGB that
    software does.
    """
    libavcodec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return f"PyAV {av.__version__}, libavcodec {libavcodec}"


def _check_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise ClipError("a folder, not a video file")
    kinds = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket"}
    raise ClipError(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a video file")


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe waits for who writes to it; the path may lead to one by now."""
    return os.open(path, flags | os.O_NONBLOCK)


class _Content:
    """An open file for FFmpeg: to be read and sought in. Its name is only a hint at its format."""

    def __init__(self, file: FileIO) -> None:
        self.name = "film" + Path(os.fsdecode(file.name)).suffix
        self.read: Callable[[int], bytes | None] = file.read
        self.seek: Callable[[int, int], int] = file.seek
        self.tell: Callable[[], int] = file.tell


@cache
def _list_formats() -> tuple[str, ...]:
    """Names of the formats that FFmpeg may read: those of one file that holds the film itself."""
    names = set()
    for name in formats_available:
        try:
            found = ContainerFormat(name, "r")
        except ValueError:  # it can only be written
            continue
        if not found.no_file and _REFUSED_FORMATS.isdisjoint(found.name.split(",")):
            names.add(found.name)
    return tuple(sorted(names))
