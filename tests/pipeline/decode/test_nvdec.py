"""What a GPU decodes is what software decodes; what it cannot, software does, and it is said.

Where no GPU is, its decoder is played by software that hands over planes as a GPU does.
"""

from __future__ import annotations

from fractions import Fraction
from io import FileIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from features.contracts import Clip, Faces
from features.errors import ClipError
from pipeline.decode.nvdec import NoHardwareError, Nvdec, check_frame, convert_planes
from pipeline.decode.opening import open_container
from pipeline.decode.sampling import DecodedFrame, FrameRecord, iter_chosen_frames
from pipeline.embed.encoder import EmbeddedFrame, FaceRows
from pipeline.embed.streams import StreamRows
from pipeline.inputs import InputFile
from pipeline.workers.messages import ClipEnd
from pipeline.workers.rows import iter_parts
from tests.pipeline.videos import ONE_THREAD, keep_first, turn_display, write_video

FILE = InputFile(n_bytes=1, mtime_ns=1, sha256="0" * 64)
PLANES_OF = {"yuv420p": "nv12", "yuv420p10le": "p010le"}
"""How a GPU lays out what software lays out so."""


class PlayedGpu(Nvdec):
    """Decodes in software; all after it is done as for a GPU."""

    def __init__(self, n_frames: int = 1000) -> None:
        """n_frames: It breaks down after so many."""
        super().__init__(torch.device("cuda"))
        self.n_left = n_frames

    def open(self, file: FileIO) -> InputContainer:
        return open_container(file)

    def read_rgb(self, frame: VideoFrame, stream: VideoStream) -> torch.Tensor:
        if self.n_left == 0:
            raise NoHardwareError("it broke down")
        self.n_left -= 1
        on_gpu = frame.reformat(format=PLANES_OF.get(frame.format.name))
        check_frame(on_gpu, stream)
        on_gpu.colorspace, on_gpu.color_range = frame.colorspace, frame.color_range
        return convert_planes(on_gpu)


def make_clip(path: Path, **part: float) -> Clip:
    return Clip(clip_id="a", path=path, label="", split="test", **part)  # type: ignore[arg-type]


def choose(path: Path, gpu: Nvdec | None, n_phases: int = 1, **part: float) -> list[DecodedFrame]:
    return list(iter_chosen_frames(make_clip(path, **part), n_phases, hardware=gpu))


def noisy_frames(n_frames: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (n_frames, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return [np.kron(f, np.ones((8, 8, 1), np.uint8))[:height, :width] for f in frames]


def assert_same(found: list[DecodedFrame], expected: list[DecodedFrame]) -> None:
    assert [(f.record.pts_s, f.record.phases) for f in found] == [
        (f.record.pts_s, f.record.phases) for f in expected
    ]
    for a, b in zip(found, expected, strict=True):
        away = (a.rgb.int() - b.rgb.int()).abs()
        assert away.max() <= 3
        assert away.float().mean() <= 0.5


X265 = {"x265-params": f"{ONE_THREAD}:qp=4"}
DECODED: dict[str, tuple[str, dict[str, Any], str]] = {
    "H.264": ("a.mp4", {}, "h264"),
    "HEVC": ("a.mp4", {"codec": "libx265", "options": X265}, "hevc"),
    "HEVC of 10 bits": (
        "a.mkv",
        {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": X265},
        "hevc",
    ),
    "VP9": ("a.webm", {"codec": "libvpx-vp9"}, "vp9"),
}


@pytest.mark.parametrize("size", [(48, 64), (50, 66)], ids=["whole blocks", "blocks that are cut"])
@pytest.mark.parametrize(("name", "how", "codec"), DECODED.values(), ids=DECODED)
def test_frames_of_a_gpu_are_those_of_software(
    tmp_path: Path, name: str, how: dict[str, Any], codec: str, size: tuple[int, int]
) -> None:
    path = write_video(tmp_path / name, noisy_frames(12, *size), **how)
    found = choose(path, PlayedGpu(), 2)
    assert_same(found, choose(path, None, 2))
    assert {frame.record.decoder for frame in found} == {f"nvdec:{codec}"}


@pytest.mark.parametrize("ratio", [(1, 1), (4, 3), (1, 2)])
@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, 1, 1, 0), (-1, 0, 0, 1)])
def test_frames_of_a_gpu_are_shown_as_those_of_software(
    tmp_path: Path, matrix: tuple[int, int, int, int], ratio: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(3), pixel_ratio=Fraction(*ratio))
    turn_display(path, matrix)
    assert_same(choose(path, PlayedGpu()), choose(path, None))


@pytest.mark.parametrize("part", [{"start_s": 0.5}, {"start_s": 0.9, "end_s": 1.5}])
def test_parts_are_found_by_a_gpu(tmp_path: Path, part: dict[str, float]) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(50))
    assert_same(choose(path, PlayedGpu(), **part), choose(path, None, **part))


REFUSED: dict[str, tuple[str, dict[str, Any], tuple[int, int], str]] = {
    "a codec whose frames may differ": ("a.mp4", {"codec": "mpeg4"}, (48, 64), "mpeg4"),
    "a codec that no GPU has": ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}, (48, 64), "gif"),
    "4:4:4": ("a.mp4", {"pix_fmt": "yuv444p"}, (48, 64), "h264"),
    "4:2:2": ("a.mp4", {"pix_fmt": "yuv422p"}, (48, 64), "h264"),
    "an odd side": ("a.webm", {"codec": "libvpx-vp9"}, (49, 64), "vp9"),
}


@pytest.mark.parametrize(("name", "how", "size", "codec"), REFUSED.values(), ids=REFUSED)
def test_software_decodes(
    tmp_path: Path, name: str, how: dict[str, Any], size: tuple[int, int], codec: str
) -> None:
    path = write_video(tmp_path / name, noisy_frames(12, *size), **how)
    found = choose(path, PlayedGpu())
    assert_same(found, choose(path, None))
    assert {frame.record.decoder for frame in found} == {f"software:{codec}"}


def test_a_gpu_that_is_not_there_leaves_the_clip_to_software(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(6))
    found = choose(path, Nvdec(torch.device("cuda:99")))
    assert_same(found, choose(path, None))
    assert {frame.record.decoder for frame in found} == {"software:h264"}


def test_a_frame_of_software_is_not_taken_for_one_of_the_gpu(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(1))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        with pytest.raises(NoHardwareError, match="gave yuv420p frames"):
            Nvdec(torch.device("cuda")).read_rgb(frame, container.streams.video[0])


def test_more_than_8_bits_are_read_only_where_it_is_known_where_chroma_lies(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.webm", noisy_frames(1), codec="libvpx-vp9")
    with (
        av.open(str(path)) as container,
        pytest.raises(NoHardwareError, match="vp9 frames of p010"),
    ):
        check_frame(VideoFrame(64, 48, "p010le"), container.streams.video[0])


def test_a_frame_that_is_still_to_be_cut_is_not_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(1))
    with av.open(str(path)) as container, pytest.raises(NoHardwareError, match="66x48 in a stream"):
        check_frame(VideoFrame(66, 48, "nv12"), container.streams.video[0])


@pytest.mark.parametrize("n_frames", [0, 1, 4, 9])
@pytest.mark.parametrize("fps", [2, 25])
def test_software_goes_on_where_a_gpu_gives_up(tmp_path: Path, fps: float, n_frames: int) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(50 if fps == 25 else 10), fps=fps)
    found = choose(path, PlayedGpu(n_frames), 3)
    assert_same(found, choose(path, None, 3))
    assert [frame.record.decoder for frame in found[:n_frames]] == ["nvdec:h264"] * n_frames
    assert {frame.record.decoder for frame in found[n_frames:]} == {"software:h264"}


def test_a_file_that_breaks_off_is_said_once_its_frames_are_out(tmp_path: Path) -> None:
    fast_start = {"container_options": {"movflags": "faststart"}}
    path = keep_first(write_video(tmp_path / "a.mp4", noisy_frames(50), **fast_start), 0.5)
    frames = iter_chosen_frames(make_clip(path), 1, hardware=PlayedGpu())
    found: list[float] = []
    with pytest.raises(ClipError, match="breaks off"):
        found.extend(frame.record.pts_s for frame in frames)
    assert found
    assert found == sorted(set(found))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="no such file"):
        choose(tmp_path / "a.mp4", PlayedGpu())


def make_frame(clip: Clip, pts_s: float, decoder: str) -> EmbeddedFrame:
    none = np.zeros(0, dtype=np.float32)
    return EmbeddedFrame(
        record=FrameRecord(clip=clip, pts_s=pts_s, phases=(0,), decoder=decoder),
        faces=Faces(
            frame=none.astype(np.int32),
            box_px=none.reshape(0, 4),
            score=none,
            landmarks_px=none.reshape(0, 5, 2),
        ),
        context_7x7=np.zeros((512, 7, 7), dtype=np.float16),
        context_2x2=np.zeros((512, 2, 2), dtype=np.float16),
        face=FaceRows(vector=np.zeros((0, 512), dtype=np.float16), map=None, expression=None),
        streams=StreamRows(),
    )


def test_the_record_of_a_clip_names_all_who_decoded_it() -> None:
    first, second = make_clip(Path("a.mp4")), make_clip(Path("b.mp4"))
    items: list[Any] = [
        make_frame(first, 0.0, "nvdec:h264"),
        make_frame(first, 0.2, "software:h264"),
        ClipEnd(clip=first, file=FILE),
        make_frame(second, 0.0, "nvdec:vp9"),
        ClipEnd(clip=second, file=FILE),
    ]
    parts = [part for part in iter_parts(items, {"test": 1}) if not isinstance(part, ClipEnd)]
    assert [part.decoder for part in parts] == ["nvdec:h264, software:h264", "nvdec:vp9"]
