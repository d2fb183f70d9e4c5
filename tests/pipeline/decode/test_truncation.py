"""Whether a file is whole is told from its structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from pipeline.decode.truncation import is_whole
from tests.videos import grey_frames, write_video

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "MP4": ("a.mp4", {}),
    "MP4 with its index first": ("a.mp4", {"container_options": {"movflags": "faststart"}}),
    "MP4 in fragments": ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "Matroska": ("a.mkv", {"audio_s": 1.0}),
    "WebM": ("a.webm", {"codec": "libvpx"}),
    "AVI": ("a.avi", {"codec": "mpeg4"}),
}


@pytest.mark.parametrize(("name", "how"), KINDS.values(), ids=KINDS)
def test_a_file_is_whole_and_nothing_that_is_cut_off_is(
    tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    path = write_video(tmp_path / name, grey_frames(12), **how)
    with av.open(str(path)) as container:
        container_name = container.format.name
    assert is_whole(path, container_name)
    content = path.read_bytes()
    ends = find_ends(content) if "mp4" in name else set()
    for n_bytes in set(range(1, len(content), 101)) - ends:
        path.write_bytes(content[:n_bytes])
        assert not is_whole(path, container_name), n_bytes


def find_ends(content: bytes) -> set[int]:
    """Where boxes of an MP4 end: a file cut off there has whole boxes only."""
    ends, at = {0}, 0
    while at < len(content):
        at += int.from_bytes(content[at : at + 4], "big")
        ends.add(at)
    return ends


def test_an_flv_is_whole_where_a_tag_ends(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.flv", grey_frames(12), codec="flv")
    content = path.read_bytes()
    ends, at = set(), 13  # its header, and the length of the tag before the first
    while at < len(content):
        at += 11 + int.from_bytes(content[at + 1 : at + 4], "big") + 4
        ends.add(at)
    assert at == len(content)
    for n_bytes in range(1, len(content) + 1):
        path.write_bytes(content[:n_bytes])
        assert is_whole(path, "flv") == (n_bytes in ends), n_bytes


BYTES: dict[str, tuple[str, bytes, bool]] = {
    "a box up to the file's end": ("mov,mp4", b"\0\0\0\0mdat123", True),
    "a box with a long size": (
        "mov,mp4",
        b"\0\0\0\1mdat" + (20).to_bytes(8, "big") + b"1234",
        True,
    ),
    "a box smaller than its header": ("mov,mp4", b"\0\0\0\3mdat", False),
    "a segment without an end": ("matroska,webm", b"\x18\x53\x80\x67\xff12345", False),
    "an element with a wrong number": ("matroska,webm", b"\0\0\0\0", False),
    "a RIFF of no length": ("avi", b"RIFF\0\0\0\0AVI ", False),
    "a container that does not tell": ("mpegts", b"G" * 188, False),
    "nothing": ("flv", b"", False),
}


@pytest.mark.parametrize(("container", "content", "whole"), BYTES.values(), ids=BYTES)
def test_is_it_whole(tmp_path: Path, container: str, content: bytes, whole: bool) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert is_whole(path, container) == whole
