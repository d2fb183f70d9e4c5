"""Clocks are repaired, and ticks counted, as numbers: no film is needed to say what is right."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode.clock import EPSILON_S, Clock, PendingTimes, count_ticks, find_tick_times

JUMP = 250
"""Ten seconds of 25 frames a second, each lasting 1."""


def repair(
    times: Sequence[int], *, keys: Sequence[int] = (0,), may_jump: bool = False
) -> tuple[list[int], Clock]:
    """The repaired times, by a clock whose frames last 1; decoding times are as if sorted."""
    clock = Clock(1, longest_jump=JUMP, may_jump=may_jump)
    repaired = []
    for i, time in enumerate(times):
        repaired.append(time + clock.find_shift(time, None, 1, is_key=i in keys))
    return repaired, clock


RECORDING = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8]
"""Ten frames, stored as B frames are: after the one that follows them."""

CLOCKS: dict[str, tuple[list[int], tuple[int, ...], bool, list[int], int, int]] = {
    "a film": (RECORDING, (0,), True, RECORDING, 0, 0),
    "joined": (
        RECORDING * 2, (0, 10), False, RECORDING + [t + 10 for t in RECORDING], 1, 0,
    ),
    "joined at another time": (
        [t + 90 for t in RECORDING] + RECORDING, (0, 10), False,
        [t + 90 for t in RECORDING] + [t + 100 for t in RECORDING], 1, 0,
    ),
    "joined without a key frame": (
        [*range(30), *range(30)], (0,), False, [*range(60)], 1, 0,
    ),
    "three recordings": (RECORDING * 3, (0, 10, 20), False,
                         [t + 10 * k for k in range(3) for t in RECORDING], 2, 0),
    "key frames out of place": ([0, 1, 2, 5, 4, 3, 6], tuple(range(7)), True,
                                [0, 1, 2, 5, 4, 3, 6], 0, 0),
    "a time twice": ([0, 1, 1, 2], (0, 2), True, [0, 1, 1, 2], 0, 0),
    "a jump in a broadcast": ([*range(5), *range(900, 905)], (0, 5), True, [*range(10)], 0, 1),
    "a jump in a file": ([0, 1, 900, 901], (0, 2), False, [0, 1, 900, 901], 0, 0),
    "a gap of ten seconds": ([0, 1, 251, 252], (0, 2), True, [0, 1, 251, 252], 0, 0),
    "one wrong time": (
        [*range(20), 9999, *range(20, 40)], tuple(range(0, 40, 5)), True, [*range(41)], 1, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("times", "keys", "may_jump", "expected", "n_restarts", "n_jumps"), CLOCKS.values(), ids=CLOCKS
)
def test_the_clock_goes_on_in(
    times: list[int],
    keys: tuple[int, ...],
    may_jump: bool,
    expected: list[int],
    n_restarts: int,
    n_jumps: int,
) -> None:
    repaired, clock = repair(times, keys=keys, may_jump=may_jump)
    assert repaired == expected
    assert (clock.n_restarts, clock.n_jumps) == (n_restarts, n_jumps)


@given(st.lists(st.integers(5, 40), min_size=1, max_size=4), st.integers(0, 1000))
def test_every_frame_of_joined_recordings_counts(lengths: list[int], first: int) -> None:
    times = [first + i for length in lengths for i in range(length)]
    keys = list(itertools.accumulate([0, *lengths]))
    repaired, clock = repair(times, keys=keys)
    assert repaired == [first + i for i in range(sum(lengths))]
    assert clock.n_restarts == len(lengths) - 1


@given(st.integers(1, 16), st.integers(1, 120), st.randoms(use_true_random=False))
def test_what_a_codec_reorders_is_no_new_recording(
    depth: int, n_frames: int, rng: random.Random
) -> None:
    # A frame is stored before at most ``depth`` that are shown before it.
    waiting, times = list(range(n_frames)), []
    while waiting:
        times.append(waiting.pop(rng.randrange(min(depth + 1, len(waiting))) if times else 0))
        while waiting and sum(time > waiting[0] for time in times) >= depth:
            times.append(waiting.pop(0))
    assert repair(times)[0] == times


@given(st.integers(0, 30), st.integers(2, 60))
def test_decoding_times_place_a_group_of_frames_behind_a_jump(jump_at: int, n_groups: int) -> None:
    # IBBP in MPEG-TS: the first frame of a group is shown after two that are stored after it.
    pts = [3 * k + t for k in range(n_groups) for t in (3, 1, 2)]
    jump_at = min(3 * jump_at, len(pts) - 3) + 1
    clock = Clock(1, longest_jump=JUMP, may_jump=True)
    repaired = []
    for dts, time in enumerate(pts):
        jump = 10_000 if dts >= jump_at - jump_at % 3 + 3 else 0
        shift = clock.find_shift(time + jump, dts + jump, 1, is_key=False)
        repaired.append(time + jump + shift)
    assert repaired == pts


def test_a_packet_without_a_time_stays_without_one() -> None:
    clock = Clock(1, longest_jump=JUMP, may_jump=True)
    assert [clock.find_shift(None, dts, 1, is_key=True) for dts in (0, 5, 0)] == [0, 0, 0]


def test_absurd_durations_are_not_believed() -> None:
    clock = Clock(1, longest_jump=JUMP, may_jump=False)
    shifts = [clock.find_shift(t, None, 2**60, is_key=True) for t in range(8)]
    shifts.append(clock.find_shift(0, None, 2**60, is_key=True))
    assert shifts == [0] * 8 + [8]


ORDERS: dict[str, tuple[list[str], list[int]]] = {
    # A frame by its letter and the number of its packet; "+" goes in, "-" comes out.
    "B frames": (["+0", "+1", "+2", "-0", "+3", "-2", "+4", "-3", "-4", "-1"], [0, 1, 2, 3, 4]),
    "no B frames": (["+0", "-0", "+1", "-1", "+2", "-2"], [0, 1, 2]),
    "a start between key frames": (["+0", "+1", "+2", "+3", "-2", "+4", "-3", "-4"], [2, 3, 4]),
    "a frame lost before a key frame": (
        ["+0", "-0", "+1", "-1", "+2", "+3", "+4", "-3k", "-4"], [0, 1, 3, 4],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), ORDERS.values(), ids=ORDERS)
def test_the_earliest_time_is_that_of_the_frame_that_comes_out(
    events: list[str], expected: list[int]
) -> None:
    pending = PendingTimes()
    found = []
    for event in events:
        number = int(event[1])
        if event[0] == "+":
            pending.push(number)
        else:
            found.append(pending.pop(number, is_key=event.endswith("k")))
    assert found == expected


@given(
    st.floats(-5, 5000), st.floats(0, 3600), st.sampled_from([1, 5, 7, 25, 60, 300])
)  # fmt: skip
def test_ticks_are_computed_as_if_counted(until_s: float, origin_s: float, rate_hz: int) -> None:
    until_s = min(until_s, 60) + origin_s
    n = 0
    while origin_s + n / rate_hz < until_s - EPSILON_S:
        n += 1
    assert count_ticks(until_s, origin_s, rate_hz) == n


def test_ticks_of_an_absurd_time_are_computed_at_once() -> None:
    assert count_ticks(1e15, 0, 300) == pytest.approx(3e17)


@given(
    gaps_s=st.lists(st.floats(0.001, 12.0), min_size=1, max_size=30),
    start_s=st.floats(0.0, 0.5),
    n_phases=st.integers(1, 6),
)
def test_rows_have_the_ticks_that_chose_their_frames(
    gaps_s: list[float], start_s: float, n_phases: int
) -> None:
    """Frames with gaps between them; of one that stays longer than 10 s the first 0.2 s count."""
    rate_hz = 5 * n_phases
    shown_s = np.concatenate([[-start_s], np.cumsum(gaps_s) - start_s])
    ticks, rows_s = [], []
    for at_s, until_s in itertools.pairwise(shown_s.tolist()):
        first = count_ticks(at_s, 0.0, rate_hz) if ticks else 0
        last = count_ticks(until_s, 0.0, rate_hz)
        if until_s - max(at_s, 0.0) > 10:
            last = max(first, count_ticks(max(at_s, 0.0) + 0.2, 0.0, rate_hz))
        ticks += range(first, last)
        rows_s += [at_s] * (last - first)
    phases = np.array([tick % n_phases for tick in ticks], dtype=np.int16)

    found_s = find_tick_times(np.array(rows_s, dtype=np.float64), phases, n_phases)

    assert np.array_equal(found_s, np.array(ticks) / rate_hz)
