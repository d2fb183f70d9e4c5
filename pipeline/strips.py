"""Packs what is worth P-Net's work into canvases of few sizes: a CPU's way through the pyramid.

Half of a common picture is wall, table or sky, where there is no face; and a small level costs a
call of its own. Here each level is cut into strips of 16 rows of windows, of a strip only the runs
that show some contrast are kept, and the runs of all levels stand side by side in canvases::

    level 0  ....####....        canvas  ####|##|###|####   42 pixels high
             ..##....###.                ####|##|###|####
    level 1  ####                 P-Net    ##   # ##  ##    windows that span two runs are dropped
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.pyramid import WINDOW_PX

Picture = NDArray[np.uint8]
"""[h, w, 3]"""

STRIDE_PX = 2
"""From one of P-Net's windows to the next."""

_STRIP_ROWS = 16
"""Rows of windows in a strip."""
_CANVAS_PX = 1024
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


class Run(NamedTuple):
    """Windows side by side in one strip of one level."""

    level: int
    row: int
    """Of windows; the run's first."""
    column: int
    n_rows: int
    n_columns: int


class Placed(NamedTuple):
    """A run, or what part of it fits, in a canvas."""

    run: Run
    at: int
    """Column of the canvas's windows where it starts."""


class Canvas(NamedTuple):
    """What P-Net looks at in one call."""

    rgb: Picture
    """[42, width, 3]"""
    placed: Sequence[Placed]
    """From left to right."""


class Windows(NamedTuple):
    """Places in a pyramid."""

    level: NDArray[np.intp]
    """[N]"""
    row: NDArray[np.intp]
    """[N] Of the level's windows."""
    column: NDArray[np.intp]
    """[N]"""


def pack_pyramid(levels: Sequence[Picture]) -> Iterator[Canvas]:
    """All windows of a frame's pyramid that show contrast."""
    runs = (run for number in range(len(levels)) for run in _choose_runs(levels, number))
    yield from _place(runs, levels)


def find_windows(
    canvas: Canvas, row: NDArray[np.intp], column: NDArray[np.intp]
) -> tuple[Windows, NDArray[np.bool_]]:
    """Where in the pyramid some of a canvas's windows lie.

    Args:
        canvas: From ``pack_pyramid``.
        row: [N] Of the canvas's windows.
        column: [N]

    Returns:
        The M windows that are of one run, and [N] which of those asked for they are.
    """
    runs = np.array([placed.run for placed in canvas.placed])  # (R, 5)
    starts = np.array([placed.at for placed in canvas.placed])
    number = np.searchsorted(starts, column, side="right") - 1
    of_run = runs[number]  # (N, 5)
    row_in, column_in = row, column - starts[number]
    real = (row_in < of_run[:, 3]) & (column_in < of_run[:, 4])
    of_run = of_run[real]
    windows = Windows(of_run[:, 0], of_run[:, 1] + row_in[real], of_run[:, 2] + column_in[real])
    return windows, real


def _choose_runs(levels: Sequence[Picture], number: int) -> Iterator[Run]:
    """The runs of a level, strip by strip."""
    height, width = (_count_windows(side) for side in levels[number].shape[:2])
    active = _find_contrast(levels, number, -(-height // _GROUP), -(-width // _GROUP))
    edges = np.diff(_join_strips(active), axis=1, prepend=False, append=False)
    strip, column = np.nonzero(edges)  # in turns where a run starts and where it ends
    starts, ends = column[::2] * _GROUP, np.minimum(column[1::2] * _GROUP, width)
    # A gap narrower than the overhang of a run would cost more than it saves.
    apart = (starts[1:] - ends[:-1]) * STRIDE_PX > _OVERHANG_PX
    apart |= np.diff(strip[::2]) > 0
    first = np.flatnonzero(np.concatenate([[True], apart])[: len(starts)])
    last = np.append(first[1:] - 1, len(starts) - 1)[: len(first)]
    rows = strip[::2][first] * _STRIP_ROWS
    for row, start, end in zip(
        rows.tolist(), starts[first].tolist(), ends[last].tolist(), strict=True
    ):
        yield Run(number, row, start, min(_STRIP_ROWS, height - row), end - start)


def _join_strips(active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[rows of groups, columns] -> [strips, columns], true where any row of the strip is."""
    of_strip = _STRIP_ROWS // _GROUP
    padded = np.pad(active, ((0, -len(active) % of_strip), (0, 0)))
    return np.asarray(padded.reshape(-1, of_strip, active.shape[1]).any(axis=1))


def _find_contrast(
    levels: Sequence[Picture], number: int, n_rows: int, n_columns: int
) -> NDArray[np.bool_]:
    """Which groups of a level's windows show any contrast: [n_rows, n_columns]."""
    if number + _CELL_LEVELS >= len(levels):
        return np.ones((n_rows, n_columns), dtype=bool)  # it is small
    cells = levels[number + _CELL_LEVELS]
    least = min(_LEAST_CONTRAST, (int(cells.max()) - int(cells.min())) * _LEAST_SHARE)
    red, green, blue = np.moveaxis(_slide(np.maximum, cells) - _slide(np.minimum, cells), 2, 0)
    contrast = np.maximum(np.maximum(red, green), blue)
    sides = zip((n_rows, n_columns), levels[number].shape, cells.shape, strict=False)
    row, column = (
        np.arange(n_groups) * _GROUP * STRIDE_PX * n_cells // n_pixels
        for n_groups, n_pixels, n_cells in sides
    )
    found: NDArray[np.bool_] = (contrast >= least)[np.ix_(row, column)]
    return found


def _slide(extreme: np.ufunc, cells: Picture) -> Picture:
    """The greatest or least of each 5x5 cells, those beyond the right and lower edge left out."""
    x: Picture = np.pad(cells, ((0, _CELLS - 1), (0, _CELLS - 1), (0, 0)), mode="edge")
    for _ in range(2):  # rows, then columns
        two = extreme(x[:-1], x[1:])
        four = extreme(two[:-2], two[2:])
        x = extreme(four[:-1], x[4:]).swapaxes(0, 1)
    return x


def _place(runs: Iterator[Run], levels: Sequence[Picture]) -> Iterator[Canvas]:
    """Fill canvases with runs; a run that does not fit goes on in the next."""
    most = (_CANVAS_PX - _OVERHANG_PX) // STRIDE_PX  # columns of windows
    rgb, placed, at = _new_canvas(), list[Placed](), 0
    for run in runs:
        rest = run
        while rest.n_columns > 0:
            fits = rest._replace(n_columns=min(rest.n_columns, most - at))
            if fits.n_columns > 0:
                _draw(rgb, at, fits, levels[run.level])
                placed.append(Placed(fits, at))
                at += fits.n_columns + _OVERHANG_PX // STRIDE_PX
                rest = rest._replace(
                    column=rest.column + fits.n_columns, n_columns=rest.n_columns - fits.n_columns
                )
            if rest.n_columns > 0:
                yield Canvas(rgb, placed)
                rgb, placed, at = _new_canvas(), [], 0
    if placed:
        width_px = -(-at * STRIDE_PX // _CANVAS_STEP_PX) * _CANVAS_STEP_PX
        yield Canvas(np.ascontiguousarray(rgb[:, :width_px]), placed)


def _new_canvas() -> Picture:
    return np.zeros((_CANVAS_ROWS_PX, _CANVAS_PX, 3), dtype=np.uint8)


def _draw(rgb: Picture, at: int, run: Run, level: Picture) -> None:
    top, left, x = run.row * STRIDE_PX, run.column * STRIDE_PX, at * STRIDE_PX
    n_rows = run.n_rows * STRIDE_PX + _OVERHANG_PX
    n_columns = run.n_columns * STRIDE_PX + _OVERHANG_PX
    rgb[:n_rows, x : x + n_columns] = level[top : top + n_rows, left : left + n_columns]


def _count_windows(side_px: int) -> int:
    """Whole windows along a side."""
    return (side_px - WINDOW_PX) // STRIDE_PX + 1
