"""The command line: all verbs, their errors as messages, ``demo``. No heavy import at the top."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.commands import bundle, encoder, store, weights
from features.console import (
    PATH,
    add_json_option,
    configure_logging,
    errors_as_json,
    print_json,
    show_progress,
)
from features.errors import ConfigError, UserError
from pipeline.commands import count_clips, extract, manifest, tell_extracted
from train.commands import fit, report, sweep
from train.face_cnn.commands import fit_face

if TYPE_CHECKING:
    from train.runs.folder import RunSummary

# Threads that wait must not spin: beside another busy process that makes torch ten times slower.
# Read when torch is loaded, which no import above does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _Interrupted(click.ClickException):
    """Ctrl-C, or a signal that asks to end."""

    exit_code = 130

    def show(self, file: Any = None) -> None:
        click.echo(self.message, file=file, err=True)


class _Verbs(click.Group):
    """Turns what a person can fix into one message and an exit status; Ctrl-C exits 130."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, _raise_interrupt)  # a batch system's stop: as Ctrl-C
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, _raise_interrupt)  # a lost terminal; nohup ignores it
        with errors_as_json(ctx):
            try:
                return super().invoke(ctx)
            except ConfigError as error:
                raise click.UsageError(str(error)) from error
            except UserError as error:
                raise click.ClickException(str(error)) from error
            except KeyboardInterrupt:
                raise _Interrupted(f"interrupted{_tell_kept(ctx)}") from None
            except BrokenPipeError:
                raise  # click ends quietly: who reads the output, as head does, has seen enough
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                raise click.ClickException(
                    f"{where}{error.strerror or error}{_tell_kept(ctx)}"
                ) from error


_KEPT = {
    "demo": "clips in finished shards and finished runs are kept",
    "extract": "clips in finished shards are kept",
    "fit": "finished runs are kept, one that was in training begins again",
    "sweep": "finished trials and runs are kept",
    "fit-face": "finished epochs are kept",
}
"""What a verb leaves that is stopped on its way; the others leave nothing."""


def _tell_kept(ctx: click.Context) -> str:
    kept = _KEPT.get(ctx.invoked_subcommand or "")
    return f"; {kept}: run the same again to go on" if kept else ""


def _raise_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log every step and tracebacks of clips.")
@click.version_option(package_name="caca-rnn")
def cli(verbose: bool) -> None:
    """Feature store and recurrent heads for video emotion recognition (CACA-RNN, MEC 2017).

    \b
    Stage one writes what two frozen CNNs see in every clip to a store:
        cli.py extract data_manifest.csv --store store
    Stage two trains the heads of the paper on it and prints its tables:
        cli.py fit --store store --runs runs --preset table1 --seeds 5
        cli.py report --runs runs --out report

    \b
    Example:
        cli.py demo
    """
    configure_logging(verbose=verbose)


_DEMO_PHASES = 2
_DEMO_SETTINGS: Mapping[str, Any] = {
    "lr": 1e-3,
    "epochs": 30,
    "min_updates": 0,
    "max_time_steps": 14,
}
"""What the demo changes, so that it takes two minutes: fewer frames of each train clip, fewer
batches, each with a larger step and none padded to the length of a few clips with two faces."""


@cli.command()
@click.option("--dir", "folder", type=PATH, default=Path("demo"), show_default=True)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs per head."
)
@add_json_option
def demo(folder: Path, seeds: int, as_json: bool) -> None:
    """Run the whole job on the built-in demo set; ends with the path of report.html.

    Renders about 100 synthetic clips, extracts, trains the heads of Table I and the networks of
    Table II, writes the report. Trains shorter than fit does, with larger steps. Shows that
    everything works here; says nothing about real emotions (see docs/demo.md).

    \b
    Example:
        cli.py demo --dir demo
        cli.py demo --seeds 5
    """
    from pipeline.config import ExtractConfig
    from pipeline.demo.render import render_demo_set
    from pipeline.extract import run_extract
    from pipeline.sound_pass import add_sound
    from train.config import PRESETS
    from train.fit import run_fit
    from train.progress import count_runs
    from train.report.report import run_report
    from train.request import FitRequest

    with show_progress("render", "clips") as show:
        manifest = render_demo_set(folder, progress=show)
    store, runs = folder / "store", folder / "runs"
    config = ExtractConfig(face_map=True, phases=_DEMO_PHASES)
    with show_progress("extract", "clips") as show:
        extracted = run_extract(
            manifest,
            store,
            config,
            later_streams=["audio"],
            workers=None,
            progress=count_clips(show),
        )
    with show_progress("sound", "clips") as show:
        add_sound(manifest, store, progress=show)
    if not as_json:
        tell_extracted(extracted)
    trained: list[RunSummary] = []
    with show_progress("fit", "runs") as show:
        parts = [(preset.heads, preset.config) for preset in PRESETS.values()]
        with_sound = replace(PRESETS["table1"].config, streams="context,audio,face")
        parts.append((("cascade",), with_sound))
        count = count_runs(show, seeds * sum(len(heads) for heads, _ in parts))
        for heads, settings in parts:
            request = FitRequest(
                stores=[store],
                runs=runs,
                heads=heads,
                seeds=range(seeds),
                config=replace(settings, **_DEMO_SETTINGS),
            )
            trained += run_fit(request, progress=count)
    with show_progress("report", "pages"):
        page = run_report(runs, folder / "report")
    if as_json:
        runs_json = [asdict(run) for run in trained]
        print_json({"extract": extracted.as_json(), "runs": runs_json, "report": str(page)})
    else:
        click.echo(page)
    if extracted.clips_failed:
        sys.exit(1)


for verb in (manifest, extract, store, bundle, fit, sweep, report, fit_face, weights, encoder):
    cli.add_command(verb)


if __name__ == "__main__":
    cli()
