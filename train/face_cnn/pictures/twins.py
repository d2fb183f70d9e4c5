"""Finds near copies of pictures across sets and splits: they must not be trained on and scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from train.face_cnn.pictures.images import FaceImages

_SIDE = 16
_VIEWS = (1.0, 0.85, 0.72)
"""Side of the middle parts that are compared: sets frame the same photograph differently."""
_LEAST_CORRELATION = 0.95
_ROWS = 4096


def find_twins(sets: Sequence[FaceImages]) -> list[NDArray[np.intp]]:
    """For each set the rows of split train that look like a val or test picture of any set.

    Compared are the middles of the pictures, scaled to 16 x 16 grey levels of zero mean and unit
    length, at three sizes each and mirrored: twins have a correlation of at least 0.95.
    """
    held_out = {
        view: torch.cat([_view(images, _held_out_rows(images), view) for images in sets])
        for view in _VIEWS
    }
    found = []
    for images in sets:
        train = np.flatnonzero(images.split == "train")
        best = torch.full((len(train),), -1.0)
        for view in _VIEWS:
            faces = _view(images, train, view)
            # One of two pictures is the looser one: it is cut, the other is taken whole.
            others = torch.cat([held_out[1.0]] if view < 1 else list(held_out.values()))
            for start in range(0, len(faces), _ROWS):
                rows = slice(start, start + _ROWS)
                for side in (faces[rows], faces[rows].flip(2)):
                    for part in torch.split(others, 4 * _ROWS):
                        if len(part):
                            likeness = side.flatten(1) @ part.flatten(1).T
                            best[rows] = torch.maximum(best[rows], likeness.amax(1))
        found.append(train[(best >= _LEAST_CORRELATION).numpy()])
    return found


def _held_out_rows(images: FaceImages) -> NDArray[np.intp]:
    return np.flatnonzero(images.split != "train")


def _view(images: FaceImages, rows: NDArray[np.intp], view: float) -> Tensor:
    """[len(rows), 16, 16] The middle of pictures, of zero mean and unit length."""
    side = images.pixels.shape[-1]
    margin = round(side * (1 - view) / 2)
    parts = [torch.zeros(0, _SIDE, _SIDE)]
    for start in range(0, len(rows), _ROWS):
        pixels = torch.from_numpy(images.pixels[rows[start : start + _ROWS]]).float()
        middle = pixels[:, :, margin : side - margin, margin : side - margin]
        scaled = F.interpolate(middle, (_SIDE, _SIDE), mode="bilinear", antialias=True)[:, 0]
        centred = scaled - scaled.mean((1, 2), keepdim=True)
        length = centred.square().sum((1, 2), keepdim=True).sqrt()
        parts.append(centred / length.clamp(min=1e-6))
    return torch.cat(parts)
