"""The stream ``audio``: for each tick, mean and deviation of what is measured around it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.clock import EPSILON_S
from pipeline.sound.hops import HOPS_HZ, N_SIGNALS, HopReader, HopSignals
from pipeline.sound.samples import SampleReader

WINDOW_S = 2.0
"""Of a row, the tick in its middle: a short sentence (docs/sound.md says why)."""
ROW_SIZE = 2 * N_SIGNALS + 1
"""Means, deviations, and the share of the hops that is voiced."""

_MOST_ROWS = 256
"""Computed at once: about a minute of sound at 5 ticks a second."""
_LONGEST_STEP_S = 10.0
"""From tick to tick; rows on either side of a longer one are not computed together."""


class SoundRows:
    """Computes the rows of one clip in the order of its ticks, in bounded memory."""

    def __init__(self, chunks: Iterable[NDArray[np.float32]]) -> None:
        """chunks: of ``iter_sound``."""
        self._hops = HopReader(SampleReader(chunks))

    def compute(self, tick_s: NDArray[np.float64]) -> NDArray[np.float16]:
        """The rows of the clip's next ticks.

        A window ends with the clip's sound, or at its tick where that comes later: what follows the
        sound is silence. It begins with the clip at the earliest.

        Args:
            tick_s: [F] seconds from the clip's start, increasing, after those before.

        Returns:
            [F, ROW_SIZE] 0 in digital silence, and where there is no sound.
        """
        rows = np.zeros((len(tick_s), ROW_SIZE), dtype=np.float16)
        for part in _iter_parts(tick_s):
            rows[part] = self._compute(tick_s[part])
        return rows

    def _compute(self, tick_s: NDArray[np.float64]) -> NDArray[np.float64]:
        half = WINDOW_S / 2
        firsts = np.ceil((tick_s - half - EPSILON_S) * HOPS_HZ).astype(np.intp)
        lasts = np.ceil((tick_s + half - EPSILON_S) * HOPS_HZ).astype(np.intp)
        at_tick = np.floor((tick_s + EPSILON_S) * HOPS_HZ).astype(np.intp) + 1
        firsts = np.maximum(firsts, 0)
        first = int(firsts[0])
        hops = self._hops.read(first, int(lasts[-1]))
        n_sounding = self._hops.n_sounding
        if n_sounding is not None:
            lasts = np.minimum(lasts, np.maximum(n_sounding, at_tick))
        return _summarise(hops, firsts - first, lasts - first)


def _summarise(
    hops: HopSignals, firsts: NDArray[np.intp], lasts: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Mean and deviation of hops ``firsts``..``lasts`` - 1 of each row, at least one hop."""
    weights = _sum_up(hops.weights, firsts, lasts)
    sums = _sum_up(hops.weights * hops.values, firsts, lasts)
    squares = _sum_up(hops.weights * hops.values**2, firsts, lasts)
    n = np.maximum(weights, 1)  # 0: nothing is voiced
    mean = sums / n
    deviation = np.sqrt(np.maximum(squares / n - mean**2, 0))
    voiced = (
        _sum_up(hops.voiced[:, None].astype(np.float64), firsts, lasts) / (lasts - firsts)[:, None]
    )
    return np.concatenate([mean, deviation, voiced], axis=1)


def _sum_up(
    values: NDArray[np.float64], firsts: NDArray[np.intp], lasts: NDArray[np.intp]
) -> NDArray[np.float64]:
    until = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    sums: NDArray[np.float64] = until[lasts] - until[firsts]
    return sums


def _iter_parts(tick_s: NDArray[np.float64]) -> Iterator[slice]:
    breaks = np.flatnonzero(np.diff(tick_s) > _LONGEST_STEP_S) + 1
    for first, last in zip([0, *breaks], [*breaks, len(tick_s)], strict=True):
        for i in range(math.ceil((last - first) / _MOST_ROWS)):
            yield slice(first + i * _MOST_ROWS, min(last, first + (i + 1) * _MOST_ROWS))
