import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torchvision.models import squeezenet1_1

from cli import cli
from features.errors import ConfigError, ManifestError
from features.networks.context_cnn import read_squeezenet_state
from features.networks.face_cnn import (
    FaceCNN,
    read_face_cnn,
    read_face_training,
)
from features.networks.weights import FERPLUS_FACE_WEIGHTS
from tests.features.networks.test_face_cnn import some_faces
from train.face_cnn.augment import augment_faces, scale_faces
from train.face_cnn.config import FaceAugmentation, FaceFitConfig
from train.face_cnn.evaluate import FaceChoice, FaceScores, evaluate_face_cnn
from train.face_cnn.fit import run_fit_face
from train.face_cnn.start import init_from_imagenet
from train.face_cnn.training import FaceFitProgress

ROOT = Path(__file__).parents[3]
TINY = FaceFitConfig(
    epochs=2, epoch_pictures=32, batch=8, warmup_steps=2, averaging=0.5, precision="float32"
)
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
    shrunk=0,
    moved=0,
    compressed=0,
    erased=0,
)


def write_mouths(path: Path) -> Path:
    """48 faces of a bright mouth that curves up (happy) or down (sad), in three splits."""
    draw = np.random.default_rng(0)
    blotches = draw.integers(0, 180, (48, 6, 6), dtype=np.uint8)  # so that no two are near copies
    images = blotches.repeat(8, axis=1).repeat(8, axis=2)
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
    result = run_fit_face([mouths], out, replace(TINY, epochs=16))
    assert result.test["mouths"].accuracy == result.val["mouths"].accuracy == 1
    assert read_face_cnn(out).classes == ("happiness", "sadness")
    assert read_face_training(out)["test"]["mouths"]["n"] == 8
    scores = evaluate_face_cnn(out, [mouths])
    assert scores["mouths, own classifier"].as_json() == result.test["mouths"].as_json()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "face.history.csv",
        "face.metrics.json",
        "face.safetensors",
    ]
    assert len(pd.read_csv(tmp_path / "face.history.csv")) == 16
    metrics = json.loads((tmp_path / "face.metrics.json").read_text())
    assert metrics["n_train"] == {"mouths": 32}
    assert metrics["test"]["mouths"]["n"] == 8


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.train.face_cnn.test_fit import TINY
from train.face_cnn.fit import run_fit_face

def kill_in_epoch_2(progress):
    if progress.epoch == 2 and progress.batch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
run_fit_face([Path(sys.argv[1])], Path(sys.argv[2]), TINY, progress=kill_in_epoch_2)
"""


def facts_without_times(path: Path) -> dict[str, Any]:
    facts = read_face_training(path)
    for row in facts["history"]:
        del row["wall_s"]
    return facts


def test_training_killed_with_signal_9_resumes_to_the_same_figures(
    mouths: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    run_fit_face([mouths], whole, TINY)
    code = [sys.executable, "-c", KILLED, str(mouths), str(resumed)]
    assert subprocess.run(code, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not resumed.exists()
    epochs: list[int] = []
    run_fit_face([mouths], resumed, TINY, progress=lambda p: epochs.append(p.epoch))
    assert set(epochs) == {2}
    assert facts_without_times(resumed) == facts_without_times(whole)
    expected = read_face_cnn(whole).state_dict()
    for name, tensor in read_face_cnn(resumed).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


class KilledError(Exception):
    pass


def kill_in_epoch_2(progress: FaceFitProgress) -> None:
    if progress.epoch == 2 and progress.batch == 2:
        raise KilledError


def test_checkpoint_of_another_config_is_not_resumed(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    with pytest.raises(KilledError):
        run_fit_face([mouths], out, TINY, progress=kill_in_epoch_2)
    epochs: list[int] = []
    run_fit_face([mouths], out, replace(TINY, seed=1), progress=lambda p: epochs.append(p.epoch))
    assert set(epochs) == {1, 2}


def test_damaged_checkpoint_is_said_and_not_resumed(
    mouths: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "face.safetensors.checkpoint").write_bytes(b"damaged")
    run_fit_face([mouths], tmp_path / "face.safetensors", replace(TINY, epochs=1))
    assert "not readable, training starts anew" in caplog.text


def test_no_folder_to_write_to_is_said_before_training(mouths: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        run_fit_face([mouths], tmp_path / "none" / "face.safetensors", TINY)


def test_images_without_val_are_refused(mouths: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(mouths))
    arrays["split"][:] = "train"
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(ManifestError, match="no picture in split val has a label"):
        run_fit_face([tmp_path / "train.npz"], tmp_path / "face.safetensors", TINY)


@torch.no_grad()
def test_start_is_the_imagenet_network_on_grey_pictures() -> None:
    net = FaceCNN(("a", "b"))
    init_from_imagenet(net, net.normalise(some_faces(4)))
    trunk = squeezenet1_1()
    trunk.load_state_dict(read_squeezenet_state())
    grey = (some_faces(2) * net.luma).sum(1, keepdim=True)
    deviation, mean = torch.std_mean(grey, (1, 2, 3), keepdim=True)
    expected = trunk.features.eval()(((grey - mean) / (deviation + 8) * 60).expand(-1, 3, -1, -1))
    torch.testing.assert_close(net.embed(some_faces(2)).map, expected, rtol=1e-3, atol=1e-2)


def test_classes_that_one_side_lacks_are_left_out(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    run_fit_face([mouths], out, replace(TINY, epochs=1))
    arrays = dict(np.load(mouths))
    arrays["label"] = np.where(arrays["label"] == "sad", "contempt", arrays["label"])
    np.savez(tmp_path / "other.npz", **arrays)
    scores = evaluate_face_cnn(out, [tmp_path / "other.npz"])["other"]
    assert scores.classes == ("happiness",)
    assert scores.left_out == ("contempt", "sadness")
    assert (scores.n, scores.accuracy) == (4, 1)


def test_scores_without_any_shared_label_say_so(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    run_fit_face([mouths], out, replace(TINY, epochs=1))
    arrays = dict(np.load(mouths))
    arrays["label"] = np.full(48, "bored")
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ManifestError, match="no picture of the split has a label that the network"):
        evaluate_face_cnn(out, [tmp_path / "other.npz"])


def test_the_test_split_is_scored_where_there_is_one_else_all(mouths: Path, tmp_path: Path) -> None:
    found = [evaluate_face_cnn(FERPLUS_FACE_WEIGHTS, [mouths], FaceChoice(split="train"))]
    found += [evaluate_face_cnn(FERPLUS_FACE_WEIGHTS, [mouths])]
    arrays = dict(np.load(mouths))
    arrays["split"] = np.where(arrays["split"] == "test", "val", arrays["split"])
    np.savez(tmp_path / "other.npz", **arrays)
    found += [evaluate_face_cnn(FERPLUS_FACE_WEIGHTS, [tmp_path / "other.npz"])]
    assert [(s.split, s.n) for scores in found for s in scores.values()] == [
        ("train", 32),
        ("test", 8),
        ("all", 48),
    ]


def test_other_labels_and_fewer_classes_can_be_scored(mouths: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(mouths))
    own = np.where(arrays["label"] == "sad", "Scared", "joy")
    np.savez(tmp_path / "other.npz", own=own, **arrays)
    choice = FaceChoice(labels="own", only=("fear", "happy", "anger"))
    scores = evaluate_face_cnn(FERPLUS_FACE_WEIGHTS, [tmp_path / "other.npz"], choice)["other"]
    assert scores.classes == ("happiness", "fear")
    assert scores.n == 8
    with pytest.raises(ManifestError, match="lacks theirs"):
        evaluate_face_cnn(FERPLUS_FACE_WEIGHTS, [mouths], FaceChoice(labels="theirs"))
    with pytest.raises(ConfigError, match="split 'dev'"):
        FaceChoice(split="dev")


def test_scores_as_json_have_just_these_keys(mouths: Path) -> None:
    called = CliRunner().invoke(cli, ["fit-face", str(mouths), "--evaluate", "ferplus", "--json"])
    scores = json.loads(called.stdout)["sources"]["mouths"]
    assert set(scores) == {
        "split", "accuracy", "uar", "n", "classes", "confusion", "left_out",
    }  # fmt: skip
    assert (scores["n"], scores["classes"]) == (8, ["happiness", "sadness"])
    assert scores["left_out"] == ["anger", "contempt", "disgust", "fear", "neutral", "surprise"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("epochs=0", "setting epochs: found 0, expected 1 or more"),
        ("small_px=100", "setting small_px: found 100, expected a multiple of 8 from 32 to 128"),
        ("dropout=1", "setting dropout: found 1, expected 0 or more, below 1"),
        ("learning_rate=inf", "setting learning_rate: found inf, expected > 0"),
        ("within_shrinkage=-1", "setting within_shrinkage: found -1, expected >= 0"),
        ("weight_decay=nan", "setting weight_decay: found nan, expected >= 0"),
        ("learning_rate=fast", "setting learning_rate: found 'fast', expected a number"),
        ("augmentation=off", "setting 'augmentation': unknown. Known settings: epochs, "),
        ("epochs", "setting 'epochs': expected KEY=VALUE"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_is_expected(
    mouths: Path, tmp_path: Path, setting: str, problem: str
) -> None:
    command = ["fit-face", str(mouths), "--out", str(tmp_path / "face.safetensors")]
    called = CliRunner().invoke(cli, [*command, "--set", setting])
    assert called.exit_code == 2
    assert problem in called.output


def test_settings_reach_the_training(mouths: Path, tmp_path: Path) -> None:
    out = tmp_path / "face.safetensors"
    command = ["fit-face", str(mouths), "--out", str(out), "--epochs", "1"]
    for setting in ("epoch_pictures=16", "batch=8", "small_share=0", "learning_rate=0.01"):
        command += ["--set", setting]
    called = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert called.exit_code == 0, called.output
    config = read_face_training(out)["config"]
    found = [config[name] for name in ("epoch_pictures", "batch", "small_share", "learning_rate")]
    assert found == [16, 8, 0, 0.01]


def test_options_of_scoring_and_of_training_do_not_mix(mouths: Path) -> None:
    for options in (
        [],
        ["--out", "x", "--split", "val"],
        ["--out", "x", "--evaluate", "ferplus"],
        ["--evaluate", "ferplus", "--set", "epochs=1"],
    ):
        called = CliRunner().invoke(cli, ["fit-face", str(mouths), *options])
        assert called.exit_code == 2, called.output


def test_confusion_is_described_by_its_commonest_mistakes() -> None:
    confusion = np.array([[5, 1, 0], [3, 7, 0], [0, 0, 0]])
    scores = FaceScores(classes=("sad", "calm", "bored"), confusion=confusion)
    assert scores.describe_confusion() == [
        "calm taken for sad: 3 of 10 (30%)",
        "sad taken for calm: 1 of 6 (17%)",
    ]


def test_uar_is_the_mean_recall_of_classes_that_occur() -> None:
    confusion = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    scores = FaceScores(classes=("a", "b", "c"), confusion=confusion)
    assert (scores.n, scores.accuracy, scores.uar) == (8, 5 / 8, (3 / 4 + 2 / 4) / 2)


def test_augmentation_of_nothing_only_scales() -> None:
    pixels = some_faces(3)[:, :1, :48, :48]
    found = augment_faces(pixels, STILL, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, scale_faces(pixels), rtol=0, atol=0.01)


def test_augmentation_is_a_function_of_its_seed() -> None:
    pixels = some_faces(3)[:, :1, :48, :48]
    first, again, other = (
        augment_faces(pixels, FaceAugmentation(), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first.shape == (3, 1, 128, 128)
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
