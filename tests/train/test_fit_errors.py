"""What fit refuses: each refusal says what is wrong and what to do, and leaves no run behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.errors import ShardError, UserError
from features.store.writer import write_store
from tests.builders import clip_features
from tests.fits import fit_runs
from train.config import FitConfig
from train.runs.folder import find_runs

CLASSES = ("happy", "sad")
QUICK = FitConfig(epochs=1, min_updates=0)
TWO_CLASSES = [("train", "happy"), ("train", "sad"), ("val", "happy"), ("test", "sad")]


@pytest.mark.parametrize(
    ("clips", "head", "message"),
    [
        pytest.param(
            [("train", "sad"), ("train", "sad"), ("val", "happy")],
            "face",
            r"split train: every clip is 'sad', .*Add clips of another class",
            id="one class in train",
        ),
        pytest.param(
            [("val", "sad"), ("val", "happy")],
            "face",
            r"split train: no clip with a label\. Give clips of the manifest the split train",
            id="train is empty",
        ),
        pytest.param(
            [("train", "happy"), ("train", "sad"), ("val", "")],
            "face",
            r"split val: no clip with a label, .*Give some clips of the manifest the split val",
            id="val has no label",
        ),
        pytest.param(
            [("train", "happy"), ("train", "sad"), ("test", "sad")],
            "face",
            r"split val: no clip with a label",
            id="val is empty",
        ),
        pytest.param(
            TWO_CLASSES,
            "conv2d3d",
            r"head conv2d3d reads face maps, which the store does not keep\. Run extract with",
            id="no face maps",
        ),
        pytest.param(
            TWO_CLASSES,
            "cascade",
            r"head cascade reads the stream 'audio', which the store does not have\. It has",
            id="no such stream",
        ),
    ],
)
def test_a_store_that_a_head_cannot_learn_from_is_refused(
    clips: list[tuple[str, str]], head: str, message: str, tmp_path: Path
) -> None:
    written = [
        clip_features(f"c{i}", split=split, label=label) for i, (split, label) in enumerate(clips)
    ]
    store = write_store(tmp_path / "store", written, classes=CLASSES, fingerprint="test")
    config = replace(QUICK, streams="context,audio") if head == "cascade" else QUICK
    with pytest.raises(UserError, match=message):
        fit_runs([store], tmp_path / "runs", [head], [0], config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_features_that_are_not_finite_are_refused_with_the_clips(
    split: str, value: float, tmp_path: Path
) -> None:
    clips = [
        clip_features(f"{place}{label}", split=place, label=label)
        for place in ("train", "val", "test")
        for label in CLASSES
    ]
    broken = next(clip for clip in clips if clip.split == split)
    broken.face_vector[1, 7] = value
    store = write_store(tmp_path / "store", clips, classes=CLASSES, fingerprint="test")
    fit_runs([store], tmp_path / "runs", ["context"], [0], QUICK)
    message = rf"store: 1 clip\(s\) with features .* not finite numbers: {split}happy \(face\)\."
    with pytest.raises(ShardError, match=message):
        fit_runs([store], tmp_path / "runs", ["face"], [0], QUICK)
    assert len(find_runs(tmp_path / "runs")) == 1
