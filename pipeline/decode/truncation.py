"""Whether a file is there as far as its container says, told from the sizes in its structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_N_ELEMENTS = 1_000_000
"""A file with more parts than this is not looked through."""
_FLV_TAGS = (8, 9, 18)
_FLV_TAG_HEADER = 11
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def is_whole(path: Path, container: str) -> bool:
    """Whether a file ends where its container says, and not in the middle of something.

    Args:
        path: The file.
        container: FFmpeg's names of the container, separated by commas.

    Returns:
        False also where such a container does not tell.
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        for name, measure in _MEASURES.items():
            if name in container.split(","):
                return _is_filled(file, n_bytes, measure)
        return container == "flv" and _ends_with_flv_tag(file, n_bytes)


def find_second_film(path: Path, container: str) -> int | None:
    """Where a second film begins in a file of which FFmpeg reads only the first.

    Recordings of most containers may be joined end to end; those of MP4, FLV and ASF (WMV) tell
    FFmpeg how much there is, or where it is, and what follows is passed over without a word.

    Args:
        path: The file.
        container: FFmpeg's names of the container, separated by commas.

    Returns:
        Its first byte; None where there is none.
    """
    names = container.split(",")
    if "mp4" in names:
        starts = _iter_starts(path, _measure_box)
        boxes = [(at, header[4:8]) for at, header in starts]
        index = [at for at, kind in boxes if kind == b"moov"]
        # Fragments stand for themselves: those behind a second index are read, too.
        kinds = [kind for _, kind in boxes]
        if len(index) < 2 or kinds.count(b"mdat") < 2 or b"moof" in kinds:
            return None
        return next((at for at, kind in boxes if kind == b"ftyp" and at), index[1])
    if "asf" in names:
        starts = _iter_starts(path, _measure_asf)
        return next((at for at, header in starts if at and header[:16] == _ASF_HEADER), None)
    if "flv" in names:
        starts = _iter_starts(path, _measure_flv)
        return next((at for at, header in starts if at and header[:3] == b"FLV"), None)
    return None


def _iter_starts(
    path: Path, measure: Callable[[BinaryIO, int], int | None]
) -> Iterator[tuple[int, bytes]]:
    """Where each part of a file begins, and its first bytes, as far as their lengths lead."""
    n_bytes = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        for _ in range(_N_ELEMENTS):
            file.seek(at)
            header = file.read(16)
            if not header:
                return
            yield at, header
            file.seek(at)
            length = measure(file, n_bytes - at)
            if not length:
                return
            at += length


def _is_filled(
    file: BinaryIO, n_bytes: int, measure: Callable[[BinaryIO, int], int | None]
) -> bool:
    """Whether the parts of a file, one after the other, are as long as the file."""
    at = 0
    for _ in range(_N_ELEMENTS):
        if at >= n_bytes:
            return at == n_bytes
        file.seek(at)
        length = measure(file, n_bytes - at)
        if not length:
            return False
        at += length
    return False


def _measure_box(file: BinaryIO, n_left: int) -> int | None:
    """Bytes of a box of MP4 or QuickTime (ISO 14496-12, 4.2)."""
    header = file.read(16)
    if len(header) < 8:
        return None
    length = int.from_bytes(header[:4], "big")
    if length == 0:  # up to the file's end
        return n_left
    if length == 1:
        length = int.from_bytes(header[8:], "big")
    return length if length >= 8 else None


def _measure_ebml(file: BinaryIO, n_left: int) -> int | None:
    """Bytes of an element of Matroska (RFC 8794, 4); None where its end is left open."""
    header = file.read(12)
    n_id = _count_bytes(header[:1], most=4)
    n_size = _count_bytes(header[n_id : n_id + 1], most=8)
    if not n_id or not n_size:
        return None
    size = int.from_bytes(header[n_id : n_id + n_size], "big") & ((1 << 7 * n_size) - 1)
    is_open = size == (1 << 7 * n_size) - 1
    return None if is_open else n_id + n_size + size


def _count_bytes(first: bytes, *, most: int) -> int:
    """Bytes of a number of Matroska, told by the zeros that the first begins with; 0: none is."""
    n_bytes = 9 - first[0].bit_length() if first else 0
    return n_bytes if n_bytes <= most else 0


def _measure_riff(file: BinaryIO, n_left: int) -> int | None:
    """Bytes of a RIFF chunk of AVI; more of them follow in files above 1 GB."""
    header = file.read(8)
    length = int.from_bytes(header[4:], "little")
    return 8 + length + length % 2 if header[:4] == b"RIFF" and length else None


def _measure_asf(file: BinaryIO, n_left: int) -> int | None:
    """Bytes of an object of ASF."""
    length = int.from_bytes(file.read(24)[16:], "little")
    return length if length >= 24 else None


def _measure_flv(file: BinaryIO, n_left: int) -> int | None:
    """Bytes of the header of an FLV file, or of a tag, with the length behind it."""
    header = file.read(_FLV_TAG_HEADER)
    if header[:3] == b"FLV":
        return int.from_bytes(header[5:9], "big") + 4
    if len(header) < _FLV_TAG_HEADER or header[0] not in _FLV_TAGS:
        return None
    return _FLV_TAG_HEADER + int.from_bytes(header[1:4], "big") + 4


def _ends_with_flv_tag(file: BinaryIO, n_bytes: int) -> bool:
    """Whether the last number of an FLV file leads back to a tag of just that length."""
    file.seek(max(0, n_bytes - 4))
    length = int.from_bytes(file.read(4), "big")
    if not _FLV_TAG_HEADER <= length <= n_bytes - 4:
        return False
    file.seek(n_bytes - 4 - length)
    header = file.read(4)
    return header[0] in _FLV_TAGS and int.from_bytes(header[1:], "big") + _FLV_TAG_HEADER == length


_MEASURES = {"mp4": _measure_box, "matroska": _measure_ebml, "avi": _measure_riff}
