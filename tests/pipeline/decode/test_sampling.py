"""The frames on screen at the ticks of the clock are found in any video, or it is said why not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

import pipeline.decode.opening
from features.contracts import Clip
from features.errors import ClipError
from pipeline.decode.opening import decoder_version, open_file
from pipeline.decode.sampling import DecodedFrame, Software, iter_chosen_frames
from tests.pipeline.videos import (
    ONE_THREAD,
    frame_number,
    grey_frames,
    keep_first,
    turn_display,
    write_colours,
    write_sound,
    write_video,
)


def make_clip(path: Path, **part: float) -> Clip:
    return Clip(clip_id="a", path=path, label="", split="test", **part)  # type: ignore[arg-type]


def choose(path: Path, n_phases: int = 1, **part: float) -> list[DecodedFrame]:
    return list(iter_chosen_frames(make_clip(path, **part), n_phases))


def chosen_numbers(path: Path, n_phases: int = 1, **part: float) -> list[int]:
    """The number of the frame at each tick."""
    frames = choose(path, n_phases, **part)
    return [frame_number(frame.rgb.numpy()) for frame in frames for _ in frame.record.phases]


def why_not(path: Path, **part: float) -> str:
    with pytest.raises(ClipError) as error:
        choose(path, **part)
    return str(error.value)


def noisy_frames(n_frames: int) -> list[NDArray[np.uint8]]:
    """Frames that do not compress, so that a share of the file is a share of the time."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(n_frames)]


CLOCKS: dict[str, tuple[float, int, int, list[int]]] = {
    "one phase of 25 fps takes every fifth frame": (25, 12, 1, [0, 5, 10]),
    "five phases of 25 fps take every frame": (25, 12, 5, list(range(12))),
    "two phases of 25 fps take the frame that is on screen": (25, 12, 2, [0, 2, 5, 7, 10]),
    "30000/1001 fps takes the frame that is on screen": (30000 / 1001, 20, 1, [0, 5, 11, 17]),
    "2 fps repeats frames": (2, 3, 1, [0, 0, 0, 1, 1, 2, 2, 2]),
    "one frame alone fills its time": (2, 1, 1, [0, 0, 0]),
    "a frame shorter than a tick is enough": (25, 1, 1, [0]),
}


@pytest.mark.parametrize(("fps", "n_frames", "n_phases", "expected"), CLOCKS.values(), ids=CLOCKS)
def test_of_a_constant_rate(
    tmp_path: Path, fps: float, n_frames: int, n_phases: int, expected: list[int]
) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(n_frames), fps=fps)
    assert chosen_numbers(path, n_phases) == expected


def test_phases_go_round_with_the_ticks(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(5), fps=10)
    frames = choose(path, 3)  # a tick every 1/15 s
    assert [frame.record.phases for frame in frames] == [(0, 1), (2,), (0, 1), (2,), (0, 1)]
    assert [frame.record.pts_s for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {frame.record.decoder for frame in frames} == {"software:h264"}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_of_a_variable_rate_the_frame_on_screen_is_taken(tmp_path: Path, name: str) -> None:
    times_s = [0.0, 0.15, 0.3, 0.31, 0.39, 1.0, 1.04]
    path = write_video(tmp_path / name, grey_frames(7), times_s=times_s)
    frames = choose(path)
    ticks_s = np.arange(6) / 5
    expected = [int(np.searchsorted(times_s, tick, side="right")) - 1 for tick in ticks_s]
    assert chosen_numbers(path)[:6] == expected == [0, 1, 4, 4, 4, 5]
    assert [frame.record.phases for frame in frames][:3] == [(0,), (0,), (0, 0, 0)]


def test_a_clip_starts_at_its_first_frame_whenever_that_is(tmp_path: Path) -> None:
    times_s = [7 + i / 25 for i in range(11)]
    path = write_video(tmp_path / "a.mkv", grey_frames(11), times_s=times_s)
    assert chosen_numbers(path) == [0, 5, 10]
    assert chosen_numbers(path, start_s=0.24) == [6]


PARTS: dict[str, tuple[dict[str, float], list[int]]] = {
    "from 0.2 s on": ({"start_s": 0.2}, [5, 10, 15, 20]),
    "from between two frames": ({"start_s": 0.5}, [12, 17, 22]),
    "up to 0.4 s, which is not in it": ({"end_s": 0.4}, [0, 5]),
    "0.52 s up to 0.8 s": ({"start_s": 0.52, "end_s": 0.8}, [13, 18]),
    "up to beyond the end": ({"start_s": 0.8, "end_s": 9}, [20]),
    "less than a frame": ({"start_s": 0.81, "end_s": 0.82}, [20]),
    "from 0": ({"start_s": 0.0, "end_s": 0.01}, [0]),
}


@pytest.mark.parametrize(("part", "expected"), PARTS.values(), ids=PARTS)
def test_of_a_part(tmp_path: Path, part: dict[str, float], expected: list[int]) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(25))
    assert chosen_numbers(path, **part) == expected


def test_times_of_a_part_count_from_its_start(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(25))
    frames = choose(path, start_s=0.5)
    assert [frame.record.pts_s for frame in frames] == pytest.approx([-0.02, 0.18, 0.38])


OPEN_GOP = {"preset": "medium", "qp": "4", "g": "10", "bf": "4", "x264-params": "open-gop=1"}
HEVC_OPEN_GOP = {
    "x265-params": f"{ONE_THREAD}:qp=4:keyint=10:bframes=4:open-gop=1",
}
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "H.264 in mp4": ("a.mp4", {}, "h264"),
    "H.264 with frames out of order in mp4": ("a.mp4", {"options": OPEN_GOP}, "h264"),
    "H.264 with frames out of order in mkv": ("a.mkv", {"options": OPEN_GOP}, "h264"),
    "H.264 with frames out of order in avi": ("a.avi", {"options": OPEN_GOP}, "h264"),
    "H.264 with frames out of order in MPEG-TS": ("a.ts", {"options": OPEN_GOP}, "h264"),
    "H.264 with one key frame in MPEG-TS": ("a.ts", {}, "h264"),
    "H.264 alone": ("a.h264", {}, "h264"),
    "HEVC": ("a.mp4", {"codec": "libx265", "options": HEVC_OPEN_GOP}, "hevc"),
    "HEVC of 10 bits": ("a.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}, "hevc"),
    "VP9": ("a.webm", {"codec": "libvpx-vp9"}, "vp9"),
    "GIF": ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}, "gif"),
    "MPEG-4 in mp4": ("a.mp4", {"codec": "mpeg4"}, "mpeg4"),
    "MPEG-4 with frames out of order in avi": (
        "a.avi",
        {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "2", "bf": "2"}},
        "mpeg4",
    ),
    "Motion JPEG in avi": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "mjpeg"),
    "FFV1": ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuv444p"}, "ffv1"),
}


@pytest.mark.parametrize(("name", "how", "decoder"), KINDS.values(), ids=KINDS)
def test_frames_are_right_of(tmp_path: Path, name: str, how: dict[str, Any], decoder: str) -> None:
    path = write_video(tmp_path / name, grey_frames(50), **how)
    frames = choose(path)
    assert [frame_number(frame.rgb.numpy()) for frame in frames] == list(range(0, 50, 5))
    assert frames[0].record.decoder == f"software:{decoder}"
    assert frames[0].rgb.shape == (48, 64, 3)
    assert frames[0].rgb.dtype == torch.uint8


@pytest.mark.parametrize(("name", "how", "decoder"), KINDS.values(), ids=KINDS)
def test_parts_are_found_by_seeking_in(
    tmp_path: Path, name: str, how: dict[str, Any], decoder: str
) -> None:
    path = write_video(tmp_path / name, grey_frames(50), **how)
    for start in (14, 29, 48):
        found = chosen_numbers(path, 5, start_s=start / 25, end_s=(start + 2) / 25)
        assert found == [start, start + 1]


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.flv"])
def test_seeking_copes_with_key_frames_stamped_later_than_they_are_stored(
    tmp_path: Path, name: str
) -> None:
    path = write_video(tmp_path / name, grey_frames(40), fps=2, options=OPEN_GOP)
    for start_s in np.arange(1.05, 19.5, 1.3):
        assert chosen_numbers(path, start_s=start_s, end_s=start_s + 0.1) == [int(start_s * 2)]


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "name", "size"),
    [
        ("rgb8", "gif", "a.gif", (321, 241)),
        ("yuv444p", "libx264", "a.mp4", (321, 241)),
        ("yuv420p", "mpeg4", "a.avi", (33, 17)),
    ],
)
def test_odd_sizes_stay(
    tmp_path: Path, pix_fmt: str, codec: str, name: str, size: tuple[int, int]
) -> None:
    path = write_video(tmp_path / name, grey_frames(6, *size), codec=codec, pix_fmt=pix_fmt)
    frames = choose(path)
    assert [frame.rgb.shape for frame in frames] == [(size[1], size[0], 3)] * 2
    assert [frame_number(frame.rgb.numpy()) for frame in frames] == [0, 5]
    rgb = frames[1].rgb.numpy()
    for edge in (rgb[-1], rgb[:, -1]):
        assert edge.mean() == pytest.approx(rgb.mean(), abs=6)


TURNS: dict[str, tuple[tuple[int, int, int, int], tuple[int, int], tuple[int, int, int]]] = {
    "as stored": ((1, 0, 0, 1), (0, 0), (48, 64, 3)),
    "turned clockwise by 90 degrees": ((0, 1, -1, 0), (0, -1), (64, 48, 3)),
    "turned by 180 degrees": ((-1, 0, 0, -1), (-1, -1), (48, 64, 3)),
    "turned counter-clockwise by 90 degrees": ((0, -1, 1, 0), (-1, 0), (64, 48, 3)),
}


@pytest.mark.parametrize(("matrix", "corner", "shape"), TURNS.values(), ids=TURNS)
def test_a_bright_top_left_corner_is_shown(
    tmp_path: Path,
    matrix: tuple[int, int, int, int],
    corner: tuple[int, int],
    shape: tuple[int, int, int],
) -> None:
    frame = np.zeros((48, 64, 3), dtype=np.uint8)
    frame[:16, :16] = 255
    path = write_video(tmp_path / "a.mp4", [frame] * 3)
    turn_display(path, matrix)
    (chosen,) = choose(path)
    corners = chosen.rgb.numpy()[:: shape[0] - 1, :: shape[1] - 1, 0]
    assert chosen.rgb.shape == shape
    assert chosen.rgb.is_contiguous()
    assert corners[corner] > 240
    assert (corners > 240).sum() == 1


COLOURS = ((200, 40, 60), (30, 180, 70), (20, 60, 220), (250, 250, 250), (128, 100, 200))
MATRICES = {
    "BT.709": (1, 0.2126, 0.0722),
    "BT.601 as in PAL": (5, 0.299, 0.114),
    "BT.601 as in NTSC": (6, 0.299, 0.114),
    "BT.2020": (9, 0.2627, 0.0593),
    "no tag, taken for BT.601": (2, 0.299, 0.114),
}


def to_ycbcr(rgb: tuple[int, ...], kr: float, kb: float, full: bool) -> tuple[int, int, int]:
    """ITU-T H.273, 8.3, for 8 bits."""
    r, g, b = (level / 255 for level in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    if full:
        return round(255 * y), round(255 * cb + 128), round(255 * cr + 128)
    return round(219 * y + 16), round(224 * cb + 128), round(224 * cr + 128)


@pytest.mark.parametrize("color_range", [0, 1, 2], ids=["untagged range", "limited", "full"])
@pytest.mark.parametrize(("colorspace", "kr", "kb"), MATRICES.values(), ids=MATRICES)
def test_colours_are_right_under(
    tmp_path: Path, colorspace: int, kr: float, kb: float, color_range: int
) -> None:
    stored = [to_ycbcr(rgb, kr, kb, full=color_range == 2) for rgb in COLOURS]
    path = tmp_path / "a.mp4"
    write_colours(path, stored, colorspace=colorspace, color_range=color_range)
    found = np.array([frame.rgb.numpy().mean(axis=(0, 1)) for frame in choose(path)])
    np.testing.assert_allclose(found, COLOURS, atol=4)


def write_text(path: Path) -> Path:
    path.write_text("This was to be a film.\n" * 40)
    return path


def write_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


UNUSABLE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a missing file": ("a.mp4", lambda path: None, "no such file"),
    "a folder": ("a.mp4", lambda path: path.mkdir(), "a folder, not a video"),
    "an empty file": ("a.mp4", write_bytes(b""), "the file is empty (0 bytes)"),
    "text": ("a.mp4", write_text, "not a video, or damaged"),
    "text that FFmpeg plays as a terminal": ("a.txt", write_text, "not a video: the file is text"),
    "zeros": ("a.mp4", write_bytes(bytes(5000)), "not a video, or damaged"),
    "sound in mp4": ("a.m4a", write_sound, "no video stream in the file, only audio"),
    "sound in mkv": ("a.mkv", write_sound, "no video stream in the file, only audio"),
    "sound in wav": (
        "a.wav",
        lambda path: write_sound(path, codec="pcm_s16le"),
        "no video stream in the file, only audio",
    ),
    "sound with a cover picture": (
        "a.mp4",
        lambda path: write_sound(path, cover=True),
        "no video stream in the file, only audio",
    ),
}


@pytest.mark.parametrize(("name", "write", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_the_reason_is_said_for(
    tmp_path: Path, name: str, write: Callable[[Path], object], reason: str
) -> None:
    write(tmp_path / name)
    assert reason in why_not(tmp_path / name)


FAST_START = {"container_options": {"movflags": "faststart"}}
TRUNCATED: dict[str, tuple[str, dict[str, Any], float]] = {
    "an mp4 at its last frame": ("a.mp4", FAST_START, 0.99),
    "an mp4 half way": ("a.mp4", FAST_START, 0.5),
    "an mp4 with sound half way": ("a.mp4", FAST_START | {"audio_s": 2.0}, 0.5),
    "an mkv half way": ("a.mkv", {}, 0.5),
    "an mkv with sound half way": ("a.mkv", {"audio_s": 2.0}, 0.5),
    "a webm half way": ("a.webm", {"codec": "libvpx-vp9"}, 0.5),
    "an avi half way": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, 0.5),
    "an flv half way": ("a.flv", {}, 0.5),
}


@pytest.mark.parametrize(("name", "how", "share"), TRUNCATED.values(), ids=TRUNCATED)
def test_a_file_that_breaks_off_is_said_after_the_frames_before_it(
    tmp_path: Path, name: str, how: dict[str, Any], share: float
) -> None:
    path = write_video(tmp_path / name, noisy_frames(50), **how)
    assert len(choose(path)) == 10
    keep_first(path, share)
    frames = iter_chosen_frames(make_clip(path), 1)
    assert next(frames).record.pts_s == 0
    with pytest.raises(ClipError, match="breaks off"):
        list(frames)


def test_an_mp4_without_its_index_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = keep_first(write_video(tmp_path / "a.mp4", noisy_frames(10)), 0.7)
    assert "not a video, or damaged" in why_not(path)


def test_an_mp4_cut_off_in_its_header_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(10), **FAST_START)
    for share in np.linspace(0.001, 0.3, 12):
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert any(word in why_not(cut) for word in ("damaged", "no video stream", "breaks off"))


def test_a_part_before_the_damage_can_be_used(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(50), **FAST_START)
    keep_first(path, 0.6)
    assert len(choose(path, end_s=0.8)) == 4


def test_a_recording_that_begins_between_key_frames_starts_at_the_first_one(
    tmp_path: Path,
) -> None:
    frames = [np.maximum(frame, noise // 16) for frame, noise in zip(
        grey_frames(50), noisy_frames(50), strict=True)]  # fmt: skip
    options = {"preset": "ultrafast", "qp": "4", "g": "10", "x264-params": "scenecut=0"}
    path = write_video(tmp_path / "a.ts", frames, options=options)
    n_packets = len(path.read_bytes()) // 188
    path.write_bytes(path.read_bytes()[188 * (n_packets // 4) :])
    numbers = chosen_numbers(path)
    assert numbers == list(range(numbers[0], 50, 5))
    assert numbers[0] % 10 in range(3)  # the noise brightens the dark frames a little


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv", "a.avi", "a.gif"])
@pytest.mark.parametrize("start_s", [1.0, 1.3, 50.0])
def test_a_start_beyond_the_end_is_said(tmp_path: Path, name: str, start_s: float) -> None:
    how = {"codec": "gif", "pix_fmt": "rgb8"} if name.endswith("gif") else {}
    path = write_video(tmp_path / name, grey_frames(25), **how)
    expected = rf"no frame can be decoded from {start_s:g} s on: the file ends at 1.\d\d s"
    with pytest.raises(ClipError, match=expected):
        choose(path, start_s=start_s)


def test_frames_that_no_tick_needs_are_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = []
    read_rgb = Software.read_rgb

    def counted(self: Software, frame: VideoFrame, stream: VideoStream) -> torch.Tensor:
        converted.append(frame.pts)
        return read_rgb(self, frame, stream)

    monkeypatch.setattr(Software, "read_rgb", counted)
    path = write_video(tmp_path / "a.mp4", grey_frames(50))
    assert len(choose(path, start_s=0.8, end_s=1.4)) == 3
    assert len(converted) == 3


def test_a_file_is_read_as_its_frames_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mkv", noisy_frames(50) * 6, codec="mjpeg", pix_fmt="yuvj444p")
    opened = []
    monkeypatch.setattr(
        pipeline.decode.opening,
        "open_file",
        lambda path: opened.append(open_file(path)) or opened[-1],
    )
    frames = iter_chosen_frames(make_clip(path), 1)
    positions = [opened[0].tell() for _ in itertools.islice(frames, 60)]
    size = path.stat().st_size
    assert positions[0] < 0.2 * size
    assert positions[30] < 0.8 * size


def test_leaving_early_closes_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", grey_frames(25))
    frames = iter_chosen_frames(make_clip(path), 1)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert str(path) not in [str(link.resolve()) for link in Path("/proc/self/fd").glob("*")]


def test_the_decoder_version_names_its_libraries() -> None:
    assert decoder_version().startswith(f"PyAV {av.__version__}, libavcodec ")
