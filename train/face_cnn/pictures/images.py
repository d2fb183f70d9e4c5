"""Labelled face images: pixels, targets, splits, and which of them are trained on or scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceImages:
    """Face pictures of one size with the emotions that people saw in them."""

    classes: tuple[str, ...]
    pixels: NDArray[np.uint8]
    """[N, 1, S, S] Luminance, which is all that the face CNN sees."""
    target: NDArray[np.float32]
    """[N, K] Share of the votes for each class; a row of zeros where the picture is not usable."""
    label: NDArray[np.int64]
    """[N] The class that more than half of the voters chose, or -1."""
    split: NDArray[np.str_]
    """[N] train, val or test."""
    group: NDArray[np.int64]
    """[N] Pictures of one group are twins (copies of each other, or nearly so) or one person's."""
    source: NDArray[np.str_]
    """[N] The set that a picture comes from; empty: that of its file."""
    split_given: bool = True
    """False where nobody chose the splits: file names were hashed."""
    n_broken: int = 0
    """Pictures that could not be read and are not among the N."""

    def __post_init__(self) -> None:
        n = len(self.pixels)
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 1:
            raise ValueError(f"FaceImages: pixels are {self.pixels.shape}, not [N, 1, S, S]")
        if self.target.shape != (n, len(self.classes)):
            raise ValueError(f"FaceImages: target is {self.target.shape} for {n} pictures")
        columns = (self.label, self.split, self.group, self.source)
        if any(column.shape != (n,) for column in columns):
            raise ValueError(f"FaceImages: label, split, group or source has not {n} rows")

    def choose(self, rows: NDArray[np.intp]) -> FaceImages:
        """Some of the pictures, with the classes that occur among them."""
        occurs = np.flatnonzero(self.target[rows].sum(0) > 0)
        number = np.full(len(self.classes) + 1, -1)
        number[occurs] = np.arange(len(occurs))
        return replace(
            self,
            classes=tuple(self.classes[i] for i in occurs),
            pixels=self.pixels[rows],
            target=self.target[rows][:, occurs],
            label=number[self.label[rows]],
            split=self.split[rows],
            group=self.group[rows],
            source=self.source[rows],
        )

    def is_voted(self) -> bool:
        """Whether targets are shares of several people's votes, not one label a picture."""
        return bool(((self.target > 0) & (self.target < 1)).any())

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
