"""The demo set's actor: one photographed face, cut out once and drawn with any expression.

The photograph is scikit-image's astronaut (NASA, public domain). It smiles; the rest face and all
other expressions are warped from it. Lengths are pixels of that photograph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.draw import polygon2mask
from skimage.filters import gaussian
from torch import Tensor
from torch.nn import functional as F

from pipeline.demo import warps
from pipeline.demo.expressions import Expression
from pipeline.demo.scenes import read_picture
from pipeline.demo.warps import Plane, ramp

Stroke = Sequence[tuple[float, float]]

CANVAS_PX = (10, 0, 370, 352)
"""Left, top, right, bottom of the cut-out."""
FACE_CENTRE_PX = (225.0, 115.0)
OVERSAMPLING = 1.25
"""Pixels of a drawn cut-out for each of the photograph's."""

_PATCH_PX = (166, 68, 286, 200)
"""Left, top, right, bottom of the part that expressions move."""

_OUTLINE: Stroke = (
    # head, clockwise from the left temple
    (153.5, 70), (154, 62), (160, 54), (170, 46), (185, 39), (190, 33), (198, 26), (210, 20),
    (222, 17), (232, 16), (245, 19), (258, 23), (270, 29), (282, 37), (291, 48), (296, 62),
    (299, 75), (300, 88), (297, 102), (292, 111), (285, 119), (278, 127), (273, 133), (270, 135.5),
    (266, 135), (264.5, 145), (260, 155), (257, 163), (255.5, 173),
    # suit
    (265, 178), (280, 190), (292, 205), (300, 218), (304, 232), (303.5, 240), (315, 241),
    (330, 251), (345, 269), (352, 285), (357, 305), (360, 330), (362, 352), (28, 352), (33, 335),
    (39, 310), (45, 285), (52, 262), (62, 243), (75, 231), (100, 213), (111, 206), (113, 200),
    (116, 190), (121, 182), (128, 171), (140, 160), (155, 152), (170, 149), (183.5, 149.5),
    # left ear and hair
    (182.5, 140), (181, 130.5), (177, 129), (174, 124), (173, 119), (167, 113), (161, 104),
    (156, 90),
)  # fmt: skip
_BROWS: Sequence[Stroke] = (
    ((190.5, 90.6), (194, 89.6), (199, 88.8), (206, 90.2), (213, 92.3)),
    ((238, 93.2), (246, 92.5), (253, 92.3), (258, 93.6), (262, 95.6)),
)
_SMILE_FOLDS: Sequence[Stroke] = (
    ((209, 126), (203, 131), (197.5, 135.5), (196, 141)),
    ((239, 124), (245, 131), (249.5, 137), (250, 143)),
)
_WRINKLES: Mapping[str, Sequence[tuple[Stroke, float, float]]] = {
    "lower_brow": (
        (((222, 88.5), (221.4, 96)), 1.6, 0.18),
        (((229.5, 88.5), (229.9, 96)), 1.6, 0.18),
        (((225.5, 90), (225.5, 96)), 6.0, 0.10),
    ),
    "inner_brow": (
        (((210, 85.0), (240, 86.5)), 0.9, 0.12),
        (((213, 88.5), (238, 89.5)), 0.9, 0.12),
    ),
    "nose": (
        (((217, 101), (219.5, 109)), 1.2, 0.2),
        (((232, 102), (230, 110)), 1.2, 0.2),
        (((219, 102), (230, 102.5)), 1.1, 0.2),
        (((219.5, 107), (230, 107.5)), 1.1, 0.2),
    ),
    "cheeks": (
        (((188, 101), (183, 98)), 0.8, 0.14),
        (((188, 104), (183, 105)), 0.8, 0.14),
        (((261, 104), (266, 102)), 0.8, 0.14),
        (((261, 107), (266, 108)), 0.8, 0.14),
    ),
    "chin": (
        (((218, 163), (218.1, 163)), 2.6, 0.12),
        (((230, 163), (230.1, 163)), 2.6, 0.12),
        (((218, 158.5), (230, 158.5)), 1.6, 0.10),
    ),
    "corners_down": (
        (((201.5, 141), (200, 145)), 1.3, 0.2),
        (((246, 142), (247.5, 146)), 1.3, 0.2),
    ),
}
"""For each action unit the strokes it creases the skin with: path, width, darkness."""


class FaceRig:
    """The cut-out, its skin and its wrinkles, read and drawn once."""

    def __init__(self) -> None:
        photograph = read_picture("astronaut.png")
        ys, xs = np.mgrid[: photograph.shape[0], : photograph.shape[1]].astype(np.float32)
        inside = polygon2mask(xs.shape, np.array(_OUTLINE)[:, ::-1])  # type: ignore[no-untyped-call]
        # Eaten into a little, so that no rim of the studio's backdrop comes along.
        alpha = np.clip((_blur(inside.astype(np.float32), 1) - 0.35) / 0.6, 0, 1)
        brow = np.clip(_draw(xs, ys, _BROWS, 1.1), 0, 1)[..., None]
        made_up = photograph * (1 - brow * np.array([0.36, 0.45, 0.5], np.float32))
        relief = photograph - _blur(photograph, 5)
        relief = relief * np.clip(_draw(xs, ys, _SMILE_FOLDS, 3.2), 0, 1)[..., None]

        self._canvas = torch.cat([_cut(made_up, CANVAS_PX), _cut(alpha[..., None], CANVAS_PX)])
        self._canvas.clamp_(0, 1)
        self._skin = _cut(made_up, _PATCH_PX)
        self._folds = _cut(relief, _PATCH_PX)
        self._wrinkles = {
            unit: _cut(_crease(xs, ys, strokes)[..., None], _PATCH_PX)
            for unit, strokes in _WRINKLES.items()
        }
        left, top, right, bottom = _PATCH_PX
        rows, columns = self._skin.shape[1:]
        self._y, self._x = np.meshgrid(
            (np.arange(rows, dtype=np.float32) + 0.5) / OVERSAMPLING + top - 0.5,
            (np.arange(columns, dtype=np.float32) + 0.5) / OVERSAMPLING + left - 0.5,
            indexing="ij",
        )
        margins = (self._x - left, right - self._x, self._y - top, bottom - self._y)
        self._free = ramp(np.minimum.reduce(margins) / 8)

    def draw(self, expression: Expression) -> Tensor:
        """The cut-out with an expression.

        Returns:
            [4, rows, columns] RGB and alpha, 0..1, RGB not premultiplied: ``CANVAS_PX`` at
            ``OVERSAMPLING``.
        """
        x, y = self._x, self._y
        upper_dx, upper_dy = warps.move_brows_and_eyes(x, y, expression)
        middle_dx, middle_dy = warps.move_nose_and_cheeks(x, y, expression)
        mouth = warps.move_mouth(x, y, expression)
        from_x = x - (upper_dx + middle_dx + mouth.dx) * self._free
        from_y = y - (upper_dy + middle_dy + mouth.dy) * self._free
        from_y = np.where(mouth.parted, mouth.teeth_y, from_y)

        patch = self._sample_skin(self._creased_skin(expression), from_x, from_y)
        shaded = torch.from_numpy(warps.shade_mouth(patch, mouth, expression)).clamp_(0, 1)
        column = round((_PATCH_PX[0] - CANVAS_PX[0]) * OVERSAMPLING)
        row = round((_PATCH_PX[1] - CANVAS_PX[1]) * OVERSAMPLING)
        canvas = self._canvas.clone()
        canvas[:3, row : row + x.shape[0], column : column + x.shape[1]] = shaded
        return canvas

    def _creased_skin(self, e: Expression) -> Tensor:
        """The skin before it moves: smile folds faded or deepened, wrinkles drawn. [3, h, w]"""
        depth = torch.zeros_like(self._skin[0])
        for unit, wrinkle in self._wrinkles.items():
            depth += getattr(e, unit) * wrinkle[0]
        shadow = torch.stack([0.75 * depth, depth, 1.1 * depth]).clamp_(0, 0.8)
        fold = -0.85 * (1 - e.smile) + 0.9 * e.nose + 0.6 * e.upper_lip + 0.25 * e.stretch
        return (self._skin + fold * self._folds) * (1 - shadow)

    def _sample_skin(self, skin: Tensor, from_x: Plane, from_y: Plane) -> Plane:
        left, top, right, bottom = _PATCH_PX
        grid_x = (from_x - left + 0.5) / (right - left) * 2 - 1
        grid_y = (from_y - top + 0.5) / (bottom - top) * 2 - 1
        grid = torch.from_numpy(np.stack([grid_x, grid_y], axis=-1).astype(np.float32))
        sampled = F.grid_sample(skin[None], grid[None], padding_mode="border", align_corners=False)
        pixels: Plane = sampled[0].numpy()
        return pixels


def _blur(picture: Plane, sigma: float) -> Plane:
    """A picture [H, W] or [H, W, C], blurred over H and W."""
    axis = 2 if picture.ndim == 3 else None
    blurred: Plane = gaussian(picture, sigma, channel_axis=axis)  # type: ignore[no-untyped-call]
    return blurred


def _cut(picture: NDArray[np.floating], box_px: tuple[int, int, int, int]) -> Tensor:
    """A part of a picture [H, W, C], oversampled: [C, rows, columns]."""
    left, top, right, bottom = box_px
    part = picture[top:bottom, left:right].astype(np.float32)
    pixels = torch.from_numpy(part).permute(2, 0, 1)[None]
    size = [round((bottom - top) * OVERSAMPLING), round((right - left) * OVERSAMPLING)]
    return F.interpolate(pixels, size, mode="bicubic", align_corners=False)[0]


def _crease(x: Plane, y: Plane, strokes: Sequence[tuple[Stroke, float, float]]) -> Plane:
    """All strokes of a unit (path, width, darkness), summed: [h, w]."""
    creases = [depth * _draw(x, y, [path], width) for path, width, depth in strokes]
    total: Plane = np.stack(creases).sum(axis=0)
    return total


def _draw(x: Plane, y: Plane, strokes: Sequence[Stroke], width: float) -> Plane:
    """Soft pen strokes: 1 on their paths, falling off as a Gaussian of ``width``; [h, w]."""
    drawn = np.zeros_like(x)
    for stroke in strokes:
        nearest = np.full_like(x, np.inf)
        for (x0, y0), (x1, y1) in pairwise(stroke):
            length2 = (x1 - x0) ** 2 + (y1 - y0) ** 2
            t = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length2, 0, 1)
            distance2 = (x - x0 - t * (x1 - x0)) ** 2 + (y - y0 - t * (y1 - y0)) ** 2
            nearest = np.minimum(nearest, distance2)
        drawn += np.exp(-nearest / (2 * width**2))
    return drawn
