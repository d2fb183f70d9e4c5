"""Levels, changes and pitch of sound agree with librosa's, and with what was played."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode.sound import SOUND_RATE_HZ
from pipeline.sound.hops import N_UNVOICED, HopReader
from pipeline.sound.mel import FLOOR, N_MELS, mel_filters
from pipeline.sound.pitch import SEGMENT_SAMPLES, find_pitch
from pipeline.sound.samples import SampleReader
from tests.pipeline.sounds import clicks, tone

_TIME_S = np.arange(3 * SOUND_RATE_HZ) / SOUND_RATE_HZ


def _noise(level: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(7)
    return (level * rng.normal(size=3 * SOUND_RATE_HZ)).astype(np.float32)


def _voice(hertz: float, duration_s: float = 3.0) -> NDArray[np.float32]:
    """A tone with overtones."""
    return sum((tone(hertz * k, duration_s) / k for k in range(2, 6)), tone(hertz, duration_s)) / 3


CLIPS = {
    "noise": _noise(0.1),
    "faint noise": _noise(1e-4),
    "a voice": _voice(180),
    "a rising tone": (0.5 * np.sin(2 * np.pi * (100 * _TIME_S + 500 * _TIME_S**2))).astype("f4"),
    "clicks": clicks([0.3, 1.0, 2.5], 3, SOUND_RATE_HZ),
}


def measure(sound: NDArray[np.float32], n_hops: int) -> NDArray[np.float64]:
    """[N, N_SIGNALS], read in pieces of 1,000 samples."""
    pieces = [sound[i : i + 1000] for i in range(0, len(sound), 1000)]
    return HopReader(SampleReader(pieces)).read(0, n_hops).values


def test_the_filters_are_those_of_librosa() -> None:
    theirs = librosa.filters.mel(sr=SOUND_RATE_HZ, n_fft=512, n_mels=N_MELS)

    assert np.abs(mel_filters().T - theirs).max() < 1e-6 * theirs.max()


@pytest.mark.parametrize("sound", CLIPS.values(), ids=CLIPS)
def test_log_mel_energies_are_those_of_librosa(sound: NDArray[np.float32]) -> None:
    energies = librosa.feature.melspectrogram(
        y=sound.astype(np.float64),
        sr=SOUND_RATE_HZ,
        n_fft=512,
        win_length=400,
        hop_length=160,
        n_mels=N_MELS,
        pad_mode="constant",
    )
    theirs = np.log10(np.maximum(energies, FLOOR)).T[:300]

    ours = 4 * measure(sound, 300)[:, :N_MELS] + np.log10(FLOOR)

    assert np.abs(ours - theirs).max() < 1e-3


def test_the_level_of_all_is_librosas_root_mean_square() -> None:
    sound = CLIPS["a rising tone"] * np.linspace(0.1, 1, len(_TIME_S), dtype=np.float32)
    rms = librosa.feature.rms(y=sound.astype(np.float64), frame_length=400, hop_length=160)[0][:300]

    ours = 4 * measure(sound, 300)[:, N_MELS] + np.log10(FLOOR)

    assert np.abs(ours - np.log10(rms**2)).max() < 1e-6


def test_changes_are_librosas_deltas_in_a_tenth_of_a_second() -> None:
    signals = measure(CLIPS["a voice"] * np.hanning(len(_TIME_S)).astype(np.float32), 300)
    levels, changes = signals[:, : N_MELS + 1], signals[:, N_MELS + 1 : 2 * (N_MELS + 1)]

    theirs = 10 * librosa.feature.delta(levels, width=5, axis=0, mode="nearest")

    assert np.abs(changes - theirs).max() < 1e-9


@pytest.mark.parametrize("hertz", [65, 80, 123.4, 180, 220, 440, 587])
def test_pitch_is_what_was_played_and_librosas(hertz: float) -> None:
    sound = _voice(hertz)
    theirs = librosa.yin(sound, fmin=60, fmax=600, sr=SOUND_RATE_HZ, frame_length=1024)

    octaves = measure(sound, 300)[10:-10, N_UNVOICED]

    assert 60 * 2**octaves == pytest.approx(hertz, rel=2e-3)
    assert 60 * 2 ** float(np.median(octaves)) == pytest.approx(float(np.median(theirs)), rel=4e-3)


def test_pitch_is_found_in_noise() -> None:
    sound = _voice(180) + _noise(0.05)

    octaves = measure(sound, 300)[10:-10, N_UNVOICED]

    assert 60 * 2 ** octaves[octaves > 0] == pytest.approx(180, rel=0.03)
    assert (octaves > 0).mean() > 0.9


def test_pitch_that_rises_an_octave_a_second_changes_so() -> None:
    phase = 2 * np.pi * 100 * (2**_TIME_S - 1) / np.log(2)
    sound = (0.5 * np.sin(phase)).astype(np.float32)

    signals = measure(sound[: 2 * SOUND_RATE_HZ], 200)[20:-20]

    assert signals[:, N_UNVOICED + 1] == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("sound", "voiced"), [("a voice", True), ("noise", False), ("faint noise", False)]
)
def test_voices_are_voiced_and_noise_is_not(sound: str, voiced: bool) -> None:
    hops = HopReader(SampleReader([CLIPS[sound]])).read(10, 290)

    assert (hops.voiced == voiced).mean() > 0.95


def test_silence_has_no_pitch() -> None:
    pitch = find_pitch(np.zeros((2, SEGMENT_SAMPLES)))

    assert not pitch.voiced.any()
    assert not pitch.strength.any()


def test_silence_is_zero_and_so_is_what_follows_the_sound() -> None:
    sound = np.concatenate([np.zeros(8000, np.float32), _voice(180, 0.5), np.zeros(80, np.float32)])

    signals = measure(sound, 300)

    assert not signals[:45].any()
    assert signals[60].any()
    assert not signals[101:].any()


def test_a_hop_gives_the_same_wherever_reading_begins() -> None:
    sound = CLIPS["a rising tone"]

    from_start = HopReader(SampleReader([sound])).read(0, 300).values
    from_there = HopReader(SampleReader([sound])).read(250, 290).values

    assert np.array_equal(from_start[250:290], from_there)
