"""The demo set's sound: a hummed voice whose pitch, loudness and pace go with an emotion.

Which way each emotion goes follows what studies agree on (Juslin and Laukka 2003, table 11): anger
and joy are loud and fast, fear is high and trembles, sadness is low, soft and slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VOICE_RATE_HZ = 16_000
_N_OVERTONES = 12
_TREMBLES_HZ = 6.5


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How a voice hums. Mixed and varied as a whole: each value is on a scale of steps."""

    pitch: float
    """In the middle of a syllable: octaves above 100 Hz."""
    glide: float = 0.0
    """Octaves by which pitch rises from a syllable's start to its end; below 0 it falls."""
    pace: float
    """Syllables: octaves above one a second."""
    loudness: float
    """Root mean square of a syllable's middle: tens of dB below full scale, so below 0."""
    dullness: float
    """By how many times 6 dB an octave the overtones are softer."""
    tremble: float = 0.0
    """Octaves by which pitch swings up and down."""
    breath: float = 0.0
    """Share of noise in the voice's energy, 0..1."""

    def __mul__(self, strength: float) -> Voice:
        return Voice(**{name: value * strength for name, value in vars(self).items()})

    def __add__(self, other: Voice) -> Voice:
        return Voice(**{name: value + vars(other)[name] for name, value in vars(self).items()})


VOICES: Mapping[str, Voice] = {
    "happy": Voice(pitch=1.1, glide=0.35, pace=2.3, loudness=-1.6, dullness=1.1),
    "sad": Voice(pitch=0.45, glide=-0.3, pace=1.1, loudness=-2.6, dullness=2.2),
    "angry": Voice(pitch=0.9, glide=-0.25, pace=2.4, loudness=-1.4, dullness=0.6, breath=0.15),
    "surprise": Voice(pitch=1.4, glide=0.8, pace=1.6, loudness=-1.7, dullness=1.2),
    "disgust": Voice(pitch=0.4, glide=-0.4, pace=1.4, loudness=-1.9, dullness=0.9, breath=0.35),
    "worried": Voice(pitch=0.85, glide=-0.1, pace=1.8, loudness=-2.2, dullness=1.6, tremble=0.05),
    "anxious": Voice(pitch=1.3, glide=0.1, pace=2.5, loudness=-2.0, dullness=1.5, tremble=0.12),
    "neutral": Voice(pitch=0.6, glide=0.0, pace=1.9, loudness=-2.0, dullness=1.5),
}
"""The strong form of each class's voice."""


def hum(
    voice: Voice | None, *, onset_s: float, duration_s: float, room: float, seed: int
) -> NDArray[np.float32]:
    """The sound of a clip.

    Args:
        voice: Who hums; None: nobody.
        onset_s: When the first syllable begins.
        duration_s: Of the sound.
        room: Loudness of the room's noise, in tens of dB below full scale.
        seed: Of the noise.

    Returns:
        [N] at 16 kHz, -1..1.
    """
    n_samples = round(duration_s * VOICE_RATE_HZ)
    noise = np.random.default_rng(seed).standard_normal((2, n_samples))
    sound = noise[0] * 10 ** (room / 2)
    if voice is not None:
        time_s = np.arange(n_samples) / VOICE_RATE_HZ - onset_s
        place = np.where(time_s >= 0, time_s * 2**voice.pace, 0) % 1  # within a syllable
        octaves = voice.pitch + voice.glide * (place - 0.5)
        octaves += voice.tremble * np.sin(2 * np.pi * _TREMBLES_HZ * time_s)
        phase = np.cumsum(2 * np.pi * 100 * 2**octaves / VOICE_RATE_HZ)
        weights = np.arange(1, _N_OVERTONES + 1) ** -voice.dullness
        weights *= np.sqrt(2 * (1 - voice.breath) / (weights**2).sum())
        tones = sum(
            weight * np.sin(number * phase) for number, weight in enumerate(weights, start=1)
        )
        loud = np.sin(np.pi * place) ** 0.5 * (time_s >= 0)
        mixed = tones + noise[1] * np.sqrt(voice.breath)
        sound = sound + 10 ** (voice.loudness / 2) * loud * mixed
    clipped: NDArray[np.float32] = np.clip(sound, -1, 1).astype(np.float32)
    return clipped
