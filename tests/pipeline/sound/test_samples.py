"""Windows of sound stand around their ticks."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sound.samples import SampleReader, iter_windows


def test_a_window_has_its_tick_in_the_middle_and_zeros_outside_the_clip() -> None:
    sound = np.arange(1, 16_001, dtype=np.float32)
    ticks_s = np.array([0.0, 0.2, 0.9, 0.9999, 3.0])

    windows = list(iter_windows([sound[:700], sound[700:]], ticks_s, 400))

    assert [window.shape for window in windows] == [(400,)] * 5
    assert [window[200] for window in windows] == [1, 3201, 14_401, 15_999, 0]
    assert not windows[0][:200].any()
    assert np.array_equal(windows[1], sound[3000:3400])
    assert np.count_nonzero(windows[3]) == 202
    assert not windows[4].any()


def test_only_what_is_needed_is_read() -> None:
    chunks = iter([np.ones(100, dtype=np.float32)] * 5)

    reader = SampleReader(chunks)

    assert reader.read(-10, 150).sum() == 150
    assert len(list(chunks)) == 3
    assert reader.end is None


def test_samples_that_are_forgotten_are_not_taken_for_silence() -> None:
    reader = SampleReader([np.ones(100, dtype=np.float32)] * 5)
    reader.read(250, 300)

    with pytest.raises(ValueError, match="sample 50 is forgotten"):
        reader.read(50, 120)
