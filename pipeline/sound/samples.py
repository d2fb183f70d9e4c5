"""Stretches of a clip's sound, read one after another without keeping the whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.sound import SOUND_RATE_HZ


class SampleReader:
    """Reads samples by their number; forgets those before the last stretch that was read."""

    def __init__(self, chunks: Iterable[NDArray[np.float32]]) -> None:
        """chunks: of ``iter_sound``; as many are taken as are needed."""
        self._chunks = iter(chunks)
        self._kept: deque[NDArray[np.float32]] = deque()
        self._first = self._n_loaded = 0
        """Number of the first sample that is kept, and of the next one to come."""
        self.end: int | None = None
        """Number of samples in all, once the last was seen."""

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Samples ``first``..``last`` - 1; zeros before the clip's start and after the sound's end.

        Raises ValueError where ``first`` falls: what was before it is forgotten.
        """
        while self.end is None and self._n_loaded < last:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.end = self._n_loaded
            else:
                self._kept.append(chunk)
                self._n_loaded += len(chunk)
                self._forget(first)
        if max(first, 0) < self._first:
            raise ValueError(f"sample {first} is forgotten; kept from {self._first} on")
        self._forget(first)
        stretch = np.zeros(last - first, dtype=np.float32)
        at = self._first - first
        for chunk in self._kept:
            begin, end = max(at, 0), min(at + len(chunk), len(stretch))
            if begin < end:
                stretch[begin:end] = chunk[begin - at : end - at]
            at += len(chunk)
        return stretch

    def _forget(self, before: int) -> None:
        while self._kept and self._first + len(self._kept[0]) <= before:
            self._first += len(self._kept.popleft())


def iter_windows(
    chunks: Iterable[NDArray[np.float32]], tick_s: NDArray[np.float64], n_samples: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the sound around each tick: the input of a learned audio encoder.

    Args:
        chunks: Of ``pipeline.decode.sound.iter_sound``: mono, 16 kHz, -1..1.
        tick_s: [F] non-decreasing, from the clip's start (``find_tick_times``).
        n_samples: Of a window, the tick in its middle.

    Yields:
        [n_samples] for each tick; zeros where the clip has no sound.
    """
    reader = SampleReader(chunks)
    for at_s in tick_s.tolist():
        first = round(at_s * SOUND_RATE_HZ) - n_samples // 2
        yield reader.read(first, first + n_samples)
