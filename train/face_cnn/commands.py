"""The verb ``fit-face``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from features.console import (
    PATH,
    add_json_option,
    device_option,
    print_json,
    show_progress,
    split_names,
)


@click.command("fit-face")
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, help="The weights file to write.")
@click.option(
    "--evaluate",
    metavar="FILE",
    help="Score a weights file, or the shipped ones by name (default, ferplus); no training.",
)
@click.option(
    "--epochs", type=click.IntRange(1), help="Each of 25,600 pictures at most.  [default: 12]"
)
@click.option(
    "--start",
    metavar="NAME|FILE",
    help="Weights to start from: imagenet, shipped ones (default, ferplus) or a file of fit-face."
    "  [default: ferplus]",
)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a setting.")
@click.option("--seed", type=int, help="Of the order and the augmentation.  [default: 0]")
@device_option
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
    images: tuple[Path, ...],
    out: Path | None,
    evaluate: str | None,
    epochs: int | None,
    start: str | None,
    settings: tuple[str, ...],
    seed: int | None,
    device: str,
    labels: str | None,
    as_json: bool,
    **choice: Any,
) -> None:
    """Train the face CNN on sets of labelled face images, or score its weights on them.

    IMAGES are one or more of: an .npz laid out as FER+ (images, votes or labels, split), a CSV with
    the columns path, label, split and optionally subject and source, a .zip of such a CSV and its
    pictures, or a folder per class, with or without train, val and test above. Pictures that cannot
    be read are named and left out, and so are train pictures that are near copies of val or test
    pictures of any set. A killed training goes on from its last epoch when run again.

    Each set has a classifier of its own beside the one of all sets, as people label differently.
    Labels are matched by name (happy is happiness); classes that only the network or only the
    images have are left out, and said.

    \b
    Example:
        cli.py fit-face ferplus_48.npz faces.zip --out face_cnn.safetensors
        cli.py fit-face faces.zip --start face_cnn.safetensors --out better.safetensors
        cli.py fit-face ferplus_48.npz --evaluate default --json
        cli.py fit-face faces.csv --evaluate face_cnn.safetensors --split val
    """
    from features.networks.weights import find_face_weights
    from features.settings import change_settings
    from train.face_cnn.config import FaceFitConfig
    from train.face_cnn.evaluate import FaceChoice, evaluate_face_cnn
    from train.face_cnn.fit import run_fit_face

    if (out is None) == (evaluate is None):
        raise click.UsageError("give either --out FILE to train or --evaluate FILE to score")
    if evaluate is not None and settings:
        raise click.UsageError("--set goes with --out")
    if out is not None and any(choice.values()):
        raise click.UsageError("--split, --without-twins and --only go with --evaluate")
    trained: dict[str, Any] = {}
    if evaluate is not None:
        scores = evaluate_face_cnn(
            find_face_weights(evaluate),
            images,
            FaceChoice(
                split=choice["split"] or "",
                labels=labels or "",
                twins=not choice["without_twins"],
                only=tuple(split_names(choice["only"]) or ()),
            ),
            device=device,
        )
    elif out is not None:
        given = {"epochs": epochs, "seed": seed, "labels": labels, "start": start}
        given = {name: value for name, value in given.items() if value is not None}
        with show_progress("fit-face", "batches") as show:
            result = run_fit_face(
                images,
                out,
                change_settings(settings, replace(FaceFitConfig(), **given)),  # type: ignore[arg-type]
                device=device,
                progress=lambda at: show(
                    (at.epoch - 1) * at.n_batches + at.batch, at.n_epochs * at.n_batches
                ),
            )
        scores = dict(result.reported)
        trained = {"weights": str(out), "best_epoch": result.best_epoch}
        if not as_json:
            click.echo(f"{out}: best epoch {result.best_epoch}")
    if as_json:
        sources = {name: score.as_json() for name, score in scores.items()}
        print_json({**trained, "sources": sources})
        return
    for name, score in scores.items():
        click.echo(
            f"{name}, {score.split}: {score.n} pictures: accuracy {score.accuracy:.4f}, "
            f"uar {score.uar:.4f}"
        )
        for line in score.describe_confusion():
            click.echo(f"    {line}")
        if score.left_out:
            click.echo(f"    left out: {', '.join(score.left_out)}")
