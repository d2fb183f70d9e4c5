"""What is measured of a clip's sound a hundred times a second: levels, their changes, pitch.

Hop i is centred at i / 100 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.sound import SOUND_RATE_HZ
from pipeline.sound.mel import (
    FFT_SAMPLES,
    FLOOR,
    HOP_SAMPLES,
    N_MELS,
    WINDOW_SAMPLES,
    log_energies,
    mel_energies,
)
from pipeline.sound.pitch import LOWEST_HZ, SEGMENT_SAMPLES, find_pitch
from pipeline.sound.samples import SampleReader

HOPS_HZ = SOUND_RATE_HZ // HOP_SAMPLES
N_SIGNALS = 2 * (N_MELS + 1) + 1 + 2
"""Levels (40 bands, all) and their changes, strength of the voice; pitch and its change."""
N_UNVOICED = N_SIGNALS - 2
"""Those of them that each hop has: pitch is that of voiced hops."""

_REACH = 2
"""Hops on either side from which a change is computed."""
_BLOCK_HOPS = 128
"""Measured at once, from a multiple of it on: what a hop gives does not depend on who asks."""
_CHANGE_S = 0.1
"""Changes are told for this time, so that they are about as large as levels."""
_LEVEL_DECADES = 4.0
"""Powers of ten of energy that make one of a level: 40 dB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HopSignals:
    """What was measured of N hops."""

    values: NDArray[np.float64]
    """[N, N_SIGNALS]"""
    weights: NDArray[np.float64]
    """[N, N_SIGNALS] 1, or 0 where a hop does not have the signal."""
    voiced: NDArray[np.bool_]
    """[N]"""


class HopReader:
    """Measures hops in the order of time, each once; forgets those before the last asked for."""

    def __init__(self, samples: SampleReader) -> None:
        self._samples = samples
        self._blocks: dict[int, HopSignals] = {}

    @property
    def n_sounding(self) -> int | None:
        """Hops in which there is sound; None: there is sound in all that were measured."""
        end = self._samples.end
        return None if end is None else _count_hops(end)

    def read(self, first: int, last: int) -> HopSignals:
        """Hops ``first``..``last`` - 1."""
        numbers = range(first // _BLOCK_HOPS, (last - 1) // _BLOCK_HOPS + 1)
        for number in [n for n in self._blocks if n < numbers[0]]:
            del self._blocks[number]
        blocks = [self._find_block(number) for number in numbers]
        part = slice(first - numbers[0] * _BLOCK_HOPS, last - numbers[0] * _BLOCK_HOPS)
        return HopSignals(
            values=np.concatenate([block.values for block in blocks])[part],
            weights=np.concatenate([block.weights for block in blocks])[part],
            voiced=np.concatenate([block.voiced for block in blocks])[part],
        )

    def _find_block(self, number: int) -> HopSignals:
        if number not in self._blocks:
            self._blocks[number] = self._measure(number * _BLOCK_HOPS)
        return self._blocks[number]

    def _measure(self, first: int) -> HopSignals:
        """A block; all 0 after the sound's end, as in digital silence."""
        around = np.arange(first - _REACH, first + _BLOCK_HOPS + _REACH)
        margin = SEGMENT_SAMPLES // 2
        start = around[0] * HOP_SAMPLES - margin
        sound = self._samples.read(int(start), int(around[-1] * HOP_SAMPLES + margin))
        end = self._samples.end
        n_hops = int(around[-1] + 1 if end is None else _count_hops(end))
        levels, strength, voiced, octaves = _measure_sound(sound.astype(np.float64), len(around))
        # At both ends of the sound the outermost hop stands in for those beyond it.
        stand_in = np.clip(around, 0, max(n_hops - 1, around[0])) - around[0]
        level_changes = _find_changes(levels[stand_in])
        pitch_changes = _find_changes(octaves[stand_in][:, None])
        is_steady = np.lib.stride_tricks.sliding_window_view(voiced[stand_in], 2 * _REACH + 1).all(
            axis=1
        )
        inner = slice(_REACH, _REACH + _BLOCK_HOPS)
        values = np.concatenate(
            [
                levels[inner],
                level_changes,
                strength[inner, None],
                octaves[inner, None],
                pitch_changes,
            ],
            axis=1,
        )
        weights = np.ones_like(values)
        weights[:, N_UNVOICED] = voiced[inner]
        weights[:, N_UNVOICED + 1] = is_steady
        is_sound = around[inner] < n_hops
        values[~is_sound] = 0
        weights[~is_sound, N_UNVOICED:] = 0
        return HopSignals(values=values, weights=weights, voiced=voiced[inner] & is_sound)


def _measure_sound(
    sound: NDArray[np.float64], n_hops: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Levels [N, 41], the voice's strength, whether it is voiced, its pitch in octaves, each [N].

    sound: From half a segment before the first hop to as much after the last.
    """
    segments = _cut(sound, SEGMENT_SAMPLES)[:n_hops]
    margin = (SEGMENT_SAMPLES - FFT_SAMPLES) // 2
    spectra = mel_energies(segments[:, margin : margin + FFT_SAMPLES])
    margin = (SEGMENT_SAMPLES - WINDOW_SAMPLES) // 2
    energy = (segments[:, margin : margin + WINDOW_SAMPLES] ** 2).mean(axis=1, keepdims=True)
    levels = log_energies(np.concatenate([spectra, energy], axis=1)) - np.log10(FLOOR)
    pitch = find_pitch(segments)
    octaves = np.where(pitch.voiced, np.log2(pitch.hertz / LOWEST_HZ), 0)
    return levels / _LEVEL_DECADES, pitch.strength, pitch.voiced, octaves


def _cut(sound: NDArray[np.float64], n_samples: int) -> NDArray[np.float64]:
    return np.lib.stride_tricks.sliding_window_view(sound, n_samples)[::HOP_SAMPLES]


def _find_changes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N + 4, S] -> [N, S] the slope of a line through five hops, as in HTK."""
    slope = values[3:-1] - values[1:-3] + 2 * (values[4:] - values[:-4])
    changes: NDArray[np.float64] = slope / 10 * HOPS_HZ * _CHANGE_S
    return changes


def _count_hops(n_samples: int) -> int:
    """Hops whose middle is before the end of the sound."""
    return -(-n_samples // HOP_SAMPLES)
