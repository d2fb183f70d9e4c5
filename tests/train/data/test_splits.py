"""Folds and other protocols: subjects stay whole, all is tested once, nothing is tested twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import ConfigError
from features.store.reader import open_store
from features.store.writer import write_store
from tests.builders import clip_features, small_store
from train.data.splits import divide_groups, make_folds, split_test_stores
from train.data.stores import check_stores

CLASSES = ("happy", "sad", "angry")


def clip_table(n_subjects: int, seed: int = 0, **changed: object) -> pd.DataFrame:
    """1 to 9 clips a subject, each with its own mix of classes."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n_subjects):
        mix = rng.dirichlet([1, 1, 1])
        rows += [
            {"subject": f"s{i}", "label": rng.choice(CLASSES, p=mix), "source": f"film{i % 3}"}
            for _ in range(rng.integers(1, 10))
        ]
    table = pd.DataFrame(rows).assign(**changed)
    return table.assign(clip_id=[f"c{i:03}" for i in range(len(table))])


@given(n_subjects=st.integers(8, 30), n_folds=st.integers(2, 4), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_every_clip_is_tested_once_and_subjects_stay_whole(
    n_subjects: int, n_folds: int, seed: int
) -> None:
    clips = clip_table(n_subjects, seed)
    folds = make_folds(clips, str(n_folds))
    tested = [c for fold in folds for c, split in fold.splits.items() if split == "test"]
    assert sorted(tested) == sorted(clips["clip_id"])
    for fold in folds:
        splits = clips.assign(split=clips["clip_id"].map(fold.splits))
        assert (splits.groupby("subject")["split"].nunique() == 1).all()
        assert set(splits["split"]) == {"train", "val", "test"}


def test_folds_have_like_sizes_and_like_shares_of_each_class() -> None:
    clips = clip_table(60)
    part = divide_groups(clips["subject"], clips["label"], 5)
    counts = pd.crosstab(part, clips["label"]).to_numpy()
    shares = counts / counts.sum(0)
    assert np.abs(shares - 0.2).max() < 0.03


def test_folds_do_not_depend_on_the_order_of_clips() -> None:
    clips = clip_table(12)
    shuffled = clips.sample(frac=1, random_state=1)
    assert make_folds(clips, "3") == make_folds(shuffled, "3")
    assert len({fold.key for fold in make_folds(clips, "3")}) == 1
    assert make_folds(clips, "3")[0].key != make_folds(clips, "4")[0].key


def test_a_clip_without_a_subject_is_one_of_its_own() -> None:
    clips = clip_table(4, subject="")
    folds = make_folds(clips, str(len(clips)))
    assert all(list(fold.splits.values()).count("test") == 1 for fold in folds)


def test_leaving_a_source_out_tests_on_all_of_it() -> None:
    clips = clip_table(12)
    folds = make_folds(clips, "source")
    assert [fold.name for fold in folds] == ["film0", "film1", "film2"]
    for fold in folds:
        splits = clips.assign(split=clips["clip_id"].map(fold.splits))
        is_test = splits["split"] == "test"
        assert (is_test == (splits["source"] == fold.name)).all()
        rest = splits[~is_test]
        assert (rest.groupby("subject")["split"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("folds", "changed", "message"),
    [
        pytest.param("some", {}, "expected a number of folds by subject, 2 or more", id="a word"),
        pytest.param("1", {}, "2 or more, or the word source", id="one fold"),
        pytest.param("9", {}, r"show 6 subject\(s\), expected 9 or more", id="too many folds"),
        pytest.param("source", {"source": "tv"}, "from 1 source", id="one source"),
        pytest.param("2", {"label": ""}, "with a label are left to train on", id="no label"),
    ],
)
def test_folds_that_cannot_be_made_are_explained(
    folds: str, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_folds(clip_table(6, **changed), folds)


def test_a_store_in_other_splits_gives_the_same_features(tmp_path: Path) -> None:
    store = open_store(small_store(tmp_path))
    view = store.with_splits({"c0": "test", "c4": "train", "elsewhere": "val"})
    assert view.clips[["clip_id", "split"]].to_numpy().tolist() == [["c0", "test"], ["c4", "train"]]
    assert [clip.split for clip in view] == ["test", "train"]
    whole = {clip.clip_id: clip for clip in store}
    for i, clip in enumerate(view):
        np.testing.assert_array_equal(clip.face_vector, whole[clip.clip_id].face_vector)
        assert view.read_clip(i).split == clip.split
    assert len(store) == 6


def test_test_stores_give_test_and_the_others_train_and_val(tmp_path: Path) -> None:
    a = open_store(small_store(tmp_path / "a"))
    clips = [clip_features(f"d{i}", split=s) for i, s in enumerate(["test", "train", "test"])]
    c = open_store(write_store(tmp_path / "c", clips, classes=a.classes, fingerprint=a.fingerprint))
    learned, tested = split_test_stores([a], [c])
    assert set(learned.clips["split"]) == {"train", "val"}
    assert tested.clips["clip_id"].tolist() == ["d0", "d2"]


def test_a_clip_in_a_store_and_a_test_store_is_refused(tmp_path: Path) -> None:
    a = open_store(small_store(tmp_path / "a"))
    with pytest.raises(ConfigError, match=r"clip c2: stands in .* might score what was trained on"):
        split_test_stores([a], [a])


def test_a_file_that_is_trained_and_tested_on_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"a": ("x", 0.0), "b": ("x", 5.0), "c": ("y", 0.0), "d": ("", 0.0)}
    stores = [
        open_store(
            write_store(
                tmp_path / split,
                [
                    clip_features(
                        f"{split}-{name}", split=split, sha256=sha256, start_s=start_s, end_s=9.0
                    )
                    for name, (sha256, start_s) in parts.items()
                    if (split, name) != ("test", "c")
                ],
                classes=CLASSES,
                fingerprint="test",
            )
        )
        for split in ("train", "test")
    ]
    check_stores(stores)
    (record,) = caplog.records
    assert "4 clips are the same files as clips of another split" in record.getMessage()
    assert ": test-a (test), test-b (test), train-a (train), train-b (train)." in (
        record.getMessage()
    )


def test_a_test_store_without_test_clips_is_refused(tmp_path: Path) -> None:
    a = open_store(small_store(tmp_path / "a"))
    clips = [clip_features("d0", split="train")]
    c = open_store(write_store(tmp_path / "c", clips, classes=a.classes, fingerprint="test"))
    with pytest.raises(ConfigError, match="no clip with the split test among its 1"):
        split_test_stores([a], [c])


def test_stores_take_the_splits_of_a_fold(tmp_path: Path) -> None:
    store = open_store(small_store(tmp_path, n_clips=9))
    for fold in make_folds(store.clips, "3"):
        view = store.with_splits(fold.splits)
        assert dict(zip(view.clips["clip_id"], view.clips["split"], strict=True)) == fold.splits
