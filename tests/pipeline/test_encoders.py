"""Stage one with encoders of a user's own: streams of frames and faces in the first pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional as F

from cli import cli
from features.contracts import Clip, ClipFeatures
from features.errors import ConfigError
from features.networks.encoders import EncoderSpec, read_encoder_spec
from features.store.reader import open_store, verify_store
from pipeline.config import ExtractConfig
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.extract import run_extract
from tests.builders import write_face_video
from tests.features.networks.encoder_files import PICTURE, Small, write_onnx, write_program

pytestmark = pytest.mark.usefixtures("local")

CONFIG = ExtractConfig(min_face="40", phases=2, precision="float32")
NAMES = {"a": "train", "b": "val", "empty": "test"}


def write_manifest(folder: Path, names: dict[str, str]) -> Path:
    rows = [f"{name},{name}.mp4,happy,{split}" for name, split in names.items()]
    (folder / "m.csv").write_text("\n".join(["clip_id,path,label,split", *rows, ""]))
    return folder / "m.csv"


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three clips, one of them without a face, and a manifest of them."""
    folder = tmp_path_factory.mktemp("footage")
    for number, name in enumerate(NAMES):
        write_face_video(
            folder / f"{name}.mp4", n_frames=10, shift_px=8 * number, face_found=name != "empty"
        )
    write_manifest(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderSpec]:
    """``place`` looks at whole frames, ``centre`` at their middle, ``look`` at faces."""
    folder = tmp_path_factory.mktemp("encoders")
    kinds: dict[str, dict[str, Any]] = {
        "place": {"looks_at": "frame", "crop": "whole", "width": 48},
        "centre": {"looks_at": "frame", "crop": "centre"},
        "look": {"looks_at": "face", "margin": 0.5},
    }
    return {
        name: read_encoder_spec(
            write_onnx(
                folder / f"{name}.onnx", shape=(3, 32, kind.get("width", 32)), name=name, **kind
            )
        )
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def extracted(footage: Path, encoders: dict[str, EncoderSpec]) -> Path:
    from tests.pipeline.workers.local_pool import LocalPool

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.extract.WorkerPool", LocalPool)
        summary = run_extract(
            footage / "m.csv", footage / "store", CONFIG, encoders=list(encoders.values())
        )
    assert (summary.clips_done, summary.clips_failed) == (3, 0)
    return footage / "store"


def embed(pictures: Tensor) -> Tensor:
    """What ``Small`` gives for [B, 3, h, w], 0..255, prepared as its sidecar says."""
    mean, deviation = (torch.tensor(PICTURE[name]).view(3, 1, 1) for name in ("mean", "deviation"))
    with torch.inference_mode():
        found: Tensor = Small()((pictures.round() / 255 - mean) / deviation)[0]
    return found


def read_frames(footage: Path, clip: ClipFeatures) -> Tensor:
    """[F, 3, H, W] The frames of a stored clip's rows, decoded again."""
    film = Clip(clip_id="x", path=footage / f"{clip.clip_id}.mp4", label="", split=clip.split)
    frames = iter_chosen_frames(film, clip.n_phases)
    rgb = [f.rgb for f in frames for _ in f.record.phases]
    return torch.stack(rgb).permute(0, 3, 1, 2).float()


def scale(pictures: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(pictures, size=(height, width), mode="bilinear", antialias=True)


def test_a_stream_of_frames_is_what_the_encoder_sees_in_each(
    extracted: Path, footage: Path
) -> None:
    assert verify_store(extracted) == []
    for clip in open_store(extracted):
        frames = read_frames(footage, clip)
        assert clip.streams["place"].shape == (clip.n_frames, 6)
        whole = embed(scale(frames, 32, 48))
        np.testing.assert_allclose(clip.streams["place"], whole, rtol=2e-3, atol=2e-3)
        middle = embed(scale(frames, 32, 42)[:, :, :, 5:37])  # of 160 x 120
        np.testing.assert_allclose(clip.streams["centre"], middle, rtol=2e-3, atol=2e-3)


def test_a_stream_of_faces_is_what_the_encoder_sees_in_each(extracted: Path, footage: Path) -> None:
    n_faces = 0
    for clip in open_store(extracted):
        frames = read_frames(footage, clip)
        assert clip.face_streams["look"].shape == (clip.n_faces, 6)
        for row, frame, (left, top, right, bottom) in zip(
            clip.face_streams["look"], clip.face_frame, clip.box_px, strict=True
        ):
            side = round(float(max(right - left, bottom - top)) * 1.5)
            x, y = round(float(left + right - side) / 2), round(float(top + bottom - side) / 2)
            pad = 200
            padded = F.pad(frames[frame][None], (pad, pad, pad, pad), mode="replicate")
            square = padded[:, :, y + pad : y + pad + side, x + pad : x + pad + side]
            wanted = embed(scale(square, 32, 32))[0]
            np.testing.assert_allclose(row, wanted, rtol=2e-2, atol=4e-3)
            n_faces += 1
    assert n_faces == 6


def test_streams_change_nothing_of_the_other_features(
    extracted: Path, footage: Path, tmp_path: Path
) -> None:
    run_extract(footage / "m.csv", tmp_path / "s", CONFIG)
    plain, with_streams = open_store(tmp_path / "s"), open_store(extracted)
    assert plain.fingerprint == with_streams.fingerprint
    assert set(with_streams.streams) == {"place", "centre", "look"}
    for one, other in zip(plain, with_streams, strict=True):
        for name in ("pts_s", "context_2x2", "box_px", "face_vector", "face_expression"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_what_made_a_stream_stands_in_the_store(
    extracted: Path, encoders: dict[str, EncoderSpec]
) -> None:
    header = open_store(extracted).streams["look"]
    assert (header.rows, header.size) == ("face", 6)
    assert header.encoder["sha256"] == encoders["look"].sha256
    assert (header.encoder["licence"], header.encoder["margin"]) == ("MIT", 0.5)


def test_the_expressions_of_each_face_are_in_the_store(extracted: Path) -> None:
    store = open_store(extracted)
    assert store.header.expressions[0] == "neutral"
    for clip in store:
        assert clip.face_expression is not None
        assert clip.face_expression.shape == (clip.n_faces, len(store.header.expressions))
        np.testing.assert_allclose(clip.face_expression.sum(1), 1, atol=4e-3)


def test_a_store_that_was_begun_without_expressions_goes_on_without_them(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").symlink_to(footage / "a.mp4")
    (tmp_path / "b.mp4").symlink_to(footage / "b.mp4")
    with monkeypatch.context() as before:
        before.setattr("pipeline.store_header._lacks_expressions", lambda store: True)
        run_extract(write_manifest(tmp_path, {"a": "train"}), tmp_path / "s", CONFIG)
    fingerprint = open_store(tmp_path / "s").fingerprint
    both = write_manifest(tmp_path, {"a": "train", "b": "val"})
    assert run_extract(both, tmp_path / "s", CONFIG).clips_done == 1
    assert [clip.face_expression for clip in open_store(tmp_path / "s")] == [None, None]
    (tmp_path / "s" / "store.json").unlink()
    assert run_extract(both, tmp_path / "s", CONFIG).clips_done == 0
    assert open_store(tmp_path / "s").header.expressions == ()
    assert run_extract(both, tmp_path / "new", CONFIG).fingerprint == fingerprint
    assert open_store(tmp_path / "new").header.expressions


def test_another_encoder_under_the_name_of_a_stream_is_refused(
    extracted: Path, footage: Path, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "x.onnx", Small(7), size=7, name="place", looks_at="frame")
    with pytest.raises(ConfigError, match=r"stream place .* another name"):
        run_extract(footage / "m.csv", extracted, CONFIG, encoders=[read_encoder_spec(path)])


def test_two_encoders_of_one_name_are_refused(footage: Path, tmp_path: Path) -> None:
    one, other = (write_onnx(tmp_path / f"{n}.onnx") for n in ("one", "other"))
    command = ["extract", str(footage / "m.csv"), "--store", str(tmp_path / "s")]
    result = CliRunner().invoke(cli, [*command, "--encoder", str(one), "--encoder", str(other)])
    assert result.exit_code == 2
    assert "another encoder makes the stream small" in result.stderr


def test_a_program_needs_trust_on_the_command_line(footage: Path, tmp_path: Path) -> None:
    program = write_program(tmp_path / "net.pt2", Small())
    command = ["extract", str(footage / "m.csv"), "--store", str(tmp_path / "s"), "--json"]
    command += ["--encoder", str(program), "--min-face", "40", "--phases", "2"]
    refused = CliRunner().invoke(cli, command)
    assert refused.exit_code == 1
    assert "give --trust" in json.loads(refused.stdout)["error"]
    result = CliRunner().invoke(cli, [*command, "--trust"])
    assert result.exit_code == 0, result.output
    assert set(open_store(tmp_path / "s").streams) == {"small"}
