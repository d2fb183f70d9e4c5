"""Labelled face images: what ``fit-face`` reads, from an .npz or a CSV, as one noun."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from features.contracts import FACE_CROP_PX
from features.errors import ManifestError

_SYNONYMS = {
    "happy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "disgusted": "disgust",
    "fearful": "fear",
    "scared": "fear",
}
"""Other names of an emotion -> the name that the networks use."""
_NOT_EMOTIONS = ("unknown", "nf")
"""Votes of FER+ that name no emotion: *not clear* and *no face*."""
_ANTIALIASED = Image.Resampling.BILINEAR


def canonical_emotion(name: str) -> str:
    """The name that face CNNs use for an emotion: ``Happy`` and ``happiness`` are one."""
    lowered = name.strip().lower()
    return _SYNONYMS.get(lowered, lowered)


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
    """[N] Pictures of one group are twins: copies of each other, or nearly so."""

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

    def scored_rows(self, split: str, *, twins: bool = True) -> NDArray[np.intp]:
        """Rows with a majority label. ``twins=False`` drops those with a twin in another split."""
        others = np.unique(self.group[self.split != split])
        rows = (self.split == split) & (self.label >= 0)
        return np.flatnonzero(rows if twins else rows & ~np.isin(self.group, others))


def read_face_images(path: Path) -> FaceImages:
    """Read labelled face images.

    An .npz laid out like FER+: ``images`` uint8 [N, S, S] or [N, S, S, 3], ``split`` [N],
    ``votes`` [N, V] with ``vote_names`` [V], or ``label`` [N] (empty: none); optional ``dup_group``
    [N]. A CSV: columns path (relative to the CSV), label, split; each picture one face crop.

    Raises:
        ManifestError: something is missing or contradicts itself; says all that it found.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such file. Give an .npz or a CSV of labelled faces.")
    if path.suffix == ".csv":
        return _read_csv(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _read_npz(path, dict(archive))
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path}: not a readable .npz of face images ({error}).") from error


def _read_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> FaceImages:
    missing = [name for name in ("images", "split") if name not in arrays]
    if not {"votes", "vote_names"} <= arrays.keys() and "label" not in arrays:
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
    if "votes" in arrays:
        classes, target, label = _count_votes(arrays["votes"], arrays["vote_names"].tolist())
    else:
        classes, target, label = _count_labels(arrays["label"].tolist())
    group = arrays.get("dup_group", np.arange(len(images)))
    return FaceImages(
        classes=classes,
        pixels=np.ascontiguousarray(pixels),
        target=target,
        label=label,
        split=arrays["split"].astype(np.str_),
        group=group.astype(np.int64),
    )


def _read_csv(path: Path) -> FaceImages:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in ("path", "label", "split") if name not in table]
    if missing:
        raise ManifestError(f"{path}: lacks the columns {missing}; it has {list(table)}.")
    problems, crops = [], []
    for line, name in enumerate(table["path"], start=2):
        try:
            with Image.open(path.parent / name) as picture:
                crop = picture.convert("RGB").resize((FACE_CROP_PX, FACE_CROP_PX), _ANTIALIASED)
        except OSError as error:
            problems.append(f"line {line}: {name}: {error}")
            continue
        crops.append(np.asarray(crop).transpose(2, 0, 1))
    if problems or not crops:
        raise ManifestError(
            "\n".join([f"{path}: {len(crops)} pictures can be read, not:", *problems])
        )
    classes, target, label = _count_labels(table["label"].tolist())
    return FaceImages(
        classes=classes,
        pixels=np.stack(crops),
        target=target,
        label=label,
        split=table["split"].to_numpy(dtype=np.str_),
        group=np.arange(len(table)),
    )


_Counted = tuple[tuple[str, ...], NDArray[np.float32], NDArray[np.int64]]


def _count_votes(votes: NDArray[Any], names: Sequence[str]) -> _Counted:
    """Votes [N, V] become targets and majority labels, as the authors of FER+ do it.

    A picture that most people found unclear has no target. A vote that nobody shares is an
    outlier and does not count as target, where another class has more (Barsoum et al. 2016).
    """
    counts = votes.astype(np.float32)
    emotions = [i for i, name in enumerate(names) if name.lower() not in _NOT_EMOTIONS]
    clear = np.isin(counts.argmax(1), emotions) & (counts.sum(1) > 0)
    majority = counts.max(1) > counts.sum(1) / 2
    kept = counts[:, emotions]
    label = np.where(clear & majority, kept.argmax(1), -1)
    shared = np.where(kept > 1, kept, 0)
    kept = np.where(shared.sum(1, keepdims=True) > 0, shared, kept)
    target = kept / np.maximum(kept.sum(1, keepdims=True), 1) * clear[:, None]
    return tuple(canonical_emotion(names[i]) for i in emotions), target, label


def _count_labels(labels: Sequence[str]) -> _Counted:
    """One label a picture; an empty one, or a vote that names no emotion, is none."""
    names = [canonical_emotion(label) for label in labels]
    classes = tuple(sorted(set(names) - {"", *_NOT_EMOTIONS}))
    label = np.array([classes.index(n) if n in classes else -1 for n in names], dtype=np.int64)
    target = np.eye(len(classes) + 1, dtype=np.float32)[label, : len(classes)]
    return classes, target, label
