"""Times of packets and ticks as plain numbers: a stream's clock repaired, ticks computed."""

from __future__ import annotations

import heapq
import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from features.contracts import TICK_RATE_HZ

EPSILON_S = 1e-6
"""A frame stamped 0.2 counts as on screen at tick 1/5 despite rounding of its time base."""

LONGEST_STILL_S = 10.0
"""What stays on screen for longer is no film; also FFmpeg's ``-dts_delta_threshold``."""

_N_REORDERED = 16
"""H.264 and HEVC store no frame after more than 16 that are shown later than it."""
_N_JITTER = 3
"""Key frames are stored after all that are shown before them, but for disorder in a file."""


class Clock:
    """The presentation clock of a stream, in counts of its time base, repaired where it breaks.

    Where it starts again (recordings that were joined), or jumps forward where that is no time
    that passed, it goes on where the frames before it end::

        pts       0  3  1  2  4   0  2  1   900  901        duration 1
        repaired  0  3  1  2  4   5  7  6     8    9
    """

    def __init__(self, frame_duration: float, *, longest_jump: float, may_jump: bool) -> None:
        """Before the first packet.

        Args:
            frame_duration: Where a packet does not tell.
            longest_jump: What is longer is no time that passed, nor a duration to be believed.
            may_jump: Whether jumps are repaired; else they are time.
        """
        self.n_restarts = self.n_jumps = 0
        self._frame_duration = max(1, round(frame_duration))
        self._longest_jump = longest_jump
        self._may_jump = may_jump
        self._shift = 0
        self._latest: list[int] = []
        """The latest of the repaired times so far, as a heap."""
        self._end = 0
        """When the last frame so far leaves the screen, repaired."""
        self._decoding_end: int | None = None
        """The same of the last packet, by decoding time."""

    def find_shift(
        self, pts: int | None, dts: int | None, duration: int | None, *, is_key: bool
    ) -> int:
        """What to add to the times of the stream's next packet, in the order they are stored."""
        if pts is None:
            return self._shift
        if not duration or not 0 < duration <= self._longest_jump:
            duration = self._frame_duration
        if self._latest:
            time = pts + self._shift
            n_later = sum(latest > time for latest in self._latest)
            restarts = n_later > (_N_JITTER if is_key else _N_REORDERED)
            jumps = self._may_jump and time > max(self._latest) + self._longest_jump
            if restarts or jumps:
                self._shift = self._join(pts, dts)
                self.n_restarts += restarts
                self.n_jumps += jumps
        time = pts + self._shift
        push = heapq.heappush if len(self._latest) <= _N_REORDERED else heapq.heappushpop
        push(self._latest, time)
        self._end = max(self._end, time + duration) if len(self._latest) > 1 else time + duration
        self._decoding_end = None if dts is None else dts + self._shift + duration
        return self._shift

    def _join(self, pts: int, dts: int | None) -> int:
        """The shift by which a packet follows those before it."""
        shift = self._end - pts
        if dts is None or self._decoding_end is None:
            return shift
        # A packet in the middle of a group is shown after some that are stored after it.
        by_decoding = self._decoding_end - dts
        most = shift + _N_REORDERED * self._frame_duration
        return by_decoding if shift < by_decoding <= most else shift


class PendingTimes:
    """Times of packets whose frames are still in the decoder.

    Where times rise in the order in which packets are stored, not shown, the frame that comes out
    next gets the earliest of them::

        stored      I0 P4 B2 B1 B3   with times 0 1 2 3 4
        comes out   I0 B1 B2 B3 P4   gets       0 1 2 3 4
    """

    def __init__(self) -> None:
        self._times: deque[int] = deque(maxlen=4 * _N_REORDERED)
        self._is_first = True

    def push(self, pts: int | None) -> None:
        """A packet goes into the decoder."""
        if pts is not None:
            self._times.append(pts)

    def pop(self, pts: int, *, is_key: bool) -> int:
        """The time of a frame that comes out. pts: of its own packet."""
        if is_key or self._is_first:  # all that is shown before it has come out, or never will
            while self._times and self._times[0] < pts:
                self._times.popleft()
        self._is_first = False
        return self._times.popleft() if self._times else pts


def count_ticks(until_s: float, origin_s: float, rate_hz: float) -> int:
    """How many ticks, at ``origin_s`` + k / ``rate_hz`` for k = 0, 1 ..., lie before a time."""
    end_s = until_s - EPSILON_S
    n = max(0, math.ceil((end_s - origin_s) * rate_hz))
    if origin_s + n / rate_hz < end_s:  # it was rounded
        return n + 1
    return n - 1 if n and origin_s + (n - 1) / rate_hz >= end_s else n


def find_tick_times(
    pts_s: NDArray[np.float64], phase: NDArray[np.int16], n_phases: int
) -> NDArray[np.float64]:
    """When each row of a clip's frames has its tick, from what the store keeps of it.

    A row's frame is on screen at its tick, so it appears at or before it::

        pts_s   0.00  0.15  0.30  0.30  20.00       n_phases = 1: of a frame that stays for 19.7 s
        ticks   0.0   0.2   0.4   0.6   20.0        only the first ticks have rows

    Args:
        pts_s: [F] non-decreasing, from the clip's start.
        phase: [F] 0..``n_phases`` - 1.
        n_phases: Of the clock.

    Returns:
        [F] seconds from the clip's start, increasing.
    """
    rate_hz = TICK_RATE_HZ * n_phases
    ticks = np.empty(len(pts_s))
    tick = -1
    for row, (shown_s, at) in enumerate(zip(pts_s.tolist(), phase.tolist(), strict=True)):
        tick += 1
        if row and shown_s > pts_s[row - 1]:  # the first frame stands in for ticks before it
            tick = max(tick, count_ticks(shown_s, 0.0, rate_hz))
        tick += (at - tick) % n_phases
        ticks[row] = tick
    return ticks / rate_hz
