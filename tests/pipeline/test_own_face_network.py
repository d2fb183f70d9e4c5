"""Stage one with another face network: any number of faces reach it, or a message comes first."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor, nn

import pipeline.embed.encoder
from cli import cli
from features.contracts import Clip, ClipFeatures, Faces
from features.errors import WeightsError
from features.networks.weights import SHIPPED_FACE_WEIGHTS
from features.store.reader import open_store
from pipeline.config import ExtractConfig
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.embed.crops import crop_faces, cut_faces
from pipeline.extract import run_extract
from tests.features.networks.test_face_network import OnlyVector, Tiny, export, seeded
from tests.pipeline.videos import write_video

pytestmark = pytest.mark.usefixtures("local")

CONFIG = ExtractConfig(face_map=True, precision="float32")


class Counted(nn.Module):
    """TorchScript of a network that stops at more than 32 faces, and at none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        assert 1 <= rgb.shape[0] <= 32
        vector, feature_map = self.net(rgb)
        return vector, feature_map


def write_crowd(path: Path, n_rows: int, n_columns: int) -> Path:
    """Half a second of a face 40 pixels wide beside and below itself."""
    face: NDArray[np.uint8] = skimage.data.astronaut()[58:178:3, 164:284:3]
    return write_video(path, [np.tile(face, (n_rows, n_columns, 1))] * 3, fps=5)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd")
    write_crowd(folder / "crowd.mp4", 5, 8)
    write_crowd(folder / "two.mp4", 1, 2)
    (folder / "m.csv").write_text(
        "clip_id,path,label,split\ncrowd,crowd.mp4,happy,val\ntwo,two.mp4,sad,val\n"
    )
    return folder / "m.csv"


def read_crops(path: Path, clip: ClipFeatures) -> Tensor:
    """The crops of a stored clip's faces, cut from its file again."""
    film = Clip(clip_id="a", path=path, label="", split="val")
    rgb = torch.stack([frame.rgb for frame in iter_chosen_frames(film, 1)])
    faces = Faces(
        frame=clip.face_frame,
        box_px=clip.box_px,
        score=clip.score,
        landmarks_px=clip.landmarks_px,
    )
    return crop_faces(cut_faces(rgb, faces))


@pytest.mark.parametrize("kind", ["exported", "torchscript"])
def test_a_program_sees_every_face_of_a_crowd(tmp_path: Path, manifest: Path, kind: str) -> None:
    net = seeded(Tiny())
    if kind == "exported":
        program = export(net, tmp_path / "net.pt2", most=32)
    else:
        program = tmp_path / "net.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # writing TorchScript is deprecated
            torch.jit.script(Counted(net)).save(str(program))
    summary = run_extract(manifest, tmp_path / "s", CONFIG, face_weights=program)
    assert (summary.clips_done, summary.clips_failed) == (2, 0)
    for clip in open_store(tmp_path / "s").iter_clips(face_map=True):
        faces_a_frame = np.bincount(clip.face_frame, minlength=3)
        assert faces_a_frame.min() > (32 if clip.clip_id == "crowd" else 0)
        with torch.inference_mode():
            vector, feature_map = net(read_crops(manifest.parent / f"{clip.clip_id}.mp4", clip))
        np.testing.assert_allclose(clip.face_vector, vector, rtol=1e-3, atol=1e-3)
        assert clip.face_map is not None
        np.testing.assert_allclose(clip.face_map, feature_map, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weights", ["shipped", "own"])
def test_crops_of_a_crowd_are_made_a_batch_at_a_time(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    n_crops = []

    def count_crops(cuts: Any) -> Tensor:
        n_crops.append(len(cuts))
        return crop_faces(cuts)

    monkeypatch.setattr(pipeline.embed.encoder, "crop_faces", count_crops)
    own = weights == "own"
    path = export(seeded(Tiny()), tmp_path / "net.pt2") if own else SHIPPED_FACE_WEIGHTS
    run_extract(manifest, tmp_path / "s", CONFIG, face_weights=path)
    assert max(n_crops) <= 32
    assert sum(n_crops) > 3 * 32


@pytest.mark.parametrize("n_out", [256, 768])
def test_a_store_keeps_vectors_of_any_size(tmp_path: Path, manifest: Path, n_out: int) -> None:
    program = export(seeded(Tiny(n_out=n_out)), tmp_path / "net.pt2", most=32)
    run_extract(manifest, tmp_path / "s", CONFIG, face_weights=program)
    store = open_store(tmp_path / "s")
    assert store.header.expressions == ()
    for clip in store.iter_clips(face_map=True):
        assert clip.face_vector.shape == (clip.n_faces, n_out)
        assert clip.face_map is not None
        assert clip.face_map.shape[1:] == (n_out, 2, 2)


def test_a_program_that_breaks_a_rule_is_refused_before_a_clip_is_decoded(
    tmp_path: Path, manifest: Path
) -> None:
    program = export(seeded(OnlyVector()), tmp_path / "net.pt2")
    config = replace(CONFIG, face_map=False)
    with pytest.raises(WeightsError, match=r"net\.pt2: .* gives Tensor, .* export it again"):
        run_extract(manifest, tmp_path / "s", config, face_weights=program)
    assert not (tmp_path / "s" / "store.json").exists()


def test_a_refused_program_is_one_message_of_the_command(tmp_path: Path, manifest: Path) -> None:
    program = export(seeded(OnlyVector()), tmp_path / "net.pt2")
    command = ["extract", str(manifest), "--store", str(tmp_path / "s"), "--face-weights"]
    result = CliRunner().invoke(cli, [*command, str(program)])
    assert result.exit_code == 1
    assert "net.pt2: for 32 faces it gives" in result.stderr
    assert "Traceback" not in result.stderr
