"""Frames of a GPU get the colours that swscale gives to those of software."""

from __future__ import annotations

import platform

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame

from pipeline.decode.yuv import ColourTags, convert_to_rgb

MATRICES = {"BT.709": 1, "untagged": 2, "FCC": 4, "PAL": 5, "NTSC": 6, "240M": 7, "BT.2020": 9}
RANGES = {"untagged": 0, "limited": 1, "full": 2}
# Elsewhere than on x86 swscale has other code, with other rounding.
MOST_ON_AVERAGE = 0.02 if platform.machine() in ("x86_64", "AMD64") else 2.0


def read_planes(frame: VideoFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """Luma and chroma of a frame of 4:2:0, laid out as NV12 or P010."""
    deep = frame.format.name != "yuv420p"
    luma, cb, cr = (
        np.frombuffer(bytes(plane), np.uint16 if deep else np.uint8).reshape(plane.height, -1)[
            :, : plane.width
        ]
        << (6 if deep else 0)
        for plane in frame.planes
    )
    return torch.from_numpy(luma), torch.from_numpy(np.stack([cb, cr], axis=2))


@pytest.fixture(scope="module", params=["yuv420p", "yuv420p10le"])
def noise(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoFrame:
    """A decoder's frame (it says where chroma lies) with levels far outside the limited range."""
    path = tmp_path_factory.mktemp("noise") / "a.mkv"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 66, 50, request.param
        frame = VideoFrame(66, 50, request.param)
        levels = 256 if request.param == "yuv420p" else 1024
        for plane in frame.planes:
            n_levels = plane.buffer_size // (1 if levels == 256 else 2)
            stored = rng.integers(0, levels, n_levels, dtype=np.uint16)
            plane.update((stored.astype(np.uint8) if levels == 256 else stored).tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.mark.parametrize("color_range", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_colours_are_those_of_swscale(noise: VideoFrame, matrix: int, color_range: int) -> None:
    noise.colorspace, noise.color_range = matrix, color_range
    expected = noise.to_ndarray(format="rgb24", threads=1)
    tags = ColourTags(matrix=matrix, color_range=color_range)
    found = convert_to_rgb(*read_planes(noise), tags)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    away = np.abs(found.numpy().astype(int) - expected)
    assert away.max() <= 3
    assert away.mean() <= MOST_ON_AVERAGE


def test_planes_in_wider_memory_are_read_as_they_are(noise: VideoFrame) -> None:
    """A decoder pads rows, and pictures to whole blocks."""
    tags = ColourTags(matrix=1, color_range=1)
    luma, chroma = read_planes(noise)
    cut = luma[:40, :60], chroma[:20, :30]
    expected = convert_to_rgb(cut[0].contiguous(), cut[1].contiguous(), tags)
    assert torch.equal(convert_to_rgb(*cut, tags), expected)


@pytest.mark.parametrize(
    ("luma", "chroma"),
    [((49, 66), (24, 33)), ((50, 65), (25, 32)), ((50, 66), (50, 66))],
    ids=["odd height", "odd width", "4:4:4"],
)
def test_planes_that_are_not_420_are_refused(
    luma: tuple[int, int], chroma: tuple[int, int]
) -> None:
    planes = (torch.zeros(size, dtype=torch.uint8) for size in (luma, (*chroma, 2)))
    with pytest.raises(ValueError, match=r"not 4:2:0"):
        convert_to_rgb(*planes, ColourTags(matrix=1, color_range=1))
