"""Whether a file is truncated, or holds a second film, by the sizes that its structure states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

_N_ELEMENTS = 1_000_000
"""A file with more parts than this is not read through."""
_HEADER_BYTES = 24
"""Of a part: the length of each stands within them."""
_FLV_TAGS = (8, 9, 18)
_FLV_TAG_HEADER = 11
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")

_Measure = Callable[[bytes, int], int | None]
"""The first bytes of a part, and the bytes from there to the file's end -> its length, if told."""


def is_whole(path: Path, container: str) -> bool:
    """Whether a file ends where its container says, and not in the middle of something.

    Args:
        path: The file.
        container: FFmpeg's names of the container, separated by commas.

    Returns:
        False also where such a container does not tell.
    """
    for name, measure in _MEASURES.items():
        if name in container.split(","):
            end = 0
            for at, _, length in _iter_parts(path, measure):
                end = at + length if length else 0
            return end == path.stat().st_size
    return container == "flv" and _ends_with_flv_tag(path)


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
        boxes = [(at, header[4:8]) for at, header, _ in _iter_parts(path, _measure_box)]
        index = [at for at, kind in boxes if kind == b"moov"]
        # Fragments stand for themselves: those behind a second index are read, too.
        kinds = [kind for _, kind in boxes]
        if len(index) < 2 or kinds.count(b"mdat") < 2 or b"moof" in kinds:
            return None
        return next((at for at, kind in boxes if kind == b"ftyp" and at), index[1])
    for name, measure, start in (("asf", _measure_asf, _ASF_HEADER), ("flv", _measure_flv, b"FLV")):
        if name in names:
            parts = _iter_parts(path, measure)
            return next((at for at, head, _ in parts if at and head.startswith(start)), None)
    return None


def _iter_parts(path: Path, measure: _Measure) -> Iterator[tuple[int, bytes, int | None]]:
    """Where each part of a file begins, its first bytes and its length, one after the other.

    Ends with the first part whose length is not told, or leads to the file's end or beyond: a
    length of 64 bits may be more than any file has.
    """
    n_bytes = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        for _ in range(_N_ELEMENTS):
            file.seek(at)
            header = file.read(_HEADER_BYTES)
            length = measure(header, n_bytes - at)
            yield at, header, length
            if not length or at + length >= n_bytes:
                return
            at += length


def _measure_box(header: bytes, n_left: int) -> int | None:
    """Bytes of a box of MP4 or QuickTime (ISO 14496-12, 4.2)."""
    if len(header) < 8:
        return None
    length, least = int.from_bytes(header[:4], "big"), 8
    if length == 0:  # up to the file's end
        return n_left
    if length == 1:  # the length follows in 64 bits
        length, least = int.from_bytes(header[8:16], "big"), 16
    return length if length >= least else None


def _measure_ebml(header: bytes, _: int) -> int | None:
    """Bytes of an element of Matroska (RFC 8794, 4); None where its end is left open."""
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


def _measure_riff(header: bytes, _: int) -> int | None:
    """Bytes of a RIFF chunk of AVI; more of them follow in files above 1 GB."""
    length = int.from_bytes(header[4:8], "little")
    return 8 + length + length % 2 if header[:4] == b"RIFF" and length else None


def _measure_asf(header: bytes, _: int) -> int | None:
    """Bytes of an object of ASF, told in 64 bits."""
    length = int.from_bytes(header[16:24], "little")
    return length if length >= 24 else None


def _measure_flv(header: bytes, _: int) -> int | None:
    """Bytes of the header of an FLV file, or of a tag, with the length behind it."""
    if header[:3] == b"FLV":
        return int.from_bytes(header[5:9], "big") + 4
    if len(header) < _FLV_TAG_HEADER or header[0] not in _FLV_TAGS:
        return None
    return _FLV_TAG_HEADER + int.from_bytes(header[1:4], "big") + 4


def _ends_with_flv_tag(path: Path) -> bool:
    """Whether the last number of an FLV file leads back to a tag of just that length."""
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, n_bytes - 4))
        length = int.from_bytes(file.read(4), "big")
        if not _FLV_TAG_HEADER <= length <= n_bytes - 4:
            return False
        file.seek(n_bytes - 4 - length)
        header = file.read(4)
    return header[0] in _FLV_TAGS and int.from_bytes(header[1:], "big") + _FLV_TAG_HEADER == length


_MEASURES: dict[str, _Measure] = {
    "mp4": _measure_box,
    "matroska": _measure_ebml,
    "avi": _measure_riff,
    "asf": _measure_asf,
}
