"""Only the named file is opened, whatever its name and content say, and none is waited for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import av.error
import pytest

import pipeline.decode.opening
from features.contracts import Clip
from features.errors import ClipError
from pipeline.decode.opening import open_container
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.inputs import Inputs
from tests.pipeline.videos import frame_number, grey_frames, write_video


def make_clip(path: Path) -> Clip:
    return Clip(clip_id="a", path=path, label="", split="test")


def chosen_numbers(path: Path) -> list[int]:
    return [frame_number(frame.rgb.numpy()) for frame in iter_chosen_frames(make_clip(path), 1)]


def why_not(path: Path) -> str:
    """The reason, which must come at once, and be the same for hashing."""
    reasons: list[str] = []

    def try_it(read: Callable[[], object]) -> None:
        with pytest.raises(ClipError) as error:
            read()
        reasons.append(str(error.value))

    for read in (lambda: chosen_numbers(path), lambda: Inputs(Path("none")).look_up(path)):
        attempt = threading.Thread(target=try_it, args=(read,), daemon=True)
        attempt.start()
        attempt.join(timeout=20)
    assert len(set(reasons)) == 1
    assert len(reasons) == 2
    return reasons[0]


NAMES = (
    "2021-05-03T12:30:05.mp4", "http:/127.0.0.1/a.mp4", "file:a.mp4", "pipe:0",
    "concat:a.mp4|b.mp4", "subfile,,start,0,end,9,,:a.mp4", "data:a,b.mp4", "%03d.mp4", "%03d.gif",
    "a*?[b].mp4", "-i.mp4", "-", "a\nb.mp4", " .mp4", "a#b?c=d&e.mp4", "a\\b.mp4",
    "\udcff\udcfe.mp4", "a.\udcff",
)  # fmt: skip
"""Each is a protocol, a pattern or an option to FFmpeg, or no UTF-8."""


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_may_have_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    kind = {"codec": "gif", "pix_fmt": "rgb8"} if name.endswith("gif") else {}
    written = write_video(tmp_path / ("a.gif" if kind else "a.mp4"), grey_frames(11), **kind)  # type: ignore[arg-type]
    written.rename(name)
    assert chosen_numbers(Path(name)) == [0, 5, 10]


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unbound:
        unbound.bind(os.path.relpath(path))


LFS_POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 283904
"""
NO_FILMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "a pipe (FIFO), not a video file"),
    "a link to a pipe": (link_to_pipe, "a pipe (FIFO), not a video file"),
    "a socket": (make_socket, "a socket, not a video file"),
    "a link to an endless device": (link("/dev/zero"), "a device, not a video file"),
    "a link to a folder": (link("."), "a folder, not a video file"),
    "a link that leads nowhere": (link("nowhere"), "no such file"),
    "a pointer of Git LFS": (lambda path: path.write_bytes(LFS_POINTER), "`git lfs pull`"),
    "a pointer of git-annex": (
        lambda path: path.write_bytes(b"/annex/objects/SHA256E-s283904--4d7a2146.mp4\n"),
        "`git annex get`",
    ),
    "a page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html>\n<html>"), "a web page"),
}


@pytest.mark.parametrize(("make", "reason"), NO_FILMS.values(), ids=NO_FILMS)
def test_what_is_no_film_is_said_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.mp4")
    assert reason in why_not(tmp_path / "a.mp4")


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(2))
    really_open = pipeline.decode.opening._open_at_once

    def replace_and_open(name: str, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return really_open(name, flags)

    monkeypatch.setattr(pipeline.decode.opening, "_open_at_once", replace_and_open)
    with pytest.raises(ClipError, match="a pipe"):
        chosen_numbers(path)


SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
POINTERS: dict[str, tuple[str, str, str]] = {
    "a playlist that names a file": (
        "a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nnear.ts\n", "a playlist",
    ),
    "a playlist that names an address": (
        "a.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://{host}/a.ts\n", "a playlist",
    ),
    "a list of files": ("a.mp4", "ffconcat version 1.0\nfile near.ts\n", "a list of files"),
    "a list of addresses": (
        "a.mp4", "ffconcat version 1.0\nfile 'http://{host}/a.ts'\n", "a list of files",
    ),
    "the description of a stream": ("a.sdp", SDP, "the description of a stream"),
    "the index of subtitle pictures": ("near.idx", "# VobSub index file, v7\n", "not a video"),
}  # fmt: skip


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "were its format not refused"])
@pytest.mark.parametrize(("name", "content", "reason"), POINTERS.values(), ids=POINTERS)
def test_nothing_else_is_opened_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    reason: str,
    refused: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    near = write_video(tmp_path / "near.ts", grey_frames(10))
    near.with_suffix(".sub").write_bytes(near.read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = ":".join(map(str, server.getsockname()))
        path = tmp_path / name
        path.write_text(content.format(host=host))
        if refused:
            with pytest.raises(ClipError, match=reason):
                chosen_numbers(path)
        else:
            monkeypatch.setattr(pipeline.decode.opening, "_REFUSED_FORMATS", frozenset())
            pipeline.decode.opening._list_formats.cache_clear()
            with path.open("rb", buffering=0) as file, pytest.raises(av.error.FFmpegError):
                open_container(file)
            pipeline.decode.opening._list_formats.cache_clear()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def write_gif_header(path: Path, width: int, height: int) -> Path:
    """One pixel of a screen of this size; the decoder would fill all of it."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    screen = b"GIF89a" + size + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    picture = b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    path.write_bytes(screen + picture + b"\x3b")
    return path


def test_a_huge_picture_is_said_before_there_is_memory_for_it(tmp_path: Path) -> None:
    assert chosen_numbers(write_gif_header(tmp_path / "small.gif", 64, 48)) == [0]
    with pytest.raises(ClipError, match="more than 64 megapixels"):
        chosen_numbers(write_gif_header(tmp_path / "a.gif", 16000, 16000))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.ts", {}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ],
)
def test_pictures_over_the_limit_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: dict[str, str]
) -> None:
    monkeypatch.setattr(pipeline.decode.opening, "MAX_PIXELS", 64 * 48)
    small = write_video(tmp_path / f"small-{name}", grey_frames(6), **how)  # type: ignore[arg-type]
    assert chosen_numbers(small) == [0, 5]
    large = write_video(tmp_path / name, grey_frames(6, 66, 48), **how)  # type: ignore[arg-type]
    with pytest.raises(ClipError, match="megapixels"):
        chosen_numbers(large)


def test_pictures_that_grow_over_the_limit_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((64, 48), (128, 96))
    parts = [write_video(tmp_path / f"{w}.h264", grey_frames(10, w, h)) for w, h in sizes]
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert chosen_numbers(path) == [0, 5, 0, 5]
    monkeypatch.setattr(pipeline.decode.opening, "MAX_PIXELS", 64 * 48)
    with pytest.raises(ClipError, match="too large: 128 x 96"):
        chosen_numbers(path)
