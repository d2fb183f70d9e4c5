"""Log-mel energies of sound: a bank of 40 filters on spectra of 25 ms, a hundred a second."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.sound import SOUND_RATE_HZ

HOP_SAMPLES = 160
"""From one spectrum to the next: 10 ms, as in speech recognition."""
WINDOW_SAMPLES = 400
"""Of a spectrum: 25 ms, short enough that speech stands still in it."""
FFT_SAMPLES = 512
N_MELS = 40
FLOOR = 1e-8
"""Least energy; of sound between -1 and 1, the noise of 16 bits gives a twentieth of it."""

_LINEAR_HZ, _HZ_A_MEL = 1000.0, 200 / 3
"""Slaney's scale (Auditory Toolbox, 1998) is linear up to 1 kHz and logarithmic from there on."""
_LOG_STEP = np.log(6.4) / 27


@cache
def mel_filters() -> NDArray[np.float64]:
    """The filter bank of Slaney's Auditory Toolbox, as librosa has it by default.

    Returns:
        [257, 40] triangles over the lines of the spectrum, 0 to 8 kHz; the area of each in Hz is 1.
    """
    edges_hz = _to_hertz(np.linspace(0, _to_mels(SOUND_RATE_HZ / 2), N_MELS + 2))
    lines_hz = np.arange(FFT_SAMPLES // 2 + 1)[:, None] * SOUND_RATE_HZ / FFT_SAMPLES
    left, middle, right = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising = (lines_hz - left) / (middle - left)
    falling = (right - lines_hz) / (right - middle)
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)
    return filters


def mel_energies(segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """The energies of segments of sound in each band, as ``librosa.feature.melspectrogram``.

    Args:
        segments: [N, 512] samples around the middle of each spectrum, of which a Hann window takes
            the middle 400.

    Returns:
        [N, 40] sums of squared magnitudes, weighted by the filters.
    """
    spectra = np.fft.rfft(segments * _window(), axis=1)
    energies: NDArray[np.float64] = (spectra.real**2 + spectra.imag**2) @ mel_filters()
    return energies


def log_energies(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decimal logarithms, none below that of the floor."""
    logs: NDArray[np.float64] = np.log10(np.maximum(energies, FLOOR))
    return logs


@cache
def _window() -> NDArray[np.float64]:
    rest = FFT_SAMPLES - WINDOW_SAMPLES
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)
    return np.pad(hann, (rest // 2, rest - rest // 2))


def _to_mels(hertz: float) -> float:
    return float(_LINEAR_HZ / _HZ_A_MEL + np.log(hertz / _LINEAR_HZ) / _LOG_STEP)


def _to_hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mels * _HZ_A_MEL
    beyond = _LINEAR_HZ * np.exp(_LOG_STEP * (mels - _LINEAR_HZ / _HZ_A_MEL))
    return np.where(linear < _LINEAR_HZ, linear, beyond)
