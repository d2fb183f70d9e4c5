"""How well a face CNN names the emotion that most people saw: accuracy, uar, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from features.contracts import SPLITS
from features.errors import ConfigError, ManifestError
from features.networks.face_cnn import FaceCNN, read_face_cnn
from features.networks.runtime import choose_device
from train.face_cnn.augment import scale_faces
from train.face_cnn.pictures.images import FaceImages
from train.face_cnn.pictures.labels import canonical_emotion
from train.face_cnn.pictures.sources import read_face_sets

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class FaceChoice:
    """Which of the labelled images are scored, and by which of their labels."""

    split: str = ""
    """train, val, test or all; empty: test where the images have that split, else all."""
    labels: str = ""
    """As ``labels`` of ``read_face_images``."""
    twins: bool = True
    """False leaves out pictures with a twin, or the same subject, in another split."""
    only: tuple[str, ...] = ()
    """Classes that are scored as if there were no others; empty: all that both sides know."""

    def __post_init__(self) -> None:
        if self.split not in ("", "all", *SPLITS):
            raise ConfigError(f"split {self.split!r}: expected one of {(*SPLITS, 'all')}")


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceScores:
    """Scores on pictures with a majority label, over the classes that both sides know."""

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    """[K, K] Pictures by true class (row) and predicted class (column)."""
    left_out: tuple[str, ...] = ()
    """Classes that one side lacks, or that were not asked for; neither predicted nor counted."""
    split: str = ""
    """The split that was scored, or ``all``; empty where the caller chose the rows."""

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

    def describe_confusion(self, n: int = 5) -> list[str]:
        """A line for each of the ``n`` commonest mistakes: of which class, for which, how often."""
        wrong = self.confusion * (1 - np.eye(len(self.classes), dtype=np.int64))
        totals = self.confusion.sum(1)
        order = np.argsort(-wrong, axis=None, kind="stable")[:n]
        pairs = [divmod(int(i), len(self.classes)) for i in order]
        return [
            f"{self.classes[true]} taken for {self.classes[seen]}: {wrong[true, seen]} of "
            f"{totals[true]} ({wrong[true, seen] / totals[true]:.0%})"
            for true, seen in pairs
            if wrong[true, seen]
        ]

    def as_json(self) -> dict[str, object]:
        """For ``--json`` and the weights file's header; confusion as nested lists."""
        return {
            "accuracy": self.accuracy,
            "uar": self.uar,
            **({"split": self.split} if self.split else {}),
            "n": self.n,
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "left_out": list(self.left_out),
        }


def evaluate_face_cnn(
    weights: Path,
    images: Sequence[Path],
    choice: FaceChoice = FaceChoice(),
    *,
    device: str = "auto",
) -> dict[str, FaceScores]:
    """Score a weights file on sets of labelled images, without training.

    Labels are matched by name, with the usual synonyms.

    Returns:
        Set -> scores of the classifier of all sets, whose probabilities a store keeps; and, where
        the network has learned from a set of that name, ``<set>, own classifier`` -> its scores.

    Raises:
        ConfigError: there is no such device.
        WeightsError: the weights cannot be read, or are not of a classifier.
        ManifestError: the images cannot be read, or none that was chosen has a label that counts.
    """
    net = read_face_cnn(weights).to(choose_device(device))
    scores: dict[str, FaceScores] = {}
    for name, pictures in read_face_sets(images, choice.labels).items():
        split = choice.split
        if not split:
            split = "test" if pictures.split_given and "test" in pictures.split else "all"
        rows = pictures.scored_rows("" if split == "all" else split, twins=choice.twins)
        for key, source in {name: "", f"{name}, own classifier": name}.items():
            if source and source not in net.sources:
                continue
            found = score_faces(net, pictures, rows, only=choice.only, source=source)
            if found.n:
                scores[key] = replace(found, split=split)
    if not scores:
        raise ManifestError(
            f"{', '.join(map(str, images))}: no picture of the split has a label that the network "
            f"knows. Its classes are {net.classes}."
        )
    return scores


def score_faces(
    net: FaceCNN,
    images: FaceImages,
    rows: NDArray[np.intp],
    *,
    only: Sequence[str] = (),
    source: str = "",
) -> FaceScores:
    """Score a network in eval mode on ``rows`` of the images, which have a label.

    source: The set whose classifier is asked, where the network has one of it; else that of all
        classes.
    """
    classes = net.sources.get(source, net.classes)
    asked = {canonical_emotion(name) for name in only or classes}
    shared = tuple(name for name in classes if name in images.classes and name in asked)
    columns = [classes.index(name) for name in shared]
    number = np.full(len(images.classes), -1)
    number[[images.classes.index(name) for name in shared]] = np.arange(len(shared))
    rows = rows[number[images.label[rows]] >= 0]
    logits = _classify(net, images, rows, source)[:, columns]
    confusion = np.zeros((len(shared), len(shared)), dtype=np.int64)
    if shared:
        np.add.at(confusion, (number[images.label[rows]], logits.argmax(1)), 1)
    left_out = (set(classes) | set(images.classes)) - set(shared)
    return FaceScores(classes=shared, confusion=confusion, left_out=tuple(sorted(left_out)))


@torch.inference_mode()
def _classify(
    net: FaceCNN, images: FaceImages, rows: NDArray[np.intp], source: str
) -> NDArray[np.float32]:
    """[len(rows), K] logits."""
    device = net.luma.device
    classifier = net.source_classifiers[source] if source in net.sources else net.classifier
    n_classes = len(net.sources.get(source, net.classes))
    found = [np.zeros((0, n_classes), dtype=np.float32)]
    for start in range(0, len(rows), _BATCH):
        batch = torch.from_numpy(images.pixels[rows[start : start + _BATCH]]).to(device)
        vector = net.embed(scale_faces(batch).expand(-1, 3, -1, -1)).vector
        found.append(classifier(vector).cpu().numpy())
    return np.concatenate(found)
