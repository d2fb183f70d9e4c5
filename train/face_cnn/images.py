"""Labelled face images: what ``fit-face`` reads, from an .npz, a CSV or a folder, as one noun."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import ManifestError
from train.face_cnn.files import (
    PictureList,
    list_csv_pictures,
    list_folder_pictures,
    read_pictures,
)
from train.face_cnn.labels import FaceLabels, count_labels, count_votes

_log = logging.getLogger(__name__)

_TOLD_PROBLEMS = 20
"""Broken pictures that are named one by one; the rest are counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceImages:
    """Face pictures of one size with the emotions that people saw in them."""

    classes: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """[N, C, S, S], grey (C = 1) or RGB (C = 3)."""
    target: NDArray[np.float32]
    """[N, K] Share of the votes for each class; a row of zeros where the picture is not usable."""
    label: NDArray[np.int64]
    """[N] The class that more than half of the voters chose, or -1."""
    split: NDArray[np.str_]
    """[N] train, val or test."""
    group: NDArray[np.int64]
    """[N] Pictures of one group are twins (copies of each other, or nearly so) or one person's."""
    split_given: bool = True
    """False where nobody chose the splits: file names were hashed."""
    n_broken: int = 0
    """Pictures that could not be read and are not among the N."""

    def __post_init__(self) -> None:
        n = len(self.pixels)
        if self.pixels.ndim != 4 or self.pixels.shape[1] not in (1, 3):
            raise ValueError(f"FaceImages: pixels are {self.pixels.shape}, not [N, 1 or 3, S, S]")
        if self.target.shape != (n, len(self.classes)):
            raise ValueError(f"FaceImages: target is {self.target.shape} for {n} pictures")
        if not self.label.shape == self.split.shape == self.group.shape == (n,):
            raise ValueError(f"FaceImages: label, split or group has not {n} rows")

    def train_rows(self) -> NDArray[np.intp]:
        """Rows to train on: of split train, with a target, and without a twin in val or test."""
        held_out = np.unique(self.group[self.split != "train"])
        usable = (self.split == "train") & (self.target.sum(1) > 0)
        return np.flatnonzero(usable & ~np.isin(self.group, held_out))

    def scored_rows(self, split: str = "", *, twins: bool = True) -> NDArray[np.intp]:
        """Rows with a majority label, of one split or of all.

        ``twins=False`` drops those with a twin in another split.
        """
        if not split:
            return np.flatnonzero(self.label >= 0)
        others = np.unique(self.group[self.split != split])
        rows = (self.split == split) & (self.label >= 0)
        return np.flatnonzero(rows if twins else rows & ~np.isin(self.group, others))

    def content_sha256(self) -> str:
        """The hash of all that training reads of them."""
        content = hashlib.sha256(repr((self.classes, self.pixels.shape)).encode())
        for part in (self.pixels, self.target, self.label, self.split.astype("U5"), self.group):
            content.update(np.ascontiguousarray(part).data)
        return content.hexdigest()


def read_face_images(path: Path, labels: str = "") -> FaceImages:
    """Read labelled face images.

    An .npz laid out like FER+: ``images`` uint8 [N, S, S] or [N, S, S, 3], ``split`` [N],
    ``votes`` [N, V] with ``vote_names`` [V], or ``label`` [N] (empty: none); optional ``dup_group``
    [N]. A CSV with the columns path (relative to the CSV), label, split and optionally subject, or
    a folder per class, with or without splits above (``list_folder_pictures``); each picture is
    one face crop. Where a CSV or a folder has no val, a tenth of its train pictures becomes val.

    Pictures that cannot be read are named in the log, counted, and left out.

    Args:
        path: The file or folder.
        labels: The array of the .npz or the column of the CSV that holds the labels, where it is
            not ``votes`` or ``label``.

    Raises:
        ManifestError: something is missing or contradicts itself, or no picture can be read.
    """
    if path.is_dir():
        if labels:
            raise ManifestError(f"{path}: a folder has no labels {labels!r}; its folders name them")
        return _read_files(path, list_folder_pictures(path))
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such file. Give an .npz, a CSV, or a folder of labelled faces."
        )
    if path.suffix.lower() == ".csv":
        return _read_files(path, list_csv_pictures(path, labels or "label"))
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _read_npz(path, dict(archive), labels)
    except (ValueError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path}: not a readable .npz of face images ({error}).") from error


def _read_npz(path: Path, arrays: Mapping[str, NDArray[Any]], labels: str) -> FaceImages:
    missing = [name for name in ("images", "split", labels) if name and name not in arrays]
    if not labels and not {"votes", "vote_names"} <= arrays.keys() and "label" not in arrays:
        missing.append("votes with vote_names, or label")
    if missing:
        raise ManifestError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(arrays)}.")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ManifestError(
            f"{path}: images are {images.dtype} {images.shape}, expected uint8 [N, S, S] or "
            "[N, S, S, 3]."
        )
    pixels = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    found = _npz_labels(arrays, labels)
    group = arrays.get("dup_group", np.arange(len(images)))
    return FaceImages(
        classes=found.classes,
        pixels=np.ascontiguousarray(pixels),
        target=found.target,
        label=found.label,
        split=arrays["split"].astype(np.str_),
        group=group.astype(np.int64),
    )


def _npz_labels(arrays: Mapping[str, NDArray[Any]], labels: str) -> FaceLabels:
    if labels or "votes" not in arrays:
        return count_labels(arrays[labels or "label"].astype(np.str_).tolist())
    return count_votes(arrays["votes"], arrays["vote_names"].tolist())


def _read_files(path: Path, listed: PictureList) -> FaceImages:
    read = read_pictures(listed.files)
    if not len(read.row):
        raise ManifestError(
            "\n".join([f"{path}: no picture can be read:", *read.problems[:_TOLD_PROBLEMS]])
        )
    for problem in read.problems[:_TOLD_PROBLEMS]:
        _log.warning("left out: %s", problem)
    if read.problems:
        n = len(listed.files)
        _log.warning("%s: %d of %d pictures cannot be read", path, len(read.problems), n)
    files = [listed.files[row] for row in read.row]
    found = count_labels([file.label for file in files])
    numbers: dict[str, int] = {}
    person = [numbers.setdefault(file.subject, -1 - len(numbers)) for file in files]
    alone = np.array([not file.subject for file in files])
    return FaceImages(
        classes=found.classes,
        pixels=read.pixels,
        target=found.target,
        label=found.label,
        split=np.array([file.split for file in files]),
        group=np.where(alone, np.arange(len(files)), person),
        split_given=listed.split_given,
        n_broken=len(read.problems),
    )
