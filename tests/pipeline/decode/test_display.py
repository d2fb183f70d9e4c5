"""Frames are shown as a player shows them: of the right stream, in shape, upright, mirrored."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from av.video.frame import VideoFrame
from numpy.typing import NDArray

import pipeline.decode.opening
from features.contracts import Clip
from features.errors import ClipError
from pipeline.decode.display import _stretch, choose_orientation, keep_first_field, read_orientation
from pipeline.decode.sampling import DecodedFrame, iter_chosen_frames
from tests.pipeline.videos import frame_number, grey_frames, turn_display, write_video

Ratio = tuple[int, int]


def choose(path: Path) -> tuple[list[DecodedFrame], Mapping[str, float]]:
    """The frames of a film, and what was noted."""
    clip = Clip(clip_id="a", path=path, label="", split="test")
    found: list[DecodedFrame] = []

    def gather() -> Mapping[str, float]:
        frames = iter_chosen_frames(clip, 1)
        while True:
            try:
                found.append(next(frames))
            except StopIteration as end:
                return end.value or {}

    return found, gather()


def sizes(path: Path) -> list[tuple[int, int]]:
    """Width and height of each frame."""
    return [(frame.rgb.shape[1], frame.rgb.shape[0]) for frame in choose(path)[0]]


def four_greys() -> NDArray[np.uint8]:
    """64 x 48; dark at the left and the top, so that every turn and flip is told apart."""
    quarters = np.array([[40, 100], [160, 220]], dtype=np.uint8)
    return np.kron(quarters[..., None], np.ones((24, 32, 3), np.uint8))


UPRIGHT = [m for m in itertools.product((-1, 0, 1), repeat=4) if abs(m[0] * m[3] - m[1] * m[2]) == 1
           and sum(map(abs, m)) == 2]  # fmt: skip
"""The eight display matrices a, b, c, d without scale: x, y goes to a x + c y, b x + d y."""


@pytest.mark.parametrize("matrix", UPRIGHT, ids=str)
def test_every_corner_goes_where_the_display_matrix_puts_it(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    path = write_video(tmp_path / "a.mp4", [four_greys()] * 10)
    turn_display(path, matrix)
    (first, _), notes = choose(path)
    a, b, c, d = matrix
    for x, y in itertools.product((-1, 1), repeat=2):
        shown_x, shown_y = a * x + c * y, b * x + d * y
        expected = 40 + 60 * (x > 0) + 120 * (y > 0)
        height, width = first.rgb.shape[:2]
        found = first.rgb[height // 2 + shown_y * height // 4, width // 2 + shown_x * width // 4, 0]
        assert int(found) == pytest.approx(expected, abs=2)
    assert (height, width) == ((48, 64) if a else (64, 48))
    assert first.rgb.is_contiguous()
    assert notes == ({"mirrored_frames": 2} if a * d - b * c < 0 else {})


class FrameOfUnknownData:
    """PyAV raises so where one of the data that come with a frame is of a kind it does not know."""

    def __init__(self, rotation: int) -> None:
        self.rotation = rotation

    @property
    def side_data(self) -> object:
        raise ValueError("31 is not a valid Type")


@pytest.mark.parametrize(
    ("degrees", "matrix"),
    [(0, (1, 0, 0, 1)), (-90, (0, 1, -1, 0)), (90, (0, -1, 1, 0)), (-180, (-1, 0, 0, -1))],
)
def test_the_rotation_alone_counts_where_the_matrix_cannot_be_had(
    degrees: int, matrix: tuple[int, int, int, int]
) -> None:
    a, b, c, d = matrix
    expected = choose_orientation((a, b, 0, c, d, 0, 0, 0, 1))
    assert read_orientation(cast(VideoFrame, FrameOfUnknownData(degrees))) == expected


def write_pixels(path: Path, ratio: Ratio, *, width: int = 64, height: int = 48) -> Path:
    """Two frames, the left half dark, of pixels with this sample aspect ratio."""
    frame = np.full((height, width, 3), 200, dtype=np.uint8)
    frame[:, : width // 2] = 50
    return write_video(path, [frame] * 2, fps=5, pixel_ratio=Fraction(*ratio))


SHAPES: dict[str, tuple[str, Ratio, tuple[int, int]]] = {
    "square, as the container says": ("a.mp4", (1, 1), (64, 48)),
    "unknown": ("a.mp4", (0, 1), (64, 48)),
    "wide, as the container says": ("a.mp4", (2, 1), (128, 48)),
    "wide, as Matroska says": ("a.mkv", (2, 1), (128, 48)),
    "wide, as only the pictures say": ("a.ts", (2, 1), (128, 48)),
    "high": ("a.mp4", (1, 2), (64, 96)),
    "of wide-screen PAL, to the nearest pixel": ("a.mp4", (64, 45), (91, 48)),
    "of NTSC": ("a.mp4", (10, 11), (64, 53)),
    "the widest in use": ("a.mp4", (32, 11), (186, 48)),
    "but for the rounding of a width square": ("a.mp4", (640, 639), (64, 48)),
    "absurdly wide": ("a.mp4", (16, 1), (64, 48)),
    "absurdly high": ("a.mp4", (1, 16), (64, 48)),
}


@pytest.mark.parametrize(("name", "ratio", "size"), SHAPES.values(), ids=SHAPES)
def test_frames_get_square_pixels_where_theirs_are(
    tmp_path: Path, name: str, ratio: Ratio, size: tuple[int, int]
) -> None:
    frames, notes = choose(write_pixels(tmp_path / name, ratio))
    assert [(f.rgb.shape[1], f.rgb.shape[0]) for f in frames] == [size] * 2
    absurd = {"ignored_shape_frames": 2} if 16 in ratio else {}
    assert notes == ({"stretched_frames": 2} if size != (64, 48) else absurd)
    row = frames[0].rgb[0, :, 0].int()
    assert abs(int((row > 125).nonzero()[0]) - size[0] / 2) <= 1


def test_pixels_are_stretched_before_the_frame_is_turned(tmp_path: Path) -> None:
    path = write_pixels(tmp_path / "a.mp4", (2, 1))
    turn_display(path, (0, 1, -1, 0))
    assert sizes(path) == [(48, 128)] * 2


def test_a_shape_that_changes_on_the_way_is_followed(tmp_path: Path) -> None:
    parts = [write_pixels(tmp_path / f"{i}.h264", (1 + i, 1)).read_bytes() for i in range(2)]
    path = tmp_path / "a.h264"
    path.write_bytes(b"".join(parts))
    assert set(sizes(path)) == {(64, 48), (128, 48)}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [40, 41, 57, 80, 113, 160])
def test_stretching_is_linear_interpolation(axis: int, size: int) -> None:
    rgb = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8)
    target = (size, 40) if axis == 0 else (40, size)
    expected = torch.nn.functional.interpolate(
        rgb.permute(2, 0, 1)[None].float(), size=target, mode="bilinear", align_corners=False
    )[0].permute(1, 2, 0)
    assert (_stretch(rgb, size, axis).float() - expected).abs().max() <= 2


def test_what_is_too_large_once_it_is_shown_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.decode.opening, "MAX_PIXELS", 100 * 48)
    path = write_pixels(tmp_path / "a.mp4", (2, 1))
    with pytest.raises(ClipError, match="too large: 128 x 48"):
        choose(path)


STREAMS: dict[str, tuple[list[Disposition], int]] = {
    "the one that is marked": ([Disposition(0), Disposition.default], 1),
    "the first of several that are": (
        [Disposition(0), Disposition.default, Disposition.default],
        1,
    ),
    "the first, where none is": ([Disposition(0), Disposition(0)], 0),
}


@pytest.mark.parametrize(("marks", "expected"), STREAMS.values(), ids=STREAMS)
def test_of_several_streams_is_shown(
    tmp_path: Path, marks: list[Disposition], expected: int
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for mark in marks:
            stream = container.add_stream("mjpeg", rate=5)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            stream.disposition = mark
            streams.append(stream)
        greys = grey_frames(5 * len(marks))
        for i in range(5):
            for number, stream in enumerate(streams):
                frame = VideoFrame.from_ndarray(greys[5 * number + i])
                container.mux(stream.encode(frame))
    numbers = [frame_number(frame.rgb.numpy()) for frame in choose(path)[0]]
    assert numbers == [5 * expected + i for i in range(5)]


def test_a_cover_picture_before_the_film_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=5)
        film = container.add_stream("mpeg4", rate=5)
        for stream in (cover, film):
            stream.width, stream.height = 64, 48
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        container.mux(cover.encode(VideoFrame.from_ndarray(np.full((48, 64, 3), 255, np.uint8))))
        for grey in grey_frames(5):
            container.mux(film.encode(VideoFrame.from_ndarray(grey)))
        container.mux(film.encode())
    numbers = [frame_number(frame.rgb.numpy()) for frame in choose(path)[0]]
    assert numbers[:4] == [0, 1, 2, 3]


INTERLACED = {"preset": "ultrafast", "qp": "0", "flags": "+ildct+ilme", "x264-params": "tff=1"}


def moving_square(height: int = 96) -> list[NDArray[np.uint8]]:
    """A bright square that goes to the right, 8 pixels from each field to the next."""
    fields = np.full((8, height, 128, 3), 60, dtype=np.uint8)
    for i, field in enumerate(fields):
        field[16:-16, 8 * i : 8 * i + 48] = 200
    return list(fields)


def weave(fields: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Frames whose even lines are of one field and whose odd lines are of the next."""
    frames = []
    for first, second in zip(fields[::2], fields[1::2], strict=True):
        frame = first.copy()
        frame[1::2] = second[1::2]
        frames.append(frame)
    return frames


@pytest.mark.parametrize("height", [96, 100])
def test_of_interlaced_frames_one_moment_is_shown(tmp_path: Path, height: int) -> None:
    fields = moving_square(height)
    path = write_video(tmp_path / "a.mp4", weave(fields), fps=5, options=INTERLACED)
    frames, notes = choose(path)
    assert notes == {"interlaced_frames": 4}
    for frame, field in zip(frames, fields[::2], strict=True):
        away = np.abs(frame.rgb.numpy().astype(int) - field)
        assert away[::2].max() <= 40  # chroma is shared by the lines of both
        assert np.median(away) <= 2
        inside = slice(20, -20)  # above and below the square's edges lines are means
        assert np.abs(np.diff(frame.rgb.numpy()[inside].astype(int), axis=0)).max() <= 40


def test_progressive_frames_stay_bit_for_bit_whatever_their_flag(tmp_path: Path) -> None:
    fields = moving_square()
    flagged, notes = choose(write_video(tmp_path / "a.mp4", fields, fps=5, options=INTERLACED))
    plain, _ = choose(write_video(tmp_path / "b.mp4", fields, fps=5))
    assert notes == {}
    for one, other in zip(flagged, plain, strict=True):
        assert torch.equal(one.rgb, other.rgb)


def test_combed_frames_that_no_flag_calls_interlaced_stay(tmp_path: Path) -> None:
    frames, notes = choose(write_video(tmp_path / "a.mp4", weave(moving_square()), fps=5))
    assert notes == {}
    assert np.abs(np.diff(frames[0].rgb.numpy()[20:-20].astype(int), axis=0)).max() > 100


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5])
def test_the_lines_between_those_of_one_field_are_their_means(height: int) -> None:
    rgb = torch.arange(height, dtype=torch.uint8).square()[:, None, None].expand(height, 1, 3)
    expected = {1: [0], 2: [0, 0], 3: [0, 2, 4], 4: [0, 2, 4, 4], 5: [0, 2, 4, 10, 16]}
    assert keep_first_field(rgb)[:, 0, 0].tolist() == expected[height]
