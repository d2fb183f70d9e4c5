"""The verbs ``fit``, ``sweep`` and ``report``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.console import PATH, add_json_option, device_option, print_json, show_progress

if TYPE_CHECKING:
    from train.runs.folder import RunSummary

_stores = click.option(
    "--store", "stores", type=PATH, multiple=True, required=True, help="May be given again."
)
_test_stores = click.option(
    "--test-store",
    "test_stores",
    type=PATH,
    multiple=True,
    help="Test on its test clips, train and choose on those of --store; may be given again.",
)
_runs = click.option("--runs", type=PATH, required=True, help="Folder of the runs, made if absent.")
_no_verify = click.option(
    "--no-verify", is_flag=True, help="Read shards as they are, without hashing them first."
)
_settings = click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a setting."
)
_streams = click.option(
    "--streams",
    metavar="A,B,...",
    help="What heads read, in order: streams of the store.  [default: as published]",
)


@click.command()
@_stores
@_test_stores
@_runs
@click.option(
    "--preset",
    type=click.Choice(["table1", "submitted"]),
    default="table1",
    show_default=True,
    help="Heads and settings of the paper.",
)
@click.option("--head", "heads", multiple=True, help="Only this head; may be given again.")
@_streams
@click.option(
    "--seeds", type=click.IntRange(1), default=5, show_default=True, help="Runs per head."
)
@click.option(
    "--folds",
    metavar="N|source",
    help="N folds by subject, or leave each source out; the manifest's splits play no part.",
)
@click.option("--tensorboard", type=PATH, metavar="DIR", help="Write TensorBoard event files.")
@click.option(
    "--memory",
    "memory_gb",
    type=click.FloatRange(0),
    metavar="GB",
    help="What features may take of it; the rest is read from a scratch file in --runs, to the "
    "same numbers.  [default: three quarters of what is free]",
)
@_no_verify
@device_option
@_settings
@add_json_option
def fit(
    preset: str,
    heads: Sequence[str],
    streams: str | None,
    seeds: int,
    folds: str | None,
    tensorboard: Path | None,
    no_verify: bool,
    settings: Sequence[str],
    as_json: bool,
    **asked: Any,
) -> None:
    """Stage two: train heads on the store's features; a run that exists complete is kept.

    \b
    Example:
        cli.py fit --store store --runs runs --preset table1 --seeds 5
        cli.py fit --store store --runs runs --head caca-a --set lr=3e-4
        cli.py fit --store store --runs runs --head cascade --streams context,audio,face
        cli.py fit --store store --runs runs --head face --streams audio --set standardise=on
        cli.py fit --store mec --store private --test-store mec-test --runs runs
        cli.py fit --store store --runs runs --head caca-a --folds 5
        cli.py fit --store store --runs runs --tensorboard events
        cli.py fit --store store --runs runs --preset submitted --memory 4
    """
    from train.config import PRESETS, expand_heads, parse_settings
    from train.cross_validate import run_fit_folds
    from train.fit import FailedRunsError, FitResult, run_fit
    from train.progress import count_runs
    from train.request import FitRequest
    from train.training.tensorboard import open_event_files

    request = FitRequest(
        heads=heads or PRESETS[preset].heads,
        seeds=range(seeds),
        config=parse_settings(_name_streams(settings, streams), PRESETS[preset].config),
        verify=not no_verify,
        **asked,
    )
    error = ""
    with show_progress("fit", "runs") as show, open_event_files(tensorboard) as add_epoch:
        n_runs = len(expand_heads(request.heads, request.config)) * seeds
        tell: dict[str, Any] = {
            "progress": count_runs(show, n_runs, folds=folds),
            "observe": add_epoch,
        }
        try:
            if folds:
                result = run_fit_folds(request, folds=folds, **tell)
            else:
                result = FitResult(runs=tuple(run_fit(request, **tell)))
        except FailedRunsError as failed:
            error, result = str(failed), failed.result
    if as_json:
        told: dict[str, Any] = {"runs": [asdict(summary) for summary in result.runs]}
        told |= {"pooled": [asdict(one) for one in result.pooled]} if folds else {}
        print_json(told | ({"error": error} if error else {}))
    else:
        _tell_runs(result.runs)
        for one in result.pooled:
            if one.test:
                click.echo(
                    f"{one.pooled}: all folds together: {one.test['n_clips']} clips, map_mec "
                    f"{_in_percent(one.test, 'map_mec')}, acc {_in_percent(one.test, 'acc')}"
                )
    if error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


@click.command()
@_stores
@_test_stores
@_runs
@click.option("--head", required=True, help="The head whose settings are tried.")
@_streams
@click.option(
    "--grid", metavar="KEY=A,B,C", multiple=True, help="Try all combinations; may be given again."
)
@click.option("--trials", type=click.IntRange(1), metavar="N", help="Draw N trials with Optuna.")
@click.option(
    "--search",
    metavar="KEY=LOW..HIGH",
    multiple=True,
    help="With --trials: what to vary; KEY=A,B,C lists choices.  [default: docs/sweeps.md]",
)
@click.option(
    "--storage", metavar="URL", default="", help="An Optuna storage that several machines share."
)
@click.option(
    "--trial-seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs per trial; their median counts.",
)
@click.option(
    "--seeds",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Runs with the best settings; 0: none, and no waiting for other machines.",
)
@_no_verify
@device_option
@_settings
@add_json_option
def sweep(
    head: str,
    streams: str | None,
    grid: Sequence[str],
    trials: int | None,
    search: Sequence[str],
    trial_seeds: int,
    seeds: int,
    no_verify: bool,
    settings: Sequence[str],
    as_json: bool,
    **asked: Any,
) -> None:
    """Try settings of a head on train and val, then train the best over seeds as fit does.

    Test is never read while settings are tried; the final runs score it once each. Run the same
    again after a crash or Ctrl-C: it goes on, and ends with the same table.

    \b
    Example:
        cli.py sweep --store store --runs runs --head face --grid lr=1e-4,1e-3 --grid dropout=0,0.3
        cli.py sweep --store store --runs runs --head caca-a --trials 40
        cli.py sweep --store store --runs runs --head caca --trials 40 --search lr=1e-5..1e-3
        cli.py sweep --store store --runs runs --head caca-a --streams audio,face --trials 40
    """
    from train.config import choose_preset, parse_settings
    from train.progress import TrialCounter
    from train.sweep.batches import Sweep
    from train.sweep.space import DEFAULT_SPACE, Space, parse_grid, parse_space
    from train.sweep.sweep import run_sweep

    if bool(grid) == bool(trials):
        raise click.UsageError("give either --grid KEY=A,B,C or --trials N")
    if search and grid:
        raise click.UsageError("--search goes with --trials; --grid lists what to try itself")
    config = parse_settings(_name_streams(settings, streams), choose_preset(head).config)
    space: Space = parse_grid(grid, config) if grid else parse_space(search, config)
    tried = Sweep(
        head=head,
        config=config,
        space=space or DEFAULT_SPACE,
        n_trials=trials or 0,
        trial_seeds=trial_seeds,
    )
    with show_progress("sweep", "trials") as show:
        counter = TrialCounter(show, head, seeds)
        summary = run_sweep(
            sweep=tried,
            seeds=range(seeds),
            verify=not no_verify,
            progress=counter.show_sweep,
            fit_progress=counter.show_fit,
            **asked,
        )
    if as_json:
        print_json(summary.as_json())
        return
    click.echo(summary.trials.to_string(index=False, na_rep="", float_format="%.5g"))
    click.echo("\nwhat mattered:")
    click.echo(summary.importance.to_string(index=False, na_rep="", float_format="%.4g"))
    best = " ".join(f"--set {key}={value}" for key, value in summary.best.settings.items())
    click.echo(f"\nbest, trial {summary.best.slot}: {best}")
    _tell_runs(summary.runs)


@click.command()
@click.option("--runs", type=PATH, required=True, help="Folder that fit wrote.")
@click.option("--out", type=PATH, required=True, help="Folder for the report, made if absent.")
@add_json_option
def report(runs: Path, out: Path, as_json: bool) -> None:
    """Write the paper's tables and figures from the runs: report.md, report.html, CSV, PNG, SVG.

    \b
    Example:
        cli.py report --runs runs --out report
    """
    from train.report.report import run_report

    with show_progress("report", "pages"):
        page = run_report(runs, out)
    if as_json:
        print_json({"report": str(page)})
    else:
        click.echo(page)


def _name_streams(settings: Sequence[str], streams: str | None) -> list[str]:
    """The settings, with the streams that an option named."""
    return [*settings, *([] if streams is None else [f"streams={streams}"])]


def _tell_runs(summaries: Sequence[RunSummary]) -> None:
    for summary in summaries:
        click.echo(
            f"{summary.run}: epoch {summary.best_epoch}, "
            f"val map_mec {_in_percent(summary.val, 'map_mec')}, "
            f"acc {_in_percent(summary.val, 'acc')}"
        )


def _in_percent(scores: Mapping[str, Any], metric: str) -> str:
    return f"{100 * scores[metric]:.2f}"
