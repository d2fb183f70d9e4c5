"""Whether a file is whole is told from its structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest

from features.contracts import Clip
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.decode.truncation import find_second_film, is_whole
from tests.pipeline.videos import grey_frames, write_video

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "MP4": ("a.mp4", {}),
    "MP4 with its index first": ("a.mp4", {"container_options": {"movflags": "faststart"}}),
    "MP4 in fragments": ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "Matroska": ("a.mkv", {"audio_s": 1.0}),
    "WebM": ("a.webm", {"codec": "libvpx"}),
    "AVI": ("a.avi", {"codec": "mpeg4"}),
    "ASF": ("a.wmv", {"codec": "wmv2", "options": {"qscale": "2"}}),
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
    ends = find_ends(content, container_name)
    for n_bytes in set(range(1, len(content), 101)) - ends:
        path.write_bytes(content[:n_bytes])
        assert not is_whole(path, container_name), n_bytes


def find_ends(content: bytes, container: str) -> set[int]:
    """Where boxes of an MP4 or objects of ASF end: a file cut off there has whole ones only."""
    ends, at = {0}, 0
    while at < len(content) and ("mp4" in container or container == "asf"):
        if container == "asf":
            at += int.from_bytes(content[at + 16 : at + 24], "little")
        else:
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
    "a box with a long size beyond the file": (
        "mov,mp4",
        b"\0\0\0\1mdat" + (2**64 - 1).to_bytes(8, "big") + b"1234",
        False,
    ),
    "a box with a long size within its header": (
        "mov,mp4",
        b"\0\0\0\1mdat" + (8).to_bytes(8, "big"),
        False,
    ),
    "an object of ASF beyond the file": ("asf", bytes(16) + b"\xff" * 8, False),
    "an element beyond the file": ("matroska,webm", b"\x18\x53\x80\x67\x01" + b"\xfe" * 7, False),
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


def test_a_box_of_five_gigabytes_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\1mdat" + (5 << 30).to_bytes(8, "big"))
    with path.open("r+b") as file:
        file.truncate(5 << 30)  # takes no room on disk
    assert is_whole(path, "mov,mp4")
    assert find_second_film(path, "mov,mp4") is None


SIZES = [0, 15, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def count_frames(path: Path) -> int:
    clip = Clip(clip_id="a", path=path, label="", split="test")
    return sum(1 for _ in iter_chosen_frames(clip, 5))


@pytest.mark.parametrize("size", SIZES)
def test_a_film_is_read_whatever_the_size_of_a_box_behind_it(tmp_path: Path, size: int) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(12))
    with path.open("ab") as file:
        file.write(b"\0\0\0\1free" + size.to_bytes(8, "big"))
    assert count_frames(path) == 12


@pytest.mark.parametrize("size", SIZES)
def test_a_film_is_read_whatever_size_its_boxes_state(tmp_path: Path, size: int) -> None:
    """The samples are found by their offsets: the size of the box around them is not needed."""
    source = write_video(
        tmp_path / "s.mp4", grey_frames(12), container_options={"movflags": "faststart"}
    )
    content = source.read_bytes()
    at = content.index(b"free") - 4  # 8 bytes; with them the box's header has room for 64 bits
    box = b"\0\0\0\1mdat" + size.to_bytes(8, "big")
    path = tmp_path / "a.mp4"
    path.write_bytes(content[:at] + box + content[at + 16 :])
    assert count_frames(path) == 12


@pytest.mark.parametrize("size", SIZES)
def test_a_film_is_read_whatever_size_an_object_of_asf_states(tmp_path: Path, size: int) -> None:
    path = write_video(tmp_path / "a.wmv", grey_frames(12), **KINDS["ASF"][1])
    content = path.read_bytes()
    at = int.from_bytes(content[16:24], "little") + 16  # of the object that holds the film
    path.write_bytes(content[:at] + size.to_bytes(8, "little") + content[at + 8 :])
    assert count_frames(path) == 12
