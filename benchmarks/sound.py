"""What docs/sound.md tells, measured: log-mel against librosa, clicks, cost a minute of film.

python benchmarks/sound.py
python benchmarks/sound.py --clips clips.csv    whose sound is decoded, too
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

import librosa
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.decode.notes import Notes
from pipeline.decode.sound import iter_sound
from pipeline.sound.mel import FLOOR, N_MELS
from pipeline.sound.rows import SoundRows
from tests.pipeline.sound.test_hops import CLIPS, measure
from tests.pipeline.sounds import clicks, clip_of, find_clicks, hear, tone, write_film

CLICKS_S = [0.5, 1.0, 1.5]


def compare_log_mel() -> None:
    """Greatest difference of decimal logarithms, of five generated clips."""
    for name, sound in CLIPS.items():
        energies = librosa.feature.melspectrogram(
            y=sound.astype(np.float64), sr=16_000, n_fft=512, win_length=400, hop_length=160,
            n_mels=N_MELS, pad_mode="constant",
        )  # fmt: skip
        theirs = np.log10(np.maximum(energies, FLOOR)).T[:300]
        ours = 4 * measure(sound, 300)[:, :N_MELS] + np.log10(FLOOR)
        print(f"log-mel, {name}: {np.abs(ours - theirs).max():.1e}")


def find_click_errors(folder: Path) -> None:
    """By how much clicks are heard too early or late, in ms."""
    kinds = [
        ("mp4", "aac", 48_000, "stereo"), ("mp4", "libmp3lame", 44_100, "mono"),
        ("mkv", "libopus", 48_000, "stereo"), ("mkv", "flac", 44_100, "stereo"),
        ("mov", "pcm_f32le", 96_000, "5.1"), ("ts", "aac", 48_000, "stereo"),
        ("ts", "ac3", 48_000, "5.1"), ("flv", "aac", 44_100, "stereo"),
        ("avi", "pcm_s16le", 8_000, "mono"), ("avi", "libmp3lame", 44_100, "stereo"),
    ]  # fmt: skip
    for ending, codec, rate_hz, layout in kinds:
        path = write_film(
            folder / f"film.{ending}", clicks(CLICKS_S, 2, rate_hz), codec=codec, rate_hz=rate_hz,
            layout=layout,
        )  # fmt: skip
        late_ms = 1e3 * np.abs(np.array(find_clicks(hear(path))) - CLICKS_S).max()
        print(f"clicks, {ending} with {codec} {rate_hz} {layout}: {late_ms:.2f} ms")


def time_film(folder: Path, minutes: int = 3) -> None:
    """Seconds of a core for a minute of film with AAC, 48 kHz, stereo."""
    sound = tone(200, 60 * minutes, 48_000)
    path = write_film(folder / "long.mp4", sound, layout="stereo", n_frames=1500 * minutes)
    began_s = time.process_time()
    chunks = list(iter_sound(clip_of(path), Notes()))
    decoded_s = time.process_time()
    SoundRows(chunks).compute(np.arange(300 * minutes) / 5)
    ended_s = time.process_time()
    print(f"decoding {(decoded_s - began_s) / minutes:.2f} s a minute")
    print(f"rows at 5 ticks a second {(ended_s - decoded_s) / minutes:.2f} s a minute")


def time_clips(manifest: Path) -> None:
    """The same of clips, and how many have no sound."""
    rows = list(csv.DictReader(manifest.open(encoding="utf-8")))
    heard_s = decoded_s = computed_s = 0.0
    noted: dict[str, int] = {}
    for row in rows:
        notes = Notes()
        began_s = time.process_time()
        chunks = list(iter_sound(clip_of(manifest.parent / row["path"]), notes))
        decoded_s += time.process_time() - began_s
        length_s = sum(map(len, chunks)) / 16_000
        began_s = time.process_time()
        SoundRows(chunks).compute(np.arange(0, length_s, 0.2))
        computed_s += time.process_time() - began_s
        heard_s += length_s
        for name in notes.amounts:
            noted[name] = noted.get(name, 0) + 1
    print(
        f"{len(rows)} clips, {heard_s:.0f} s of sound: decoding {60 * decoded_s / heard_s:.2f}, "
        f"rows {60 * computed_s / heard_s:.2f} s a minute; notes {noted}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, help="A manifest.")
    clips = parser.parse_args().clips
    compare_log_mel()
    with tempfile.TemporaryDirectory() as folder:
        find_click_errors(Path(folder))
        time_film(Path(folder))
    if clips is not None:
        time_clips(clips)


if __name__ == "__main__":
    main()
