"""No training in vain: checked before it, locked while it runs, and one failure stops no other."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock

import train.fit_jobs
from cli import cli
from features.errors import RunError
from tests.fits import fit_folds, fit_runs
from tests.train.runs.test_run_names import QUICK, SCORED, make_clips, write
from train.fit_jobs import FitProgress
from train.runs.folder import find_runs, read_run, write_run
from train.runs.locks import lock_free
from train.runs.pooled import find_pooled
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep

ROOT = Path(__file__).parents[3]
SWEEP = Sweep(head="face", config=QUICK, space=parse_grid(["lr=1e-3"], QUICK))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("store"), make_clips())


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the face head, for tests that only look."""
    folder = tmp_path_factory.mktemp("runs")
    fit_runs([store], folder, ["face"], [0], QUICK)
    return folder


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.fit_jobs.train_runs", None)
    monkeypatch.setattr("train.sweep.trainer.train_runs", None)


@pytest.mark.usefixtures("no_training")
def test_a_folder_that_cannot_be_written_is_told_before_training(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").write_text("in the way")
    message = r"runs: cannot be written \(.*\), so nothing was trained\. Name another folder"
    for start in (
        lambda runs: fit_runs([store], runs, ["face"], [0], QUICK),
        lambda runs: fit_folds([store], runs, ["face"], [0], QUICK, folds="2"),
        lambda runs: run_sweep([store], runs, SWEEP, [0]),
    ):
        with pytest.raises(RunError, match=message):
            start(tmp_path / "runs")


@pytest.mark.usefixtures("no_training")
def test_a_disk_without_room_for_a_run_is_told_before_training(store: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot be written .* so nothing was trained"):
            fit_runs([store], tmp_path / "runs", ["face"], [0], QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_the_disk_does_not_take_leaves_nothing_and_is_named(
    runs: Path, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    run = read_run(find_runs(runs)[0])
    path = tmp_path / run.path.name
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            write_run(replace(run, path=path), run.weights_path.read_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("stands_there", ["file", "folder"])
def test_what_stands_in_a_runs_place_is_told_before_training_and_stays(
    stands_there: str, store: Path, runs: Path, tmp_path: Path
) -> None:
    place = tmp_path / find_runs(runs)[0].name
    if stands_there == "folder":
        place.mkdir()
        (place / "config.json").write_text("mine")
    else:
        place.write_text("mine")
    with pytest.raises(RunError, match=r"ove (it|the folder) away") as raised:
        fit_runs([store], tmp_path, ["face"], [0], QUICK)
    assert "elete" not in str(raised.value)
    assert place.exists()


def test_runs_that_another_process_trains_are_waited_for_and_used(
    store: Path,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (done,) = find_runs(runs)
    lock = FileLock(tmp_path / f".{done.name.removesuffix('-seed0')}.lock")
    lock.acquire()
    events: list[FitProgress] = []

    def finish(seconds: float) -> None:
        assert "another process trains face; waiting" in caplog.text
        shutil.copytree(done, tmp_path / done.name)
        lock.release()

    monkeypatch.setattr("train.fit_jobs.time.sleep", finish)
    with caplog.at_level(logging.INFO):
        fit_runs([store], tmp_path, ["face", "context"], [0], QUICK, progress=events.append)
    told = [(e.head, e.state) for e in events if e.state != "training"]
    assert told == [("context", "done"), ("face", "skipped")]


def test_two_fits_at_once_train_each_run_once(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "cli.py", "fit", "--store", store, "--runs", tmp_path / "runs"]
    command += ["--head", "face", "--head", "context", "--seeds", "2", "--json"]
    for setting in ("epochs=40", "min_updates=0", "precision=float32", "patience=1"):
        command += ["--set", setting]
    both = [
        subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert json.loads(told[0][0]) == json.loads(told[1][0])
    assert len(find_runs(tmp_path / "runs")) == 4
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_the_lock_of_a_killed_process_does_not_stay(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom train.runs.locks import lock_free\n"
        "with lock_free(Path(sys.argv[1]), ['face-1']) as free:\n"
        "    print(free, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "['face-1']\n")
    assert (tmp_path / ".face-1.lock").exists()
    with lock_free(tmp_path, ["face-1"]) as free:
        assert free == ["face-1"]
        with lock_free(tmp_path, ["face-1", "face-2"]) as other:
            assert other == ["face-2"]
    assert not list(tmp_path.iterdir())


def fail_face(patch: pytest.MonkeyPatch, *, at_call: int = 0) -> None:
    """The loss of the face head is not a number; in folds, in the fold of that number from 1."""
    train_runs = train.fit_jobs.train_runs
    calls = 0

    def spoil(task: Any, *args: Any) -> Sequence[Any]:
        nonlocal calls
        calls += 1
        trained = train_runs(task, *args)
        if task.head == "face" and at_call in (0, calls):
            for run in trained:
                run.error = RunError(f"head face, seed {run.spec.seed}: the loss is nan")
        return trained

    patch.setattr("train.fit_jobs.train_runs", spoil)


@pytest.mark.usefixtures("one_thread")
def test_a_head_without_a_finite_loss_stops_no_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_face(monkeypatch)
    arguments = ["fit", "--store", store, "--runs", tmp_path, "--seeds", "2"]
    arguments += ["--head", "face", "--head", "context", "--head", "ensemble"]
    for setting in ("epochs=1", "min_updates=0", "members=face,context"):
        arguments += ["--set", setting]
    result = CliRunner().invoke(cli, [str(word) for word in arguments])
    assert result.exit_code == 1
    assert "Error: 4 of 6 run(s) came to no result; the others are complete and kept." in (
        result.output
    )
    for text in ("head face, seed 0: the loss is nan", "head face, seed 1: the loss is nan"):
        assert text in result.output
    assert "head ensemble, seed 1: its member face-" in result.output
    assert [path.name.split("-")[0] for path in find_runs(tmp_path)] == ["context", "context"]


@pytest.mark.usefixtures("one_thread")
def test_the_complete_runs_are_told_in_json_beside_the_error(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_face(monkeypatch)
    arguments = f"fit --store {store} --runs {tmp_path} --seeds 1 --head face --head context --json"
    settings = ["--set", "epochs=1", "--set", "min_updates=0"]
    result = CliRunner().invoke(cli, [*arguments.split(), *settings])
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [run["head"] for run in told["runs"]] == ["context"]
    assert told["error"].startswith("1 of 2 run(s) came to no result")
    assert "head face, seed 0: the loss is nan" in result.stderr


@pytest.mark.usefixtures("one_thread")
def test_a_fold_without_a_finite_loss_stops_no_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_face(monkeypatch, at_call=1)
    with pytest.raises(RunError, match=r"1 of 6 run\(s\) came to no result"):
        fit_folds([store], tmp_path, ["face", "context"], [0], QUICK, folds="3")
    assert len(find_runs(tmp_path)) == 5
    assert [one.head for one in find_pooled(tmp_path)] == ["context"]


def test_a_run_that_was_being_replaced_when_killed_is_not_lost(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (done,) = find_runs(runs)
    shutil.copytree(done, tmp_path / "runs" / done.name)
    changed = write(tmp_path / "store", SCORED["test clip relabelled"](make_clips()))

    def die(*_: Path) -> None:
        raise KeyboardInterrupt  # the old run is aside, the new one not yet in its place

    with monkeypatch.context() as patch:
        patch.setattr("train.runs.folder.publish", die)
        with pytest.raises(KeyboardInterrupt):
            fit_runs([changed], tmp_path / "runs", ["face"], [0], QUICK)
    assert find_runs(tmp_path / "runs") == []
    monkeypatch.setattr("train.fit_jobs.train_runs", None)
    (summary,) = fit_runs([changed], tmp_path / "runs", ["face"], [0], QUICK)
    assert summary.run == done.name
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [done.name]


def test_what_a_kill_just_after_replacing_a_run_left_goes(
    store: Path, runs: Path, tmp_path: Path
) -> None:
    (done,) = find_runs(runs)
    for name in (done.name, f".{done.name}.replaced"):
        shutil.copytree(done, tmp_path / name)
    fit_runs([store], tmp_path, ["face"], [0, 1], QUICK)  # seed 1 is still to be made
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("verb", "driver", "is_kept"),
    [
        (["fit", "--store", "s", "--runs", "r"], "train.fit.run_fit", True),
        (["report", "--runs", "r", "--out", "o"], "train.report.report.run_report", False),
        (["bundle", "verify", "b"], "features.store.bundle.verify_bundle", False),
    ],
    ids=["fit", "report", "bundle"],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_just_the_verbs_that_keep_what_they_did_say_so(
    verb: list[str],
    driver: str,
    is_kept: bool,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(driver, stop)
    result = CliRunner().invoke(cli, verb)
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert ("kept" in result.output) == is_kept
    assert ("run the same again" in result.output) == is_kept


def test_an_interrupted_verb_tells_so_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.extract.run_extract", stop)
    result = CliRunner().invoke(cli, ["extract", "--store", "s", "--json"])
    assert result.exit_code == 130
    assert json.loads(result.stdout)["error"].startswith("interrupted; clips in finished")
