"""Labelled face images: pixels, targets, splits, and which of them are trained on or scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
