"""Packs the windows that show contrast into canvases of few sizes, for P-Net on a CPU.

Half of a common picture is wall, table or sky, where there is no face; and a small level costs a
call of its own. Here each level is cut into strips of 16 rows of windows, of a strip only the
stretches that show some contrast are kept, and those of all levels stand side by side in canvases::

    level 0  ....####....        canvas  ####|##|###|####   42 pixels high
             ..##....###.                ####|##|###|####
    level 1  ####                 P-Net    ##   # ##  ##    windows that span two are dropped
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.detect.pyramid import WINDOW_PX

Pictures = NDArray[np.uint8]
"""[F, h, w, 3] A level of the pyramids of some frames."""

STRIDE_PX = 2
"""From one of P-Net's windows to the next."""

_STRIP_ROWS = 16
"""Rows of windows in a strip."""
_CANVAS_PX = 2048
_CANVAS_STEP_PX = 128
"""The last canvas is cut to a multiple of this, so that P-Net meets few shapes."""
_OVERHANG_PX = WINDOW_PX - STRIDE_PX
_CANVAS_ROWS_PX = _STRIP_ROWS * STRIDE_PX + _OVERHANG_PX

_GROUP = 2
"""Contrast is judged for 2x2 windows together."""
_CELL_LEVELS = 4
"""A level this much further down the pyramid, a quarter of the size, holds means of 4x4 pixels."""
_CELLS = 5
"""Cells a side that a group of windows can touch."""
_LEAST_CONTRAST = 16
"""Grey levels between the means of cells below which there is no face to see: measured, faces keep
more than that down to a seventh of a usual picture's contrast."""
_LEAST_SHARE = 1 / 12
"""The same as a share of the whole picture's contrast, for dark or hazy ones."""


class Stretch(NamedTuple):
    """Windows side by side in one strip of one level of a frame."""

    frame: int
    level: int
    row: int
    """Of windows; the stretch's first."""
    column: int
    n_rows: int
    n_columns: int


class Canvas(NamedTuple):
    """P-Net's input in one call."""

    rgb: NDArray[np.uint8]
    """[42, width, 3]"""
    stretches: list[Stretch]
    """From left to right; of some only the part that fits."""
    starts: list[int]
    """Column of the canvas's windows where each starts."""


class Windows(NamedTuple):
    """Places in the pyramids of some frames."""

    frame: NDArray[np.intp]
    """[N]"""
    level: NDArray[np.intp]
    """[N]"""
    row: NDArray[np.intp]
    """[N] Of the level's windows."""
    column: NDArray[np.intp]
    """[N]"""


def pack_pyramids(levels: Sequence[Pictures]) -> Iterator[Canvas]:
    """All windows of some frames' pyramids that show contrast.

    A stretch that does not fit into a canvas goes on in the next.
    """
    most = (_CANVAS_PX - _OVERHANG_PX) // STRIDE_PX  # columns of windows
    canvas, at = _new_canvas(), 0
    for rest in chain.from_iterable(_choose_stretches(levels, i) for i in range(len(levels))):
        while rest.n_columns > 0:
            fits = rest._replace(n_columns=min(rest.n_columns, most - at))
            if fits.n_columns > 0:
                _draw(canvas.rgb, at, fits, levels[fits.level][fits.frame])
                canvas.stretches.append(fits)
                canvas.starts.append(at)
                at += fits.n_columns + _OVERHANG_PX // STRIDE_PX
                rest = rest._replace(
                    column=rest.column + fits.n_columns, n_columns=rest.n_columns - fits.n_columns
                )
            if rest.n_columns > 0:
                yield canvas
                canvas, at = _new_canvas(), 0
    if canvas.starts:
        width_px = -(-at * STRIDE_PX // _CANVAS_STEP_PX) * _CANVAS_STEP_PX
        yield canvas._replace(rgb=np.ascontiguousarray(canvas.rgb[:, :width_px]))


def find_windows(
    canvas: Canvas, row: NDArray[np.intp], column: NDArray[np.intp]
) -> tuple[Windows, NDArray[np.bool_]]:
    """Where in the pyramids some of a canvas's windows lie.

    Args:
        canvas: From ``pack_pyramids``.
        row: [N] Of the canvas's windows.
        column: [N]

    Returns:
        The M windows that are of one stretch, and [N] which of those asked for they are.
    """
    starts, stretches = np.array(canvas.starts), np.array(canvas.stretches)  # (S,), (S, 6)
    number = np.searchsorted(starts, column, side="right") - 1
    frame, level, first_row, first_column, n_rows, n_columns = stretches[number].T
    column = column - starts[number]
    real = (row < n_rows) & (column < n_columns)
    at = (frame, level, first_row + row, first_column + column)
    return Windows(*(axis[real] for axis in at)), real


def cut_windows(
    canvas: Canvas, row: NDArray[np.intp], column: NDArray[np.intp]
) -> NDArray[np.uint8]:
    """[N, 12, 12, 3] The pixels of some of a canvas's windows. row, column: [N]"""
    lines = canvas.rgb.reshape(len(canvas.rgb), -1)  # a window's part of a line is in one piece
    windows = sliding_window_view(lines, (WINDOW_PX, WINDOW_PX * 3))
    cut = windows[row * STRIDE_PX, column * STRIDE_PX * 3]
    return cut.reshape(len(row), WINDOW_PX, WINDOW_PX, 3)


def _choose_stretches(levels: Sequence[Pictures], number: int) -> Iterator[Stretch]:
    """The stretches of a level, frame by frame, strip by strip."""
    height, width = (_count_windows(side) for side in levels[number].shape[1:3])
    strips = _join_strips(_find_contrast(levels, number, -(-height // _GROUP), -(-width // _GROUP)))
    edges = np.diff(strips, axis=2, prepend=False, append=False)
    frame, strip, column = np.nonzero(edges)  # in turns where one starts and where it ends
    starts, ends = column[::2] * _GROUP, np.minimum(column[1::2] * _GROUP, width)
    # A gap narrower than the overhang of a stretch would cost more than it saves.
    apart = (starts[1:] - ends[:-1]) * STRIDE_PX > _OVERHANG_PX
    apart |= (np.diff(strip[::2]) != 0) | (np.diff(frame[::2]) != 0)
    first = np.flatnonzero(np.concatenate([[True], apart])[: len(starts)])
    last = np.append(first[1:] - 1, len(starts) - 1)[: len(first)]
    columns = (frame[::2][first], strip[::2][first] * _STRIP_ROWS, starts[first], ends[last])
    for frame_row, row, start, end in np.stack(columns, axis=1).tolist():
        yield Stretch(frame_row, number, row, start, min(_STRIP_ROWS, height - row), end - start)


def _join_strips(active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[F, rows of groups, columns] -> [F, strips, columns], true where any row of it is."""
    n_frames, n_rows, n_columns = active.shape
    groups_per_strip = _STRIP_ROWS // _GROUP
    padded = np.pad(active, ((0, 0), (0, -n_rows % groups_per_strip), (0, 0)))
    return np.asarray(padded.reshape(n_frames, -1, groups_per_strip, n_columns).any(axis=2))


def _find_contrast(
    levels: Sequence[Pictures], number: int, n_rows: int, n_columns: int
) -> NDArray[np.bool_]:
    """Which groups of a level's windows show any contrast: [F, n_rows, n_columns]."""
    n_frames, height, width, _ = levels[number].shape
    if number + _CELL_LEVELS >= len(levels):
        return np.ones((n_frames, n_rows, n_columns), dtype=bool)  # it is small
    cells = levels[number + _CELL_LEVELS]
    frame_cells = cells.reshape(n_frames, math.prod(cells.shape[1:]))
    most = frame_cells.max(axis=1).astype(np.float32) - frame_cells.min(axis=1)
    least = np.clip(most * _LEAST_SHARE, 1, _LEAST_CONTRAST)  # 1: of one colour is no contrast
    red, green, blue = np.moveaxis(_slide(np.maximum, cells) - _slide(np.minimum, cells), 3, 0)
    contrast = np.maximum(np.maximum(red, green), blue)
    row = np.arange(n_rows) * _GROUP * STRIDE_PX * cells.shape[1] // height
    column = np.arange(n_columns) * _GROUP * STRIDE_PX * cells.shape[2] // width
    return np.asarray((contrast >= least[:, None, None])[:, row[:, None], column])


def _slide(extreme: np.ufunc, cells: Pictures) -> Pictures:
    """The greatest or least of each 5x5 cells, those beyond the right and lower edge left out."""
    beyond = (0, _CELLS - 1)
    x: Pictures = np.pad(cells, ((0, 0), beyond, beyond, (0, 0)), mode="edge")
    for _ in range(2):  # rows, then columns
        two = extreme(x[:, :-1], x[:, 1:])
        four = extreme(two[:, :-2], two[:, 2:])
        x = extreme(four[:, :-1], x[:, 4:]).swapaxes(1, 2)
    return x


def _new_canvas() -> Canvas:
    return Canvas(np.zeros((_CANVAS_ROWS_PX, _CANVAS_PX, 3), dtype=np.uint8), [], [])


def _draw(rgb: NDArray[np.uint8], at: int, stretch: Stretch, level: NDArray[np.uint8]) -> None:
    """level: [h, w, 3] What sticks out of it repeats its edge."""
    top, left, x = stretch.row * STRIDE_PX, stretch.column * STRIDE_PX, at * STRIDE_PX
    n_rows = stretch.n_rows * STRIDE_PX + _OVERHANG_PX
    n_columns = stretch.n_columns * STRIDE_PX + _OVERHANG_PX
    part = level[top : top + n_rows, left : left + n_columns]
    below, beside = n_rows - part.shape[0], n_columns - part.shape[1]
    if below or beside:
        part = np.pad(part, ((0, below), (0, beside), (0, 0)), mode="edge")
    rgb[:n_rows, x : x + n_columns] = part


def _count_windows(side_px: int) -> int:
    """As many as P-Net makes of a side: the last one of an odd side sticks out by a pixel."""
    return -(-(side_px - WINDOW_PX) // STRIDE_PX) + 1
