"""What a GPU makes of a clip is what the CPU makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from features.store import open_store
from pipeline.config import ExtractConfig
from pipeline.extract import run_extract
from tests.builders import write_face_video


@pytest.mark.gpu
def test_features_of_the_gpu_point_where_those_of_the_cpu_do(tmp_path: Path) -> None:
    write_face_video(tmp_path / "a.mp4", n_frames=10)
    (tmp_path / "m.csv").write_text("clip_id,path,label,split\na,a.mp4,happy,train\n")
    config = ExtractConfig(min_face="40")
    cpu, cuda = (
        (
            run_extract(tmp_path / "m.csv", tmp_path / device, config, device=device),
            open_store(tmp_path / device).read_clip(0, context_7x7=True),
        )[1]
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(cuda.box_px, cpu.box_px, atol=1)
    assert cpu.context_7x7 is not None
    assert cuda.context_7x7 is not None
    for name in ("context_7x7", "context_2x2", "face_vector"):
        a, b = (getattr(clip, name).reshape(clip.n_frames, -1) for clip in (cpu, cuda))
        a, b = a.astype(np.float64), b.astype(np.float64)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() >= 0.999, name
