"""A sweep that was killed goes on, several machines share one: nothing is lost or done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from optuna.exceptions import StorageInternalError

from features.errors import ConfigError, RunError
from tests.train.sweep.sweeps import (
    GRID,
    QUICK,
    SPACE,
    draw,
    open_trials,
    read_tables,
)
from train.sweep.batches import Sweep, SweepProgress
from train.sweep.storage import TrialStorage
from train.sweep.sweep import SweepSummary, run_sweep
from train.sweep.trainer import TrialTrainer

ROOT = Path(__file__).parents[3]


pytestmark = pytest.mark.usefixtures("small_batches")


@pytest.fixture(scope="module")
def whole(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepSummary:
    """A sweep of six drawn trials that nothing interrupted."""
    return run_sweep([swept], tmp_path_factory.mktemp("runs"), draw(), [0])


_KILLED = """
import os, signal, sys
from pathlib import Path
import train.sweep.sweep
from tests.train.sweep.sweeps import batches_of_three, draw
from train.sweep.storage import TrialStorage

store, runs, when = sys.argv[1:]
written = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def progress(told):
    if when == "while training" and told.n_done == 3 and told.epoch == 2:
        die()

def fit_progress(told):
    if when == "at the best" and told.epoch == 2:
        die()

write = TrialStorage.write
def write_and_die(self, trial_id, trial):
    global written
    write(self, trial_id, trial)
    written += 1
    if when == "between trials" and written == 4:
        die()

TrialStorage.write = write_and_die
with batches_of_three():
    train.sweep.sweep.run_sweep(
        [Path(store)], Path(runs), draw(), [0], progress=progress, fit_progress=fit_progress
    )
"""


@pytest.mark.parametrize(
    ("when", "n_done"), [("while training", 3), ("between trials", 4), ("at the best", 6)]
)
def test_a_killed_sweep_goes_on_and_ends_with_the_same_table(
    when: str, n_done: int, swept: Path, whole: SweepSummary, tmp_path: Path
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(swept), str(tmp_path), when],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    (folder,) = tmp_path.glob("sweep-*")
    left = open_trials(folder)
    assert (len(left.read()), left.list_claimed()) == (n_done, set(range(n_done, 6)))
    assert not (folder / "sweep.json").exists()

    resumed = run_sweep([swept], tmp_path, draw(), [0])
    assert read_tables(resumed) == read_tables(whole)
    assert (resumed.best, resumed.runs) == (whole.best, whole.runs)
    assert left.list_claimed() == set()


def test_an_interrupted_sweep_leaves_no_trial_claimed(swept: Path, tmp_path: Path) -> None:
    def interrupt(told: SweepProgress) -> None:
        if told.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep([swept], tmp_path, draw(), [], progress=interrupt)
    (folder,) = tmp_path.glob("sweep-*")
    storage = open_trials(folder)
    assert (storage.read(), storage.list_claimed()) == ({}, set())


def test_a_finished_sweep_tries_nothing_again_and_more_trials_join(
    swept: Path, whole: SweepSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_sweep([swept], tmp_path, draw(3), [])
    longer = run_sweep([swept], tmp_path, draw(5), [])
    pd.testing.assert_frame_equal(first.trials, longer.trials.iloc[:3])
    # The same is tried, however many are asked for at a time.
    for name in SPACE:
        assert longer.trials[name].tolist() == whole.trials[name].tolist()[:5]
    monkeypatch.setattr(TrialTrainer, "train", None)
    again = run_sweep([swept], tmp_path, draw(5), [])
    pd.testing.assert_frame_equal(again.trials, longer.trials)


def test_another_grid_is_a_sweep_of_its_own(swept: Path, tmp_path: Path) -> None:
    grids = [GRID, {"lr": GRID["lr"]}]
    sweeps = [Sweep(head="face", config=QUICK, space=grid) for grid in grids]
    one, other = (run_sweep([swept], tmp_path, sweep, []) for sweep in sweeps)
    assert one.folder != other.folder
    assert (len(one.trials), len(other.trials)) == (4, 2)
    again = run_sweep([swept], tmp_path, sweeps[0], [])
    pd.testing.assert_frame_equal(again.trials, one.trials)


def test_a_second_process_at_one_sweep_is_refused(
    swept: Path, whole: SweepSummary, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder, tmp_path / whole.folder.name)
    lock = FileLock(tmp_path / whole.folder.name / ".lock")
    with lock, pytest.raises(ConfigError, match=r"another process is at .* share the trials by"):
        run_sweep([swept], tmp_path, draw(), [])


def test_two_machines_share_the_trials(swept: Path, whole: SweepSummary, tmp_path: Path) -> None:
    url = f"journal:{tmp_path}/shared.log"
    elsewhere = TrialStorage(url, whole.folder.name.removeprefix("sweep-"), SPACE)
    of_first = whole.trials.set_index("trial")[["lr", "class_weights"]].to_dict("index")
    ids = elsewhere.claim({slot: of_first[slot] for slot in range(3)})
    here = run_sweep([swept], tmp_path / "here", draw(), [], storage=url)
    assert here.trials["trial"].tolist() == [3, 4, 5]
    assert elsewhere.list_claimed() == {0, 1, 2}
    elsewhere.give_up(ids.values())
    here = run_sweep([swept], tmp_path / "here", draw(), [0], storage=url)
    assert here.trials["trial"].tolist() == list(range(6))
    pd.testing.assert_frame_equal(here.trials.iloc[:3], whole.trials.iloc[:3])


def test_a_machine_with_nothing_to_take_waits_for_the_first_trial(
    swept: Path, whole: SweepSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    elsewhere = TrialStorage(url, whole.folder.name.removeprefix("sweep-"), SPACE)
    done = open_trials(whole.folder).read()
    ids = elsewhere.claim({slot: trial.settings for slot, trial in done.items()})
    waited = []

    def finish_one(seconds: float) -> None:
        waited.append(seconds)
        elsewhere.write(ids[2], done[2])

    monkeypatch.setattr("train.sweep.batches.time.sleep", finish_one)
    here = run_sweep([swept], tmp_path / "here", draw(), [], storage=url)
    assert (len(waited), here.trials["trial"].tolist()) == (1, [2])


def test_a_torn_journal_is_told(swept: Path, tmp_path: Path) -> None:
    file = tmp_path / "shared.log"
    run_sweep([swept], tmp_path, draw(3), [], storage=f"journal:{file}")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"the storage of the trials failed \(Expecting"):
        run_sweep([swept], tmp_path, draw(), [], storage=f"journal:{file}")
    with pytest.raises(
        ConfigError, match=r"shared\.log: cannot be opened .* delete a damaged file"
    ):
        run_sweep([swept], tmp_path, draw(), [], storage=f"journal:{file}")


def test_a_storage_that_is_lost_on_the_way_is_told_and_loses_nothing(
    swept: Path, whole: SweepSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> None:
        raise StorageInternalError("An exception is raised during the commit.")

    with monkeypatch.context() as patch:
        patch.setattr(TrialStorage, "write", lose)
        with pytest.raises(RunError, match=r"the storage of the trials failed .* finished trials"):
            run_sweep([swept], tmp_path, draw(), [])
    assert read_tables(run_sweep([swept], tmp_path, draw(), [])) == read_tables(whole)
