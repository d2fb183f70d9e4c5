"""Pitch of voiced sound by YIN (de Cheveigne and Kawahara 2002)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.sound import SOUND_RATE_HZ

LOWEST_HZ, HIGHEST_HZ = 60.0, 600.0
"""From deep voices to a child's, or a scream's."""
SEGMENT_SAMPLES = 1024
_WINDOW_SAMPLES = 512
"""Compared with itself, shifted: 32 ms, about two periods of the lowest voice."""
_LEAST_PERIOD = int(SOUND_RATE_HZ / HIGHEST_HZ)
_LONGEST_PERIOD = int(np.ceil(SOUND_RATE_HZ / LOWEST_HZ))
_TROUGH = 0.1
"""The period is that of the first trough that is no more than this above the deepest: those of its
multiples are about as deep."""
_NEAR = 1.25
"""Of the period of that trough: how far a deeper one is still taken for the same."""
_VOICED = 0.25
"""Sound is voiced whose period leaves no more than this share of its energy unexplained."""
_LEAST_ENERGY = 1e-8
"""Mean square of a sample below which nothing is voiced: -80 dB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pitch:
    """The pitch of N segments of sound."""

    hertz: NDArray[np.float64]
    """[N] 60..600; of segments that are not voiced the best guess."""
    strength: NDArray[np.float64]
    """[N] 0..1: the share of the energy that repeats with the period; 0 in silence."""
    voiced: NDArray[np.bool_]
    """[N]"""


def find_pitch(segments: NDArray[np.float64]) -> Pitch:
    """Find the period with which segments of sound repeat themselves.

    Args:
        segments: [N, 1024] samples; the window and its shifted copies are the first 779 of them.
    """
    unlike = _differ(segments)  # [N, longest period + 2], normalised: 1 where nothing repeats
    inner = unlike[:, _LEAST_PERIOD : _LONGEST_PERIOD + 1]
    before = unlike[:, _LEAST_PERIOD - 1 : _LONGEST_PERIOD]
    after = unlike[:, _LEAST_PERIOD + 1 : _LONGEST_PERIOD + 2]
    is_trough = (inner <= before) & (inner < after)
    troughs = np.where(is_trough, inner, inner.min(axis=1, keepdims=True) + 2)
    deepest = troughs.min(axis=1, keepdims=True)
    first = (troughs <= deepest + _TROUGH).argmax(axis=1)[:, None]
    # In noise there are small troughs on the way down into it.
    shifts = _LEAST_PERIOD + np.arange(inner.shape[1])
    near = (shifts >= _LEAST_PERIOD + first) & (shifts <= _NEAR * (_LEAST_PERIOD + first))
    chosen = np.where(near, troughs, np.inf).argmin(axis=1)
    rows = np.arange(len(segments))
    low, left, right = inner[rows, chosen], before[rows, chosen], after[rows, chosen]
    curve = left + right - 2 * low
    # The lowest point of a parabola through three values.
    shift = np.where(curve > 1e-12, 0.5 * (left - right) / np.maximum(curve, 1e-12), 0)
    period = _LEAST_PERIOD + chosen + np.clip(shift, -0.5, 0.5)
    energy = (segments[:, :_WINDOW_SAMPLES] ** 2).mean(axis=1)
    strength = np.where(energy > _LEAST_ENERGY, np.clip(1 - low, 0, 1), 0)
    return Pitch(
        hertz=np.clip(SOUND_RATE_HZ / period, LOWEST_HZ, HIGHEST_HZ),
        strength=strength,
        voiced=strength > 1 - _VOICED,
    )


def _differ(segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cumulative mean normalised difference function (the paper's eq. 8) at each shift.

    Returns:
        [N, longest period + 2]
    """
    n_shifts = _LONGEST_PERIOD + 2
    window = segments[:, :_WINDOW_SAMPLES]
    reach = segments[:, : _WINDOW_SAMPLES + n_shifts]
    # No sum wraps round: the window and all its shifts are shorter than the transform.
    spectra = np.fft.rfft(window, SEGMENT_SAMPLES).conj() * np.fft.rfft(reach, SEGMENT_SAMPLES)
    products = np.fft.irfft(spectra, SEGMENT_SAMPLES)[:, :n_shifts]
    squares = np.cumsum(np.pad(reach**2, ((0, 0), (1, 0))), axis=1)
    energies = squares[:, _WINDOW_SAMPLES : _WINDOW_SAMPLES + n_shifts] - squares[:, :n_shifts]
    difference = np.maximum(energies[:, :1] + energies - 2 * products, 0)
    sums = np.cumsum(difference[:, 1:], axis=1)
    shifts = np.arange(1, n_shifts)
    unlike = np.ones_like(difference)
    np.divide(difference[:, 1:] * shifts, sums, out=unlike[:, 1:], where=sums > 1e-12)
    return unlike
