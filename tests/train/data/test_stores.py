"""What runs tell of their stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from features.contracts import ClipFeatures
from features.store.reader import Store, open_store
from features.store.writer import write_store
from tests.builders import clip_features
from train.data.stores import describe_stores

CLASSES = ("happy", "sad", "angry")


def make_clip(clip_id: str, label: str, joy: list[float]) -> ClipFeatures:
    clip = replace(clip_features(clip_id, n_faces=len(joy)), label=label)
    expression = np.array([[p, 1 - p] for p in joy], np.float16).reshape(-1, 2)
    return replace(clip, face_expression=expression)


def make_store(
    path: Path, *clips: ClipFeatures, names: tuple[str, ...] = ("joy", "sorrow")
) -> Store:
    write_store(path, clips, classes=CLASSES, fingerprint="x", expressions=names)
    return open_store(path)


def test_every_face_of_a_class_counts_once_in_its_mean_expression(tmp_path: Path) -> None:
    stores = [
        make_store(
            tmp_path / "a",
            make_clip("a", "happy", [1.0, 0.5, 0.75]),
            make_clip("b", "sad", [0.25]),
            make_clip("c", "angry", []),
            make_clip("d", "", [1.0]),
        ),
        make_store(tmp_path / "b", make_clip("e", "happy", [0.25])),
    ]
    assert describe_stores(stores)["expressions"] == {
        "happy": {"joy": 0.625, "sorrow": 0.375},
        "sad": {"joy": 0.25, "sorrow": 0.75},
    }


def test_expressions_of_other_names_are_not_averaged(tmp_path: Path) -> None:
    stores = [
        make_store(tmp_path / "a", make_clip("a", "happy", [1.0])),
        make_store(tmp_path / "b", make_clip("b", "happy", [1.0]), names=("sorrow", "joy")),
    ]
    assert describe_stores(stores)["expressions"] == {}


def test_a_store_without_expressions_has_no_mean_of_them(tmp_path: Path) -> None:
    clips = [replace(clip_features("a"), label="happy")]
    write_store(tmp_path / "a", clips, classes=CLASSES, fingerprint="x")
    assert describe_stores([open_store(tmp_path / "a")])["expressions"] == {}
