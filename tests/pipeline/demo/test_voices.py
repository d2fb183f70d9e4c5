"""The demo set's sound: what the plan says of it, and that the pictures do not know of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest

from features.contracts import MEC_CLASSES
from pipeline.decode.notes import Notes
from pipeline.decode.sound import SOUND_RATE_HZ
from pipeline.demo import render as demo
from pipeline.demo.plan import DemoClip, demo_clips
from pipeline.demo.render import render_demo_set, render_sound
from pipeline.demo.voices import VOICES, hum
from pipeline.sound.hops import N_UNVOICED, HopReader
from pipeline.sound.samples import SampleReader
from tests.pipeline.sounds import hear


def test_the_voice_agrees_with_the_label_more_often_than_chance_and_not_always() -> None:
    clips = demo_clips()
    nearest = [_find_nearest(clip) for clip in clips]

    share = np.mean([label == clip.label for label, clip in zip(nearest, clips, strict=True)])

    assert 0.4 < share < 0.8  # chance: 0.125


def test_some_clips_have_no_voice_and_some_no_sound() -> None:
    clips = demo_clips()

    assert sum(clip.sound is None for clip in clips) == 2
    assert sum(clip.sound is not None and clip.sound.voice is None for clip in clips) == 14


def test_a_hum_has_the_pitch_and_the_loudness_that_were_planned() -> None:
    voice = dataclasses.replace(VOICES["neutral"], pitch=1.0, loudness=-2.0)

    sound = hum(voice, onset_s=0.0, duration_s=2.0, room=-5.0, seed=1)

    hops = HopReader(SampleReader([sound])).read(0, 200)
    octaves = hops.values[hops.voiced, N_UNVOICED]
    assert 60 * 2 ** np.median(octaves) == pytest.approx(200, rel=0.01)
    assert 10 * np.log10((sound**2).max() / 2) == pytest.approx(-20, abs=8)
    assert hops.voiced.mean() > 0.5


def test_nobody_hums_before_the_onset() -> None:
    sound = hum(VOICES["angry"], onset_s=1.0, duration_s=2.0, room=-6.0, seed=1)

    assert np.abs(sound[:SOUND_RATE_HZ]).max() < 0.01 < 0.1 < np.abs(sound[SOUND_RATE_HZ:]).max()


def test_a_rendered_clip_sounds_as_planned_and_looks_as_without_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = dataclasses.replace(demo_clips()[0], n_frames=25, still=(0, 0))
    silent = dataclasses.replace(clip, clip_id="silent", sound=None)
    monkeypatch.setattr(demo, "demo_clips", lambda: (clip, silent))

    folder = render_demo_set(tmp_path).parent / "clips"

    planned, heard = render_sound(clip), hear(folder / f"{clip.clip_id}.mp4")
    assert np.corrcoef(planned, heard[: len(planned)])[0, 1] > 0.9
    assert _read_film(folder / f"{clip.clip_id}.mp4") == _read_film(folder / "silent.mp4")
    notes = Notes()
    assert not hear(folder / "silent.mp4", notes).size
    assert notes.amounts == {"no_sound": 1}


def _find_nearest(clip: DemoClip) -> str:
    """The class whose voice the clip's is most like."""
    if clip.sound is None or clip.sound.voice is None:
        return ""
    voice = np.array(list(vars(clip.sound.voice).values()))
    away = {name: np.abs(voice - np.array(list(vars(VOICES[name]).values()))).sum() for name in
            MEC_CLASSES}  # fmt: skip
    return min(away, key=lambda name: away[name])


def _read_film(path: Path) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(video=0)]
