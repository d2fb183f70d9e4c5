"""What all verbs share: options, how far a verb has come, logging, results and errors as JSON.

At a terminal progress is a bar. Elsewhere, as in the file that a batch system keeps of stderr, it
is a plain line each half minute and one at the end::

    extract: 120 of 1040 clips, 2 failed, 3.4 clips/s, 4 min 31 s left, 92.1 frames/s
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

PATH = click.Path(path_type=Path)
"""What a verb takes as a path."""

device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)

LINE_INTERVAL_S = 30.0
"""Between two lines where no terminal is."""


class Show(Protocol):
    """Told how far a verb has come; may be called from any one thread at a time."""

    def __call__(
        self,
        n_done: int,
        n_all: int | None,
        *,
        under_way: float = 0.0,
        n_failed: int | None = None,
        note: str = "",
    ) -> None:
        """Show a state.

        Args:
            n_done: Units that are done, failed ones among them.
            n_all: Units in all; None where nobody knows.
            under_way: What is done of units that are not finished, in units: it counts for the
                rate and the time left.
            n_failed: Units that failed; None where units do not fail.
            note: What else is worth a word.
        """


@contextmanager
def show_progress(verb: str, unit: str) -> Iterator[Show]:
    """Show on stderr how far a verb has come, as long as the block lasts.

    Args:
        verb: What is done, as ``extract``.
        unit: What is counted, a plural, as ``clips``.
    """
    if sys.stderr.isatty():
        with _show_bar(verb, unit) as show:
            yield show
    else:
        lines = ProgressLines(verb, unit)
        with repeat_lines(lines, lambda line: click.echo(line, err=True)):
            yield lines.show


@contextmanager
def show_bytes(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a verb has come through the bytes that it reads and writes; told both counts."""
    with show_progress(verb, "MB") as show:
        yield lambda n_done, n_all: show(n_done // 10**6, n_all // 10**6)


@dataclass(frozen=True, kw_only=True)
class _State:
    """The last that was shown."""

    n_done: int
    n_all: int | None
    under_way: float = 0.0
    n_failed: int | None = None
    note: str = ""


class ProgressLines:
    """The last state that was shown, as a line of text."""

    def __init__(
        self, verb: str, unit: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: seconds, from any start."""
        self._verb, self._unit, self._clock = verb, unit, clock
        self._started_s = clock()
        self._state: _State | None = None

    def show(self, n_done: int, n_all: int | None, **more: Any) -> None:
        """As ``Show``."""
        self._state = _State(n_done=n_done, n_all=n_all, **more)

    def describe(self) -> str:
        """The line for now: how much is done, the rate, the time left."""
        state, elapsed_s = self._state, self._clock() - self._started_s
        if state is None:
            return f"{self._verb}: begun {describe_time(elapsed_s)} ago"
        done = state.n_done + state.under_way
        parts = self._count(state, done, elapsed_s)
        if done and elapsed_s > 0 and state.n_all is not None:
            left = max(state.n_all - done, 0)
            parts.append(f"{describe_time(elapsed_s * left / done)} left")
        return ", ".join(filter(None, [*parts, state.note]))

    def describe_end(self, *, finished: bool) -> str:
        """The last line; empty if nothing was shown. finished: False where an error or Ctrl-C
        ended the work."""
        state, elapsed_s = self._state, self._clock() - self._started_s
        if state is None:
            return ""
        how = f"{'done in' if finished else 'stopped after'} {describe_time(elapsed_s)}"
        return ", ".join([*self._count(state, state.n_done, elapsed_s), how])

    def _count(self, state: _State, done: float, elapsed_s: float) -> list[str]:
        """The units that are done, those that failed, and the rate."""
        total = "" if state.n_all is None else f" of {state.n_all}"
        parts = [f"{self._verb}: {state.n_done}{total} {self._unit}"]
        if state.n_failed is not None:
            parts.append(f"{state.n_failed} failed")
        if done and elapsed_s > 0:
            parts.append(_describe_rate(done / elapsed_s, self._unit))
        return parts


@contextmanager
def repeat_lines(
    lines: ProgressLines, write: Callable[[str], object], *, interval_s: float = LINE_INTERVAL_S
) -> Iterator[None]:
    """Write a line each ``interval_s`` while the block lasts, also where nothing moves, and one at
    its end if anything was shown."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(interval_s):
            write(lines.describe())

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    finished = False
    try:
        yield
        finished = True
    finally:
        ended.set()
        thread.join()
        if last_line := lines.describe_end(finished=finished):
            write(last_line)


def describe_time(seconds: float) -> str:
    """A duration in its two largest units: ``12 s``, ``4 min 31 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _describe_rate(per_s: float, unit: str) -> str:
    """A rate of at least 1 where a longer time makes it that: ``3.4 clips/s``, ``12 runs/h``."""
    for seconds, name in ((1, "s"), (60, "min")):
        if per_s * seconds >= 1:
            return f"{per_s * seconds:.1f} {unit}/{name}"
    return f"{per_s * 3600:.1f} {unit}/h"


@contextmanager
def _show_bar(verb: str, unit: str) -> Iterator[Show]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn(verb),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn(unit),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}"),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None, note="")

        def show(n_done: int, n_all: int | None, **more: Any) -> None:
            state = _State(n_done=n_done, n_all=n_all, **more)
            failed = f"{state.n_failed} failed" if state.n_failed else ""
            noted = ", ".join(filter(None, (state.note, failed)))
            bar.update(task, completed=n_done, total=n_all, note=noted)

        yield show


def configure_logging(*, verbose: bool) -> None:
    """Send what the packages log to stderr, in the way that keeps a bar in one piece."""
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("features", "pipeline", "train"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


def add_json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb ``--json``, as the argument ``as_json``."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object, only it.",
        callback=_note_json,
    )(command)


def _note_json(ctx: click.Context, _: click.Parameter, as_json: bool) -> bool:
    ctx.meta[__name__] = as_json  # shared with the contexts above
    return as_json


def split_names(names: str | None) -> list[str] | None:
    """The names of a list with commas; None where none was given."""
    return None if names is None else [name.strip() for name in names.split(",")]


def print_json(result: object) -> None:
    """Print the one object of ``--json``; numbers that are not finite become null."""
    click.echo(json.dumps(_make_finite(result), ensure_ascii=False, allow_nan=False))


def print_result(result: object, text: str, *, as_json: bool) -> None:
    """What a verb found: the one object of ``--json``, or text for people."""
    if as_json:
        print_json(result)
    else:
        click.echo(text)


def _make_finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _make_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_make_finite(inner) for inner in value]
    return value


@contextmanager
def errors_as_json(ctx: click.Context) -> Iterator[None]:
    """Print ``{"error": ...}`` too where a verb with ``--json`` fails; wrong usage stays text."""
    try:
        yield
    except click.UsageError:
        raise
    except click.ClickException as error:
        if ctx.meta.get(__name__):
            print_json({"error": error.message})
        raise
