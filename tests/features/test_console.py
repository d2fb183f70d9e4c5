"""Progress where no terminal is: lines with counts, rate and time left, at their time."""

from __future__ import annotations

import io
import json
import queue
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from features import console
from features.console import ProgressLines, describe_time, repeat_lines, show_progress
from features.store.bundle import pack_bundle, unpack_bundle, verify_bundle
from features.store.reader import open_store, verify_store
from pipeline.commands import count_clips
from pipeline.extract import ExtractProgress
from tests.builders import small_store
from train.fit_jobs import FitProgress
from train.progress import TrialCounter, count_runs
from train.sweep.batches import SweepProgress

ROOT = Path(__file__).parents[2]


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Shown:
    """What was shown last."""

    calls: list[tuple[int, int | None, float, int | None, str]] = field(default_factory=list)

    def __call__(
        self,
        n_done: int,
        n_all: int | None,
        *,
        under_way: float = 0.0,
        n_failed: int | None = None,
        note: str = "",
    ) -> None:
        self.calls.append((n_done, n_all, under_way, n_failed, note))


STATES = {
    "clips: counted, failed, rate, time left": (
        {"n_done": 120, "n_all": 1040, "n_failed": 2, "note": "92.1 frames/s"},
        "extract: 120 of 1040 clips, 2 failed, 4.0 clips/s, 3 min 50 s left, 92.1 frames/s",
    ),
    "nothing done has no rate": ({"n_done": 0, "n_all": 9}, "extract: 0 of 9 clips"),
    "what is under way counts for the rate, not among the done": (
        {"n_done": 0, "n_all": 2, "under_way": 0.5},
        "extract: 0 of 2 clips, 1.0 clips/min, 1 min 30 s left",
    ),
    "a slow rate is told by the hour": (
        {"n_done": 0, "n_all": 1, "under_way": 0.25},
        "extract: 0 of 1 clips, 30.0 clips/h, 1 min 30 s left",
    ),
    "where nobody knows how many there are": (
        {"n_done": 60, "n_all": None},
        "extract: 60 clips, 2.0 clips/s",
    ),
}


@pytest.mark.parametrize(("state", "line"), STATES.values(), ids=STATES)
def test_a_line_tells_how_far_a_verb_is_after_30_s(state: dict[str, object], line: str) -> None:
    clock = Clock()
    lines = ProgressLines("extract", "clips", clock=clock)
    lines.show(**state)  # type: ignore[arg-type]
    clock.now_s += 30
    assert lines.describe() == line


def test_before_anything_is_counted_a_line_tells_for_how_long() -> None:
    clock = Clock()
    lines = ProgressLines("bundle pack", "files", clock=clock)
    clock.now_s += 90
    assert lines.describe() == "bundle pack: begun 1 min 30 s ago"


@pytest.mark.parametrize(
    ("finished", "line"),
    [
        (True, "extract: 4 of 8 clips, 1 failed, 2.0 clips/s, done in 2 s"),
        (False, "extract: 4 of 8 clips, 1 failed, 2.0 clips/s, stopped after 2 s"),
    ],
)
def test_the_last_line_tells_what_was_done(finished: bool, line: str) -> None:
    clock = Clock()
    lines = ProgressLines("extract", "clips", clock=clock)
    lines.show(4, 8, n_failed=1)
    clock.now_s += 2
    assert lines.describe_end(finished=finished) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_told_in_two_units(seconds: float, text: str) -> None:
    assert describe_time(seconds) == text


def test_lines_are_repeated_while_nothing_moves() -> None:
    clock, written = Clock(), queue.Queue[str]()
    lines = ProgressLines("fit", "runs", clock=clock)
    with repeat_lines(lines, written.put, interval_s=0.001):
        assert written.get(timeout=60) == "fit: begun 0 s ago"
        clock.now_s += 10
        lines.show(1, 2)
        while (line := written.get(timeout=60)).startswith("fit: begun"):
            pass
        assert line == "fit: 1 of 2 runs, 6.0 runs/min, 10 s left"
    assert list(written.queue)[-1] == "fit: 1 of 2 runs, 6.0 runs/min, done in 10 s"


def test_work_that_breaks_off_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    def break_off() -> None:
        with show_progress("extract", "clips") as show:
            show(1, 3, n_failed=0)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        break_off()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("extract: 1 of 3 clips, 0 failed, ")
    assert captured.err.endswith("stopped after 0 s\n")


def test_work_without_a_step_says_nothing_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("extract", "clips"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with show_progress("extract", "clips") as show:
        show(3, 8, n_failed=1)
    assert "3/8" in terminal.getvalue()
    assert "1 failed" in terminal.getvalue()


def test_without_a_terminal_rich_is_not_loaded() -> None:
    code = (
        "import sys\nfrom features.console import configure_logging, show_progress\n"
        "configure_logging(verbose=False)\n"
        "with show_progress('extract', 'clips') as show: show(1, 1)\n"
        "print({'rich', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
    assert done.stderr.startswith("extract: 1 of 1 clips, ")


def test_clips_that_failed_are_done_too() -> None:
    clock, shown = Clock(), Shown()
    count = count_clips(shown, clock=clock)
    clock.now_s += 10
    count(ExtractProgress(n_clips=9, n_done=3, n_failed=2, n_frames=50))
    assert shown.calls == [(5, 9, 0.0, 2, "5.0 frames/s")]


def fit_event(head: str, seeds: tuple[int, ...], state: str, epoch: int = 0) -> FitProgress:
    return FitProgress(head=head, seeds=seeds, state=state, epoch=epoch, n_epochs=10)


def test_runs_count_when_written_and_those_under_way_by_epochs() -> None:
    shown = Shown()
    count = count_runs(shown, 4)
    count(fit_event("face", (0, 1), "training", epoch=4))
    count(fit_event("context", (0, 1), "training", epoch=1))
    count(fit_event("face", (1,), "training", epoch=5))  # seed 0 has ended
    count(fit_event("face", (0, 1), "done"))
    assert [call[:2] for call in shown.calls] == [(0, 4)] * 3 + [(2, 4)]
    assert [call[2] for call in shown.calls] == pytest.approx([0.8, 1.0, 1.1, 0.2])
    assert shown.calls[0][4] == "face: epoch 4 of 10"


@pytest.mark.parametrize("state", ["skipped", "scored"])
def test_runs_that_were_complete_are_no_work(state: str) -> None:
    shown = Shown()
    count = count_runs(shown, 6)
    count(FitProgress(head="face", seeds=(0, 1), state=state))
    count(FitProgress(head="face", seeds=(2,), state="done"))
    assert [call[:2] for call in shown.calls] == [(0, 4), (1, 4)]


def test_runs_without_a_result_are_done_and_failed() -> None:
    shown = Shown()
    count = count_runs(shown, 3)
    count(fit_event("face", (0, 1, 2), "training", epoch=5))
    count(FitProgress(head="face", seeds=(0, 2), state="done"))
    count(FitProgress(head="face", seeds=(1,), state="failed"))
    assert [call[:4] for call in shown.calls[1:]] == [(2, 3, 0.5, 0), (3, 3, 0.0, 1)]


@pytest.mark.parametrize(("folds", "n_runs"), [(None, 6), ("5", 30), ("source", None)])
def test_a_fold_counts_as_many_runs(folds: str | None, n_runs: int | None) -> None:
    shown = Shown()
    count_runs(shown, 6, folds=folds)(fit_event("face", (0,), "done"))
    assert shown.calls[0][:2] == (1, n_runs)


def test_a_sweep_counts_trials_then_stands_while_the_best_is_trained() -> None:
    shown = Shown()
    counter = TrialCounter(shown, "caca-a", 5)
    counter.show_sweep(SweepProgress(n_done=3, n_trials=40, epoch=7, best=0.5))
    counter.show_fit(fit_event("caca-a", (0,), "training", epoch=2))
    assert shown.calls == [
        (3, 40, 0.0, None, "epoch 7, best 50.00"),
        (40, 40, 0.0, None, "caca-a, best settings, 5 seeds: epoch 2"),
    ]


def test_bundles_are_counted_in_bytes_up_to_the_last(tmp_path: Path) -> None:
    store, file = small_store(tmp_path / "s"), tmp_path / "b.bundle"
    calls: dict[str, list[tuple[int, int]]] = {"verify": [], "pack": [], "check": [], "unpack": []}

    verify_store(store, progress=lambda *at: calls["verify"].append(at))
    pack_bundle(store, file, progress=lambda *at: calls["pack"].append(at))
    verify_bundle(file, progress=lambda *at: calls["check"].append(at))
    unpack_bundle(file, tmp_path / "t", progress=lambda *at: calls["unpack"].append(at))

    n_store = sum(shard.n_bytes for shard in open_store(store).shards)
    assert calls["verify"] == [(n_store, n_store)]
    assert calls["pack"][-1] == (4 * n_store, 4 * n_store)
    for verb in ("pack", "check", "unpack"):
        done = [n_done for n_done, _ in calls[verb]]
        assert done == sorted(done), verb
        assert all(n_done <= n_all for n_done, n_all in calls[verb]), verb
    # Hashed as a whole, hashed file by file, and written once more: all but the seal.
    n_file = file.stat().st_size
    assert calls["check"][-1][0] > 2 * n_file - 10_000
    assert calls["unpack"][-1][0] > 3 * n_file - 10_000


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": [1.5, float("nan")], "b": {"c": (float("inf"), "好")}})
    assert capsys.readouterr().out == '{"a": [1.5, null], "b": {"c": [null, "好"]}}\n'


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (click.ClickException("disk full"), {"error": "disk full"}),
        (click.UsageError("no such option"), None),
    ],
    ids=["a failure", "wrong usage"],
)
def test_with_json_a_failure_is_an_object_and_wrong_usage_a_message(
    error: click.ClickException, out: object
) -> None:
    class Group(click.Group):
        def invoke(self, ctx: click.Context) -> object:
            with console.errors_as_json(ctx):
                return super().invoke(ctx)

    @click.group(cls=Group)
    def cli() -> None: ...

    @cli.command()
    @console.add_json_option
    def verb(as_json: bool) -> None:
        raise error

    result = CliRunner().invoke(cli, ["verb", "--json"])
    assert (json.loads(result.stdout) if result.stdout else None) == out
    assert error.message in result.stderr
    assert CliRunner().invoke(cli, ["verb"]).stdout == ""
