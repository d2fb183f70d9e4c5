"""sweep: all points tried, test never read, the same table after a kill, the best ones trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock

import features.store
import train.sweep_batches
from cli import cli
from features.errors import ConfigError, RunError
from features.store import open_store
from features.store_writer import write_store
from tests.builders import clip_features
from train.config import FitConfig
from train.fit import run_fit
from train.folds import leave_out_test
from train.runs import find_runs, read_run
from train.search import Choices, Range, parse_grid, parse_space
from train.sweep import SweepSummary, run_sweep
from train.sweep_batches import Sweep
from train.sweep_training import FIRST_SEED, TrialTrainer
from train.trials import Trial, TrialStorage

ROOT = Path(__file__).parent.parent
CLASSES = ("happy", "sad", "angry")
QUICK = FitConfig(epochs=3, min_steps=0, batch_size=8, precision="float32", patience=1.0)
GRID = parse_grid(["lr=1e-4,2e-3", "dropout=0,0.4"], QUICK)
SPACE = parse_space(["lr=1e-4..3e-3", "class_weights=none,balanced"], QUICK)


def hard_store(path: Path, *, test_seed: int = 0) -> Path:
    """24 clips of 2 steps, half told by their faces; the test clips, a third, are of their seed."""
    rng = np.random.default_rng(5)
    faces = rng.random((3, 512))
    clips = []
    for i in range(24):
        split = ("train", "train", "val", "test")[i // 3 % 4]
        noise, label = rng.random((2, 512)), CLASSES[i % 3]
        if split == "test":
            of_test = np.random.default_rng([test_seed, i])
            noise, label = of_test.random((2, 512)), CLASSES[of_test.integers(3)]
        clips.append(
            clip_features(
                f"c{i:02}",
                n_frames=2,
                label=label,
                split=split,
                subject=f"{split}{i % 2}",
                face_vector=(0.3 * faces[i % 3] + noise).astype(np.float16),
            )
        )
    return write_store(path, clips, classes=CLASSES, fingerprint="test")


@pytest.fixture(scope="module", autouse=True)
def _as_in_other_processes() -> Iterator[None]:
    """One thread, and three trials a batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.sweep_batches, "TRIALS_AT_ONCE", 3)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hard_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepSummary:
    """A sweep of six drawn trials that nothing interrupted."""
    return run_sweep([store], tmp_path_factory.mktemp("runs"), draw(), [0])


def draw(n_trials: int = 6) -> Sweep:
    return Sweep(head="face", config=QUICK, space=SPACE, n_trials=n_trials)


def read_tables(summary: SweepSummary) -> list[str]:
    names = ("trials.csv", "importance.csv")
    return [(summary.folder / name).read_text() for name in names]


def test_a_grid_tries_every_combination_as_fit_would_train_it(store: Path, tmp_path: Path) -> None:
    sweep = Sweep(head="face", config=QUICK, space=GRID)
    table = run_sweep([store], tmp_path, sweep, []).trials
    points = [(1e-4, 0.0), (1e-4, 0.4), (2e-3, 0.0), (2e-3, 0.4)]
    assert list(zip(table["lr"], table["dropout"], strict=True)) == points
    assert set(table["state"]) == {"complete"}
    for row in table.to_dict("records"):
        config = replace(QUICK, lr=row["lr"], dropout=row["dropout"])
        (alone,) = run_fit([store], tmp_path / "alone", ["face"], [FIRST_SEED], config)
        assert row["val_map_mec"] == pytest.approx(alone.val["map_mec"])
        assert row["best_epoch"] == alone.best_epoch


def test_the_best_settings_are_trained_over_seeds_as_fit_trains(
    store: Path, tmp_path: Path
) -> None:
    sweep = Sweep(head="face", config=QUICK, space=GRID)
    summary = run_sweep([store], tmp_path / "runs", sweep, [0, 1])
    complete = summary.trials.sort_values(["val_map_mec", "val_acc"], ascending=False)
    assert summary.best.value == complete["val_map_mec"].iloc[0]
    config = replace(QUICK, **summary.best.settings)
    expected = run_fit([store], tmp_path / "other", ["face"], [0, 1], config)
    assert list(summary.runs) == expected
    assert all(run.test["n_clips"] == 6 for run in summary.runs)
    assert len(find_runs(tmp_path / "runs")) == 2
    told = json.loads((summary.folder / "sweep.json").read_text())
    assert told["runs"] == [run.run for run in summary.runs]
    assert told["best"]["settings"] == summary.best.settings


def test_points_of_other_shapes_are_tried_too(store: Path, tmp_path: Path) -> None:
    grid = parse_grid(["batch_size=4,8", "faces=all,largest"], QUICK)
    summary = run_sweep([store], tmp_path, Sweep(head="face", config=QUICK, space=grid), [])
    assert len(summary.trials.drop_duplicates(["batch_size", "faces"])) == 4
    # One face a frame: both choices of faces read the same rows.
    assert summary.trials.groupby("batch_size")["val_map_mec"].nunique().tolist() == [1, 1]


def test_a_trial_of_several_seeds_counts_by_its_median(store: Path, tmp_path: Path) -> None:
    sweep = Sweep(head="face", config=QUICK, space=parse_grid(["lr=1e-4"], QUICK), trial_seeds=3)
    (row,) = run_sweep([store], tmp_path / "sweep", sweep, []).trials.to_dict("records")
    seeds = range(FIRST_SEED, FIRST_SEED + 3)
    alone = run_fit([store], tmp_path / "alone", ["face"], seeds, QUICK)
    assert row["val_map_mec"] == pytest.approx(sorted(run.val["map_mec"] for run in alone)[1])


def test_trials_read_no_test_clip(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    read = features.store.iter_shard_clips

    def note(index: Any, rows: Any, **kwargs: Any) -> Any:
        splits.extend(index.columns["split"][row] for row in rows)
        return read(index, rows, **kwargs)

    monkeypatch.setattr(features.store, "iter_shard_clips", note)
    run_sweep([store], tmp_path, draw(3), [])
    assert set(splits) == {"train", "val"}
    run_sweep([store], tmp_path, draw(3), [0])
    assert "test" in splits


def test_another_test_split_gives_the_same_sweep(
    store: Path, whole: SweepSummary, tmp_path: Path
) -> None:
    other = hard_store(tmp_path / "store", test_seed=1)
    ours, theirs = (open_store(path).clips for path in (store, other))
    assert (ours["label"] != theirs["label"]).any()
    sweep = run_sweep([other], tmp_path / "runs", draw(), [])
    assert sweep.folder.name == whole.folder.name
    assert read_tables(sweep) == read_tables(whole)


_KILLED = """
import os, signal, sys
import train.sweep_batches
from pathlib import Path
from tests.test_sweep import draw
from train.sweep import run_sweep
from train.trials import TrialStorage

train.sweep_batches.TRIALS_AT_ONCE = 3
store, runs, when = sys.argv[1:]
written = 0

def progress(told):
    if when == "while training" and told.n_done == 3 and told.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

write = TrialStorage.write
def write_and_die(self, trial_id, trial):
    global written
    write(self, trial_id, trial)
    written += 1
    if when == "between trials" and written == 4:
        os.kill(os.getpid(), signal.SIGKILL)

TrialStorage.write = write_and_die
run_sweep([Path(store)], Path(runs), draw(), [0], progress=progress)
"""


@pytest.mark.parametrize(("when", "n_done"), [("while training", 3), ("between trials", 4)])
def test_a_killed_sweep_goes_on_and_ends_with_the_same_table(
    when: str, n_done: int, store: Path, whole: SweepSummary, tmp_path: Path
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(store), str(tmp_path / "killed"), when],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "killed").glob("sweep-*")
    left = TrialStorage(
        f"sqlite:///{folder}/trials.db", folder.name.removeprefix("sweep-"), draw().space
    )
    assert (len(left.read()), left.list_claimed()) == (n_done, set(range(n_done, 6)))

    resumed = run_sweep([store], tmp_path / "killed", draw(), [0])
    assert read_tables(resumed) == read_tables(whole)
    assert resumed.runs == whole.runs
    assert left.list_claimed() == set()


def test_an_interrupted_sweep_leaves_no_trial_claimed(store: Path, tmp_path: Path) -> None:
    def interrupt(told: train.sweep_batches.SweepProgress) -> None:
        if told.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep([store], tmp_path, draw(), [], progress=interrupt)
    (folder,) = tmp_path.glob("sweep-*")
    storage = TrialStorage(
        f"sqlite:///{folder}/trials.db", folder.name.removeprefix("sweep-"), SPACE
    )
    assert (storage.read(), storage.list_claimed()) == ({}, set())


def test_a_finished_sweep_tries_nothing_again_and_more_trials_join(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_sweep([store], tmp_path, draw(3), [])
    longer = run_sweep([store], tmp_path, draw(5), [])
    pd.testing.assert_frame_equal(first.trials, longer.trials.iloc[:3])
    monkeypatch.setattr(TrialTrainer, "train", None)
    again = run_sweep([store], tmp_path, draw(5), [])
    pd.testing.assert_frame_equal(again.trials, longer.trials)


def test_two_machines_share_the_trials(store: Path, whole: SweepSummary, tmp_path: Path) -> None:
    url = f"journal:{tmp_path}/shared.log"
    name = whole.folder.name.removeprefix("sweep-")
    elsewhere = TrialStorage(url, name, SPACE)
    of_first = whole.trials.set_index("trial")[["lr", "class_weights"]].to_dict("index")
    ids = elsewhere.claim({slot: of_first[slot] for slot in range(3)})
    here = run_sweep([store], tmp_path / "here", draw(), [], storage=url)
    assert here.trials["trial"].tolist() == [3, 4, 5]
    assert elsewhere.list_claimed() == {0, 1, 2}
    elsewhere.give_up(ids.values())
    here = run_sweep([store], tmp_path / "here", draw(), [0], storage=url)
    assert here.trials["trial"].tolist() == list(range(6))
    pd.testing.assert_frame_equal(here.trials.iloc[:3], whole.trials.iloc[:3])


def test_a_slot_is_claimed_once(tmp_path: Path) -> None:
    url, settings = f"sqlite:///{tmp_path}/x.db", {"lr": 1e-3, "class_weights": "none"}
    one, other = TrialStorage(url, "s", SPACE), TrialStorage(url, "s", SPACE)
    ids = one.claim({0: settings})
    assert other.claim({0: settings, 1: settings}) == {}
    assert one.list_claimed() == {0}
    trial = Trial(
        slot=0,
        settings=settings,
        state="complete",
        by_epoch={1: 0.25, 2: 0.5},
        result={"acc": 0.5, "loss": 1.0, "best_epoch": 2, "n_epochs": 2},
    )
    one.write(ids[0], trial)
    assert other.read() == {0: trial}


def test_a_claim_that_nobody_renews_is_given_up(tmp_path: Path) -> None:
    storage = TrialStorage(f"sqlite:///{tmp_path}/x.db", "s", SPACE)
    storage.claim({0: {"lr": 1e-3, "class_weights": "none"}})
    storage.give_up_dead(60.0)
    assert storage.list_claimed() == {0}
    storage.give_up_dead(0.0)
    assert (storage.list_claimed(), storage.read()) == (set(), {})


def test_a_trial_that_is_ended_leaves_the_others_as_they_were(store: Path) -> None:
    trainer = TrialTrainer(leave_out_test([open_store(store)]), "face")
    configs = [replace(QUICK, lr=lr) for lr in (1e-3, 2e-3)]
    ended, other = trainer.train(configs, 1, lambda i, e, _: i == 0 and e == 2, lambda _: None)
    whole = trainer.train(configs, 1, lambda *_: False, lambda _: None)
    assert (ended.state, ended.result["n_epochs"], set(ended.by_epoch)) == ("pruned", 2, {1, 2})
    assert other.state == "complete"
    assert other.by_epoch == pytest.approx(whole[1].by_epoch)


def test_a_trial_below_the_median_of_earlier_ones_is_pruned(store: Path) -> None:
    result = {"acc": 0.5, "loss": 1.0, "best_epoch": 1, "n_epochs": 8}
    done = {
        slot: Trial(
            slot=slot,
            settings={"lr": 1e-3 + slot / 1e4, "class_weights": "none"},
            state="complete",
            by_epoch={1: 0.5, 2: 0.5, 3: 0.5, 4: 0.6} if slot else {1: 0.9},
            result=result,
        )
        for slot in range(3)
    }

    def judge(slots: range, values: list[float]) -> list[bool]:
        batch = train.sweep_batches._plan_batch(draw(), slots, [], done, n_epochs=8)
        return [batch.judge(0, epoch, value) for epoch, value in enumerate(values, 1)]

    # Nothing in the first quarter of the epochs; then the median of what each had by then.
    assert judge(range(3, 6), [0.1, 0.4, 0.6, 0.6]) == [False, True, False, False]
    assert judge(range(3), [0.1, 0.1, 0.1, 0.1]) == [False] * 4


def test_a_grid_without_a_finite_loss_ends_in_advice(tmp_path: Path) -> None:
    faces = np.full((3, 512), np.nan, np.float16)
    clips = [
        clip_features(f"c{i}", label=CLASSES[i % 3], split=split, face_vector=faces)
        for i, split in enumerate(["train"] * 4 + ["val"] * 2)
    ]
    path = write_store(tmp_path / "store", clips, classes=CLASSES, fingerprint="test")
    with pytest.raises(RunError, match="none of 4 trials has come to a finite loss"):
        run_sweep([path], tmp_path / "runs", Sweep(head="face", config=QUICK, space=GRID), [0])


def test_a_second_process_at_one_sweep_is_refused(store: Path, tmp_path: Path) -> None:
    folder = run_sweep([store], tmp_path, draw(3), []).folder
    with FileLock(folder / ".lock"), pytest.raises(ConfigError, match="another process is at"):
        run_sweep([store], tmp_path, draw(3), [])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        pytest.param(["lr"], "expected KEY=LOW..HIGH or KEY=A,B,C", id="no value"),
        pytest.param(["lr=1e-2..1e-4"], "the lower one first", id="ends exchanged"),
        pytest.param(["faces=all..track"], "expected two numbers", id="range of words"),
        pytest.param(["lr=1e-4,1e-4"], "a value stands twice", id="value twice"),
        pytest.param(["lr=1e-4,1e-3", "lr=1e-2,1e-1"], "lr is given twice", id="key twice"),
        pytest.param(["rate=1..2"], "Known settings", id="unknown key"),
        pytest.param(["dropout=0..1"], "out of range", id="end out of range"),
    ],
)
def test_a_wrong_space_is_explained(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space(texts, QUICK)


def test_spaces_are_read_from_texts() -> None:
    space = parse_space(["lr=1e-5..1e-3", "batch_size=8..16", "faces=all,track"], QUICK)
    assert space == {
        "lr": Range(low=1e-5, high=1e-3),
        "batch_size": Range(low=8, high=16, whole=True),
        "faces": Choices(values=("all", "track")),
    }
    assert [of_key.log for of_key in space.values() if isinstance(of_key, Range)] == [True, False]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_the_verb_prints_trials_what_mattered_and_runs(store: Path, tmp_path: Path) -> None:
    arguments = ["sweep", "--store", store, "--runs", tmp_path, "--head", "face"]
    arguments += ["--grid", "lr=1e-4,1e-3", "--seeds", "1"]
    for setting in ("epochs=2", "min_steps=0", "precision=float32"):
        arguments += ["--set", setting]
    told = json.loads(invoke(*arguments, "--json").stdout)
    assert [trial["lr"] for trial in told["trials"]] == [1e-4, 1e-3]
    assert {row["setting"] for row in told["importance"]} == {"lr"}
    (run,) = told["runs"]
    settings = read_run(tmp_path / run["run"]).config["settings"]
    assert settings["lr"] == told["best"]["settings"]["lr"]
    assert (settings["epochs"], settings["context"]) == (2, "2x2")
    text = invoke(*arguments).stdout
    assert "what mattered:" in text
    assert f"--set lr={settings['lr']}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --grid KEY=A,B,C or --trials N"),
        (["--grid", "lr=1e-3", "--trials", "3"], "give either"),
        (["--grid", "lr=1e-3", "--search", "lr=1..2"], "--search goes with --trials"),
        (["--trials", "3", "--storage", "nowhere"], "storage nowhere: cannot be opened"),
        (["--grid", "lr=fast"], "expected a number"),
    ],
)
def test_wrong_usage_exits_2(
    arguments: list[str], message: str, store: Path, tmp_path: Path
) -> None:
    result = invoke("sweep", "--store", store, "--runs", tmp_path, "--head", "face", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
