"""How well a face CNN names the emotion that most people saw: accuracy, uar, confusion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from features.errors import ManifestError
from features.face_cnn import FaceCNN, read_face_cnn
from train.face_augment import scale_faces
from train.face_images import FaceImages, read_face_images

_BATCH = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceScores:
    """Scores on pictures with a majority label, over the classes that both sides know."""

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    """[K, K] Pictures by true class (row) and predicted class (column)."""
    left_out: tuple[str, ...] = ()
    """Classes that only the network or only the pictures have; neither predicted nor counted."""

    @property
    def n(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(self.confusion.trace() / self.n)

    @property
    def uar(self) -> float:
        """Mean recall over the classes that occur."""
        totals = self.confusion.sum(1)
        occurs = totals > 0
        return float((self.confusion.diagonal()[occurs] / totals[occurs]).mean())

    def as_json(self) -> dict[str, object]:
        """For ``--json`` and the weights file's header; confusion as nested lists."""
        return {
            "accuracy": self.accuracy,
            "uar": self.uar,
            "n": self.n,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "left_out": list(self.left_out),
        }


def evaluate_face_cnn(
    weights: Path, images: Path, *, split: str = "test", twins: bool = True
) -> FaceScores:
    """Score a weights file on labelled images, without training.

    Labels are matched by name, with the usual synonyms. ``twins=False`` leaves out pictures with a
    twin in another split.

    Raises:
        WeightsError: the weights cannot be read.
        ManifestError: the images cannot be read, or the split has no labelled picture.
    """
    pictures = read_face_images(images)
    rows = pictures.scored_rows(split, twins=twins)
    scores = score_faces(read_face_cnn(weights), pictures, rows)
    if not scores.n:
        raise ManifestError(
            f"{images}: split {split!r} has no picture whose label the network knows. Labels are "
            f"{pictures.classes}, splits {tuple(np.unique(pictures.split))}."
        )
    return scores


def score_faces(
    net: FaceCNN, images: FaceImages, rows: NDArray[np.intp], *, precision: str = "float32"
) -> FaceScores:
    """Score a network in eval mode on ``rows`` of the images, which have a label."""
    shared = tuple(name for name in net.classes if name in images.classes)
    columns = [net.classes.index(name) for name in shared]
    number = np.full(len(images.classes), -1)
    number[[images.classes.index(name) for name in shared]] = np.arange(len(shared))
    rows = rows[number[images.label[rows]] >= 0]
    logits = _classify(net, images, rows, precision)[:, columns]
    confusion = np.zeros((len(shared), len(shared)), dtype=np.int64)
    if shared:
        np.add.at(confusion, (number[images.label[rows]], logits.argmax(1)), 1)
    only_one = set(net.classes) ^ set(images.classes)
    return FaceScores(classes=shared, confusion=confusion, left_out=tuple(sorted(only_one)))


@torch.inference_mode()
def _classify(
    net: FaceCNN, images: FaceImages, rows: NDArray[np.intp], precision: str
) -> NDArray[np.float32]:
    """[len(rows), K] logits."""
    device = net.luma.device
    found = [np.zeros((0, len(net.classes)), dtype=np.float32)]
    reduced = precision == "bfloat16"
    for start in range(0, len(rows), _BATCH):
        batch = torch.from_numpy(images.pixels[rows[start : start + _BATCH]]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            logits = net(scale_faces(batch))
        found.append(logits.float().cpu().numpy())
    return np.concatenate(found)
