"""What a GPU makes of a clip is what the CPU makes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.contracts import Clip
from features.store.reader import open_store
from pipeline.config import ExtractConfig
from pipeline.decode.sampling import DecodedFrame, iter_chosen_frames
from pipeline.extract import run_extract
from tests.builders import write_face_video
from tests.pipeline.decode.test_nvdec import DECODED, noisy_frames
from tests.pipeline.videos import turn_display, write_video


def choose(path: Path, device: str) -> list[DecodedFrame]:
    clip = Clip(clip_id="a", path=path, label="", split="test")
    return list(iter_chosen_frames(clip, 2, device))


def assert_same(found: list[DecodedFrame], expected: list[DecodedFrame]) -> None:
    assert [(f.record.pts_s, f.record.phases) for f in found] == [
        (f.record.pts_s, f.record.phases) for f in expected
    ]
    for a, b in zip(found, expected, strict=True):
        assert a.rgb.device.type == "cuda"
        away = (a.rgb.cpu().int() - b.rgb.int()).abs()
        assert away.max() <= 3
        assert away.float().mean() <= 0.5


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(240, 320), (242, 326)])
@pytest.mark.parametrize(("name", "how", "codec"), DECODED.values(), ids=DECODED)
def test_frames_of_the_gpu_are_those_of_software(
    tmp_path: Path, name: str, how: dict[str, Any], codec: str, height: int, width: int
) -> None:
    path = write_video(tmp_path / name, noisy_frames(12, height, width), **how)
    found = choose(path, "cuda")
    assert_same(found, choose(path, "cpu"))
    assert {frame.record.decoder for frame in found} == {f"nvdec:{codec}"}


@pytest.mark.gpu
@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, 1)])
def test_frames_of_the_gpu_are_shown_as_those_of_software(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    frames = noisy_frames(6, 240, 320)
    path = write_video(tmp_path / "a.mp4", frames, pixel_ratio=Fraction(4, 3))
    turn_display(path, matrix)
    assert_same(choose(path, "cuda"), choose(path, "cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("how", [{"codec": "mpeg4"}, {"pix_fmt": "yuv444p"}], ids=str)
def test_what_the_gpu_does_not_decode_is_brought_to_it(tmp_path: Path, how: dict[str, Any]) -> None:
    path = write_video(tmp_path / "a.mp4", noisy_frames(6, 240, 320), **how)
    found = choose(path, "cuda")
    assert_same(found, choose(path, "cpu"))
    assert {frame.record.decoder.split(":")[0] for frame in found} == {"software"}


@pytest.mark.gpu
def test_several_decoders_of_the_gpu_work_at_once(tmp_path: Path) -> None:
    paths = [
        write_video(tmp_path / f"{i}.mp4", noisy_frames(30 + 10 * i, 240, 320)) for i in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: choose(path, "cuda"), paths * 4))
    for frames, path in zip(found, paths * 4, strict=True):
        assert_same(frames, choose(path, "cpu"))
        assert {frame.record.decoder for frame in frames} == {"nvdec:h264"}


@pytest.mark.gpu
def test_features_of_the_gpu_point_where_those_of_the_cpu_do(tmp_path: Path) -> None:
    write_face_video(tmp_path / "a.mp4", n_frames=10)
    (tmp_path / "m.csv").write_text("clip_id,path,label,split\na,a.mp4,happy,train\n")
    config = ExtractConfig(min_face="40", precision="float32")
    cpu, cuda = (
        (
            run_extract(tmp_path / "m.csv", tmp_path / device, config, device=device),
            open_store(tmp_path / device).read_clip(0, context_7x7=True),
        )[1]
        for device in ("cpu", "cuda")
    )
    assert (cpu.decoder, cuda.decoder) == ("software:h264", "nvdec:h264")
    np.testing.assert_allclose(cuda.box_px, cpu.box_px, atol=1)
    assert cpu.context_7x7 is not None
    assert cuda.context_7x7 is not None
    for name in ("context_7x7", "context_2x2", "face_vector"):
        a, b = (getattr(clip, name).reshape(clip.n_frames, -1) for clip in (cpu, cuda))
        a, b = a.astype(np.float64), b.astype(np.float64)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() >= 0.999, name
