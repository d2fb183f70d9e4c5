"""Training of the face CNN: the driver behind ``fit-face``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from features.disk import write_atomically
from features.errors import ConfigError, ManifestError
from features.fingerprint import hash_file
from features.networks.face_cnn import write_face_cnn
from features.networks.runtime import choose_device
from features.networks.weights import SQUEEZENET_NDF, find_face_weights
from train.face_cnn.config import FaceFitConfig
from train.face_cnn.evaluate import FaceScores
from train.face_cnn.pictures.sources import hash_sources, read_face_sources
from train.face_cnn.training import FaceFitEpoch, FaceFitProgress, FaceTraining

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceFitResult:
    """A finished training."""

    best_epoch: int
    """The epoch with the best mean recall on val; its weights are the ones written."""
    val: Mapping[str, FaceScores]
    """Set of images -> scores of its own classifier."""
    test: Mapping[str, FaceScores]
    """The same for the sets that have a test split."""

    @property
    def reported(self) -> Mapping[str, FaceScores]:
        """The scores that stand for the training: of test, or of val where there is no test."""
        return self.test or self.val


def run_fit_face(
    images: Sequence[Path],
    out: Path,
    config: FaceFitConfig,
    *,
    device: str = "auto",
    progress: Callable[[FaceFitProgress], None] = lambda _: None,
) -> FaceFitResult:
    """Train the face CNN on sets of labelled images and write its weights to ``out``.

    The target is the distribution of votes, or the label. Every set has a classifier of its own on
    the one vector, and all sets together one of all classes. The epoch is chosen on val; test is
    scored once, at the end.
    After each epoch ``<out>.checkpoint`` holds all that a killed training needs to go on from
    there; it is removed when ``out`` is complete. Beside ``out`` lie then, for those who read no
    safetensors, ``<stem>.history.csv``, a row per epoch, and ``<stem>.metrics.json``, the facts
    that the header of ``out`` holds too.

    Args:
        images: Each as of ``train.face_cnn.pictures.files.read_face_images``.
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
    sources = read_face_sources(images, config.labels)
    if not any(len(source.images.scored_rows("val")) for source in sources):
        names = ", ".join(source.name for source in sources)
        raise ManifestError(f"{names}: no picture in split val has a label. Some are needed.")
    training = FaceTraining(sources, config, chosen)
    identity = json.dumps(
        {
            "config": asdict(config),
            "start": _describe_start(config.start),
            "images": hash_sources(sources),
        },
        sort_keys=True,
    )
    checkpoint = out.with_name(out.name + ".checkpoint")
    training.resume(checkpoint, identity)
    for epoch in range(len(training.history) + 1, config.epochs + 1):
        started = time.monotonic()
        loss = training.run_epoch(epoch, progress)
        scores = training.score("val")
        done = FaceFitEpoch(
            epoch=epoch,
            train_loss=loss,
            val_accuracy=float(np.mean([score.accuracy for score in scores.values()])),
            val_uar=float(np.mean([score.uar for score in scores.values()])),
            wall_s=time.monotonic() - started,
        )
        training.keep(done, checkpoint, identity)
        _log.info("epoch %d: loss %.3f, val uar %.4f", epoch, loss, done.val_uar)
    result = _finish(training, out)
    checkpoint.unlink(missing_ok=True)
    return result


def _describe_start(start: str) -> str:
    """Which weights a training starts from, for its identity and its facts."""
    if start == "imagenet":
        return f"SqueezeNet 1.1, ImageNet; {SQUEEZENET_NDF.package}, {SQUEEZENET_NDF.sha256}"
    path = find_face_weights(start)
    return f"{path.name}, {hash_file(path)}"


def _finish(training: FaceTraining, out: Path) -> FaceFitResult:
    """Score the best epoch once on test and write its weights with the facts."""
    config = training.config
    training.balance()
    best = max(training.history, key=lambda row: (row.val_uar, row.epoch))
    val, test = training.score("val"), training.score("test")
    facts = {
        "config": asdict(config),
        "start": _describe_start(config.start),
        "best_epoch": best.epoch,
        "history": [asdict(row) for row in training.history],
        "n_train": {source.name: len(source.rows) for source in training.sources},
        "n_broken": sum(source.images.n_broken for source in training.sources),
        "val": {name: score.as_json() for name, score in val.items()},
        "test": {name: score.as_json() for name, score in test.items()},
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
    return FaceFitResult(best_epoch=best.epoch, val=val, test=test)
