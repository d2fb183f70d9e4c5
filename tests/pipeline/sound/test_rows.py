"""Rows of the stream ``audio`` tell what is heard around their ticks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode.sound import SOUND_RATE_HZ
from pipeline.sound.hops import N_SIGNALS, N_UNVOICED, HopReader
from pipeline.sound.rows import ROW_SIZE, SoundRows
from pipeline.sound.samples import SampleReader
from tests.pipeline.sounds import clicks, tone

TICKS_S = np.arange(40) / 5


def _speech(duration_s: float = 8.0) -> NDArray[np.float32]:
    """Voiced stretches, noise and silence by turns."""
    rng = np.random.default_rng(3)
    voice = tone(170, duration_s) + tone(340, duration_s) / 2
    noise = 0.05 * rng.normal(size=len(voice)).astype(np.float32)
    turn = (np.arange(len(voice)) // 5000) % 3
    return np.where(turn == 0, voice, np.where(turn == 1, noise, 0)).astype(np.float32)


def test_a_row_is_mean_and_deviation_of_two_seconds_around_its_tick() -> None:
    sound = _speech()
    hops = HopReader(SampleReader([sound])).read(0, 800)

    row = SoundRows([sound]).compute(np.array([3.0]))[0].astype(np.float64)

    window = hops.values[200:400]
    plain = slice(0, N_UNVOICED)
    assert row[plain] == pytest.approx(window[:, plain].mean(axis=0), abs=2e-3)
    deviations = row[N_SIGNALS : N_SIGNALS + N_UNVOICED]
    assert deviations == pytest.approx(window[:, plain].std(axis=0), abs=2e-3)
    voiced = hops.voiced[200:400]
    pitch = window[voiced, N_UNVOICED]
    assert 0.2 < voiced.mean() < 0.8
    assert row[N_UNVOICED] == pytest.approx(pitch.mean(), abs=2e-3)
    assert row[N_SIGNALS + N_UNVOICED] == pytest.approx(pitch.std(), abs=2e-3)
    assert row[-1] == pytest.approx(voiced.mean(), abs=1e-3)


def test_rows_are_the_same_computed_at_once_or_in_parts() -> None:
    sound = _speech()

    whole = SoundRows([sound]).compute(TICKS_S)
    pieces = (sound[i : i + 1024] for i in range(0, len(sound), 1024))
    by_parts = SoundRows(pieces)
    parts = [by_parts.compute(TICKS_S[i : i + 7]) for i in range(0, len(TICKS_S), 7)]

    assert np.array_equal(np.concatenate(parts), whole)


def test_a_click_is_in_the_rows_of_the_second_before_and_after() -> None:
    rows = SoundRows([clicks([4.0], 8, SOUND_RATE_HZ)]).compute(TICKS_S)

    heard_s = TICKS_S[rows.any(axis=1)]

    assert (heard_s.min(), heard_s.max()) == (3.0, 5.0)


@pytest.mark.parametrize("n_samples", [0, 8 * SOUND_RATE_HZ], ids=["no sound", "silence"])
def test_rows_without_sound_are_zero(n_samples: int) -> None:
    rows = SoundRows([np.zeros(n_samples, dtype=np.float32)] if n_samples else []).compute(TICKS_S)

    assert rows.shape == (40, ROW_SIZE)
    assert rows.dtype == np.float16
    assert not rows.any()


def test_windows_end_with_the_sound_or_at_their_tick() -> None:
    rows = SoundRows([tone(200, 4.0)]).compute(TICKS_S).astype(np.float64)
    level, share_voiced = rows[:, 40], rows[:, -1]

    assert level[:21] == pytest.approx(level[10], rel=0.02)  # nothing after 4.0 s counts
    assert share_voiced[22] == pytest.approx(0.6 / 1.0 * 0.98, abs=0.08)  # 3.4 to 4.4 s
    assert np.all(np.diff(level[20:26]) < 0)
    assert not rows[26:].any()


def test_after_a_long_step_rows_are_those_of_a_clip_that_has_none() -> None:
    sound = _speech(40)

    rows = SoundRows([sound]).compute(np.array([1.0, 30.0, 30.2]))

    assert np.array_equal(rows[1:], SoundRows([sound]).compute(np.array([30.0, 30.2])))


def test_a_long_clip_is_not_kept_in_memory() -> None:
    given = 0

    def minutes() -> Iterator[NDArray[np.float32]]:
        nonlocal given
        for _ in range(60):
            given += 1
            yield np.zeros(60 * SOUND_RATE_HZ, dtype=np.float32)

    reader = SampleReader(minutes())
    rows = SoundRows([])
    rows._hops = HopReader(reader)
    for minute in range(5):
        rows.compute(60 * minute + np.arange(300) / 5)

    assert given <= 6
    assert sum(len(chunk) for chunk in reader._kept) <= 2 * 60 * SOUND_RATE_HZ
    assert len(rows._hops._blocks) < 100
