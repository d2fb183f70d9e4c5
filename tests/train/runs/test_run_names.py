"""Which runs train again, which are only scored again, and that both equal a fresh folder's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.contracts import ClipFeatures
from features.store.index import Failure, write_failures
from features.store.writer import write_store
from tests.builders import clip_features
from tests.fits import fit_folds, fit_runs
from tests.train.sweep.sweeps import read_tables
from train.config import FitConfig
from train.fit_jobs import FitProgress
from train.report.report import run_report
from train.runs.folder import RunSummary, find_runs, read_run
from train.runs.pooled import find_pooled
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep

CLASSES = ("happy", "sad", "angry")
QUICK = FitConfig(
    epochs=2, min_updates=0, batch_size=8, precision="float32", members="face,context"
)

Clips = list[ClipFeatures]


def make_clips() -> Clips:
    """c00 .. c23: train 00-11, val 12-17, test 18-23; parts of one film."""
    return [
        clip_features(
            f"c{i:02}",
            n_frames=2 + i % 3,
            label=CLASSES[i % 3],
            split="train" if i < 12 else "val" if i < 18 else "test",
            subject=f"s{i // 2}",
            sha256="film",
            start_s=float(i),
            end_s=float(i + 1),
        )
        for i in range(24)
    ]


def change(number: int, **changed: Any) -> Callable[[Clips], Clips]:
    def apply(clips: Clips) -> Clips:
        return [replace(c, **changed) if i == number else c for i, c in enumerate(clips)]

    return apply


def add(**values: Any) -> Callable[[Clips], Clips]:
    # An id in the middle: the positions of others must not matter.
    return lambda clips: [clip_features("c05-new", n_frames=5, **values), *clips]


def replace_file(number: int) -> Callable[[Clips], Clips]:
    face = np.random.default_rng(9).random((2 + number % 3, 512)).astype(np.float16)
    return change(number, sha256="other", face_vector=face)


KEPT: dict[str, Callable[[Clips], Clips]] = {
    "clips in another order": lambda clips: clips[::-1],
}
SCORED: dict[str, Callable[[Clips], Clips]] = {
    "test clip added": add(split="test", label="sad"),
    "test clip without label added": add(split="test", label=""),
    "train clip without label added": add(split="train", label=""),
    "val clip without label added": add(split="val", label=""),
    "test clip relabelled": change(20, label="happy"),
    "test clip removed": lambda clips: clips[:-1],
    "test clip's file replaced": replace_file(19),
    "test clip's part corrected": change(19, start_s=19.4),
    "train clip's subject changed": change(2, subject="other"),
    "val clip's subject changed": change(13, subject="other"),
    "test clip's subject changed": change(19, subject="other"),
    "source changed": change(3, source="other"),
}
TRAINED: dict[str, Callable[[Clips], Clips]] = {
    "train clip's start corrected": change(4, start_s=4.4),
    "train clip's end corrected": change(4, end_s=5.4),
    "val clip's start corrected": change(14, start_s=14.4),
    "train clip in other phases": change(4, n_phases=5),
    "train clip's file replaced": replace_file(4),
    "val clip's file replaced": replace_file(14),
    "train clip relabelled": change(4, label="happy"),
    "val clip relabelled": change(14, label="happy"),
    "train clip's label removed": change(4, label=""),
    "val clip's label removed": change(14, label=""),
    "train clip added": add(split="train", label="sad"),
    "val clip added": add(split="val", label="sad"),
    "train clip removed": lambda clips: clips[1:],
    "val clip becomes train": change(14, split="train"),
    "train clip's id changed": change(4, clip_id="c99"),
    "decoded by another decoder": change(4, decoder="nvdec:h264"),
}
CASES = [
    pytest.param(changes, state, id=name)
    for state, table in (("skipped", KEPT), ("scored", SCORED), ("done", TRAINED))
    for name, changes in table.items()
]


def write(path: Path, clips: Sequence[ClipFeatures], classes: Sequence[str] = CLASSES) -> Path:
    return write_store(path, clips, classes=classes, fingerprint="test")


pytestmark = pytest.mark.usefixtures("one_thread")
"""Sums come in one order, whether runs are trained side by side or scored alone."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Copies a folder of runs of one head, trained once, before anything changes."""
    folder = tmp_path_factory.mktemp("trained")
    fit_runs([write(folder / "store", make_clips())], folder / "runs", ["face"], [0], QUICK)
    (run,) = find_runs(folder / "runs")

    def copy(runs: Path) -> None:
        (runs / run.name).mkdir(parents=True)
        for file in run.iterdir():
            (runs / run.name / file.name).write_bytes(file.read_bytes())

    return copy


def fit(store: Path, runs: Path, *heads: str) -> tuple[list[RunSummary], set[str]]:
    """The runs, and what became of them beside training's own events."""
    states = []
    summaries = fit_runs(
        [store], runs, heads, [0], QUICK, progress=lambda told: states.append(told.state)
    )
    return summaries, set(states) - {"training"}


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "history.csv", "predictions.csv", "metrics.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert read_run(one).config["store"]["splits"] == read_run(other).config["store"]["splits"]


@pytest.mark.parametrize(("changes", "state"), CASES)
def test_a_run_is_kept_scored_or_trained_as_what_it_has_seen_says(
    changes: Callable[[Clips], Clips],
    state: str,
    trained: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    trained(tmp_path / "runs")
    store = write(tmp_path / "store", changes(make_clips()))
    (summary,), states = fit(store, tmp_path / "runs", "face")
    assert states == {state}
    assert len(find_runs(tmp_path / "runs")) == (2 if state == "done" else 1)
    # The scores, the weights and what is told of the clips are those of training on them afresh.
    fit(store, tmp_path / "fresh", "face")
    (fresh,) = find_runs(tmp_path / "fresh")
    assert_equal_runs(tmp_path / "runs" / summary.run, fresh)


@pytest.mark.parametrize(
    "classes",
    [(*CLASSES, "fear"), ("sad", "happy", "angry")],
    ids=["class added", "classes in another order"],
)
def test_other_classes_are_another_run(
    classes: Sequence[str], trained: Callable[[Path], None], tmp_path: Path
) -> None:
    trained(tmp_path / "runs")
    store = write(tmp_path / "store", make_clips(), classes)
    (summary,), states = fit(store, tmp_path / "runs", "face")
    assert states == {"done"}
    assert len(summary.test["confusion"]) == len(classes)
    run_report(tmp_path / "runs", tmp_path / "out")
    # Two chapters, as a table of three classes and one of four cannot be one.
    assert len(list((tmp_path / "out/tables").glob("store?-table1.csv"))) == 2
    assert "Another chapter is on the same features" in (tmp_path / "out/report.md").read_text()


def test_the_clips_may_be_spread_over_stores_in_any_order(
    trained: Callable[[Path], None], tmp_path: Path
) -> None:
    trained(tmp_path / "runs")
    clips = make_clips()
    stores = [write(tmp_path / "b", clips[1::2]), write(tmp_path / "a", clips[::2])]
    states = []
    (summary,) = fit_runs(
        stores, tmp_path / "runs", ["face"], [0], QUICK, progress=lambda t: states.append(t.state)
    )
    assert states == ["skipped"]
    fit_runs(stores, tmp_path / "fresh", ["face"], [0], QUICK)
    (fresh,) = find_runs(tmp_path / "fresh")
    assert_equal_runs(tmp_path / "runs" / summary.run, fresh)


def test_the_same_context_grid_by_another_word_is_the_same_run(tmp_path: Path) -> None:
    store = write(tmp_path / "store", make_clips())
    for context in ("own", "2x2"):
        config = replace(QUICK, context=context)
        fit_runs([store], tmp_path / "runs", ["context"], [0], config)
    assert len(find_runs(tmp_path / "runs")) == 1


def test_a_new_failure_is_told_by_the_runs_that_are_there(tmp_path: Path) -> None:
    store, runs = write(tmp_path / "store", make_clips()), tmp_path / "runs"
    fit(store, runs, "face")
    write_failures(store, [Failure(clip_id="x", path="x.mp4", step="decode", reason="damaged")])
    (summary,), states = fit(store, runs, "face")
    assert states == {"scored"}
    assert read_run(runs / summary.run).config["store"]["n_failed"] == 1


def test_an_ensemble_follows_its_members(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    fit(write(tmp_path / "old", make_clips()), runs, "ensemble")
    store = write(tmp_path / "store", SCORED["test clip relabelled"](make_clips()))
    summaries, states = fit(store, runs, "ensemble")
    assert states == {"scored", "done"}
    assert len(find_runs(runs)) == 3
    fit(store, tmp_path / "fresh", "ensemble")
    for summary in summaries:
        assert_equal_runs(runs / summary.run, tmp_path / "fresh" / summary.run)
    assert fit(store, runs, "ensemble")[1] == {"skipped"}


def test_test_stores_are_scored_by_the_runs_that_are_there(
    trained: Callable[[Path], None], tmp_path: Path
) -> None:
    trained(tmp_path / "runs")
    store = write(tmp_path / "store", make_clips())
    others = [replace(clip, clip_id=f"e{clip.clip_id}") for clip in make_clips()]
    states: list[FitProgress] = []
    (summary,) = fit_runs(
        [store],
        tmp_path / "runs",
        ["face"],
        [0],
        QUICK,
        test_stores=[write(tmp_path / "other", others)],
        progress=states.append,
    )
    assert [told.state for told in states] == ["scored"]
    predictions = read_run(tmp_path / "runs" / summary.run).predictions
    test = predictions.loc[predictions["split"] == "test", "clip_id"]
    assert test.str.startswith("ec").all()
    assert len(test) == summary.test["n_clips"] == 6


def list_states(store: Path, runs: Path) -> list[str]:
    """The state of each fold's run."""
    states = []
    fit_folds(
        [store], runs, ["face"], [0], QUICK, folds="2", progress=lambda t: states.append(t.state)
    )
    return [state for state in states if state != "training"]


def test_of_folds_just_those_train_again_that_learned_from_the_clip(tmp_path: Path) -> None:
    """A corrected part: one fold tests the clip, the other learns from it."""
    runs = tmp_path / "runs"
    assert list_states(write(tmp_path / "old", make_clips()), runs) == ["done", "done"]
    store = write(tmp_path / "store", change(4, start_s=4.4)(make_clips()))
    assert sorted(list_states(store, runs)) == ["done", "scored"]
    list_states(store, tmp_path / "fresh")
    (fresh,) = find_pooled(tmp_path / "fresh")
    assert fresh in find_pooled(runs)
    run_report(runs, tmp_path / "out")
    run_report(tmp_path / "fresh", tmp_path / "out-fresh")
    # What the first fit put together is not shown: one of its runs has new scores.
    tables = [tmp_path / out / "tables/folds1.csv" for out in ("out", "out-fresh")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert not (tmp_path / "out/tables/folds2.csv").exists()


def test_folds_are_scored_again_where_only_what_they_score_changed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    list_states(write(tmp_path / "old", make_clips()), runs)
    store = write(tmp_path / "store", [replace(clip, source="film") for clip in make_clips()])
    assert list_states(store, runs) == ["scored", "scored"]
    assert list_states(store, runs) == ["skipped", "skipped"]
    assert len(find_pooled(runs)) == 1


@pytest.mark.parametrize(
    ("name", "is_new"),
    [
        ("clips in another order", False),
        ("test clip added", False),
        ("val clip without label added", False),
        ("train clip's subject changed", False),
        ("train clip's start corrected", True),
        ("val clip relabelled", True),
    ],
)
def test_a_sweep_is_another_one_just_where_its_trials_see_something_else(
    name: str, is_new: bool, tmp_path: Path
) -> None:
    sweep = Sweep(head="face", config=QUICK, space=parse_grid(["lr=1e-3"], QUICK))
    run_sweep([write(tmp_path / "old", make_clips())], tmp_path / "runs", sweep, [])
    store = write(tmp_path / "store", (KEPT | SCORED | TRAINED)[name](make_clips()))
    summary = run_sweep([store], tmp_path / "runs", sweep, [])
    assert len(list((tmp_path / "runs").glob("sweep-*"))) == 1 + is_new
    fresh = run_sweep([store], tmp_path / "fresh", sweep, [])
    assert read_tables(summary) == read_tables(fresh)


def test_the_base_value_of_a_setting_that_is_swept_does_not_matter(tmp_path: Path) -> None:
    store = write(tmp_path / "store", make_clips())
    names = {
        run_sweep(
            [store],
            tmp_path / "runs",
            Sweep(
                head="face",
                config=replace(QUICK, lr=lr),
                space=parse_grid(["lr=1e-3,2e-3"], QUICK),
            ),
            [],
        ).folder.name
        for lr in (1e-4, 1e-3)
    }
    assert len(names) == 1
