"""The sound of a clip stands on the clock of its frames, whatever the file does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet

from features.errors import ClipError
from pipeline.decode.notes import Notes
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.decode.sound import SOUND_RATE_HZ, iter_sound
from tests.pipeline.sounds import clicks, clip_of, find_clicks, hear, tone, write_film
from tests.pipeline.videos import grey_frames, spoil, write_sound, write_video

HOP_S = 0.01
AT_S = [0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("ending", "codec", "rate_hz", "layout"),
    [
        ("mp4", "aac", 48_000, "stereo"),
        ("mp4", "libmp3lame", 44_100, "mono"),
        ("mkv", "aac", 44_100, "mono"),
        ("mkv", "libopus", 48_000, "stereo"),
        ("mkv", "flac", 44_100, "stereo"),
        ("mkv", "pcm_s16le", 22_050, "mono"),
        ("mov", "pcm_f32le", 96_000, "5.1"),
        ("ts", "aac", 48_000, "stereo"),
        ("ts", "ac3", 48_000, "5.1"),
        ("flv", "aac", 44_100, "stereo"),
        ("avi", "pcm_s16le", 8_000, "mono"),
    ],
)
def test_a_click_is_heard_when_it_was_made(
    tmp_path: Path, ending: str, codec: str, rate_hz: int, layout: str
) -> None:
    path = write_film(
        tmp_path / f"film.{ending}",
        clicks(AT_S, 2, rate_hz),
        codec=codec,
        rate_hz=rate_hz,
        layout=layout,
    )

    assert find_clicks(hear(path)) == pytest.approx(AT_S, abs=0.1 * HOP_S)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(("sound_at_s", "film_at_s"), [(0.3, 0.0), (0.0, 0.4)])
def test_sound_and_film_may_begin_at_different_times(
    tmp_path: Path, ending: str, sound_at_s: float, film_at_s: float
) -> None:
    path = write_film(
        tmp_path / f"film.{ending}",
        clicks(AT_S, 2),
        sound_at_s=sound_at_s,
        film_at_s=film_at_s,
    )

    expected_s = [at_s + sound_at_s - film_at_s for at_s in AT_S]
    assert find_clicks(hear(path)) == pytest.approx(expected_s, abs=0.1 * HOP_S)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_part_of_a_file_has_the_sound_of_that_part(tmp_path: Path, ending: str) -> None:
    sound = clicks([0.5, 3.0, 3.5, 4.25], 5) + 0.2 * tone(300, 5, 48_000)
    path = write_film(tmp_path / f"film.{ending}", sound, n_frames=125)

    part, whole = hear(path, start_s=2.8, end_s=4.0), hear(path)

    assert len(part) == 1.2 * SOUND_RATE_HZ
    assert find_clicks(part) == pytest.approx([0.2, 0.7], abs=0.1 * HOP_S)
    first = round(2.8 * SOUND_RATE_HZ)
    if ending != "mkv":  # its times are rounded to a millisecond, 16 samples
        assert np.abs(part - whole[first : first + len(part)]).max() < 0.02


def test_a_part_after_the_sound_has_none(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", clicks([0.5], 1), n_frames=100)

    assert hear(path, start_s=2.0, end_s=3.0).size == 0


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_film_without_sound_gives_nothing_and_a_note(tmp_path: Path, ending: str) -> None:
    path = write_film(tmp_path / f"film.{ending}", None)
    notes = Notes()

    assert hear(path, notes).size == 0
    assert notes.amounts == {"no_sound": 1}


def test_sound_of_an_unknown_codec_is_none(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mov", clicks(AT_S, 2), codec="pcm_s16le")
    content = path.read_bytes()
    assert content.count(b"sowt") == 1
    path.write_bytes(content.replace(b"sowt", b"zzzz"))
    notes = Notes()

    assert hear(path, notes).size == 0
    assert notes.amounts == {"no_sound": 1}


def test_damaged_packets_are_silence_and_noted(tmp_path: Path) -> None:
    sound = clicks([0.5, 1.0], 2) + 0.1 * tone(300, 2, 48_000)
    whole = write_film(tmp_path / "film.mkv", sound, codec="flac")
    broken = _edit_sound(
        whole, tmp_path / "broken.mkv", lambda i, p: spoil(p) if i in (6, 7) else p
    )
    notes = Notes()

    heard = hear(broken, notes)

    assert find_clicks(heard) == pytest.approx([0.5, 1.0], abs=0.1 * HOP_S)
    lost_s = 2 * 4608 / 48_000
    first, last = (round(at_s * SOUND_RATE_HZ) for at_s in (6 * lost_s / 2, 8 * lost_s / 2))
    assert np.abs(heard[first + 32 : last - 32]).max() == 0
    assert np.abs(heard[:first]).max() > 0.05 < np.abs(heard[last:]).max()
    assert notes.amounts["damaged_sound_packets"] == 2
    assert notes.amounts["lost_sound_s"] == pytest.approx(lost_s, abs=0.002)


def test_sound_after_a_gap_stands_where_it_was(tmp_path: Path) -> None:
    whole = write_film(tmp_path / "film.mkv", clicks(AT_S, 2))
    gap = _edit_sound(whole, tmp_path / "gap.mkv", lambda i, p: None if 30 <= i < 60 else p)

    assert find_clicks(hear(gap)) == pytest.approx([0.5, 1.5], abs=0.1 * HOP_S)


def test_sound_that_outlasts_its_film_goes_before_that_of_the_next_recording(
    tmp_path: Path,
) -> None:
    first = write_film(tmp_path / "1.ts", clicks([1.0, 2.3], 2.5), sound_at_s=5, film_at_s=5)
    second = write_film(tmp_path / "2.ts", clicks([0.2, 1.0], 2))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())

    heard = hear(joined)

    assert find_clicks(heard) == pytest.approx([1.0, 2.3, 3.0], abs=HOP_S)
    assert len(heard) == pytest.approx(4 * SOUND_RATE_HZ, abs=2048)


def test_times_rounded_to_a_millisecond_leave_no_holes(tmp_path: Path) -> None:
    path = write_film(
        tmp_path / "film.flv", tone(1000, 4, 44_100), rate_hz=44_100, layout="stereo", n_frames=100
    )

    heard = hear(path)[1600:-1600]

    # A period is 16 samples: each 24 in a row hold a crest.
    loudest = np.lib.stride_tricks.sliding_window_view(np.abs(heard), 24).max(axis=1)
    assert loudest.min() > 0.4


@pytest.mark.parametrize(
    ("rate_hz", "layout"), [(48_000, "stereo"), (44_100, "mono")], ids=["the same", "another"]
)
def test_joined_recordings_have_their_sound_with_their_frames(
    tmp_path: Path, rate_hz: int, layout: str
) -> None:
    first = write_film(
        tmp_path / "1.ts",
        clicks([1.0, 1.9], 2),
        layout="stereo",
        n_frames=50,
        film_at_s=5,
        sound_at_s=5,
    )
    second = write_film(
        tmp_path / "2.ts", clicks([0.1, 0.5], 3, rate_hz), rate_hz=rate_hz, layout=layout,
        n_frames=75,
    )  # fmt: skip
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes() + second.read_bytes())

    n_frames = len(list(iter_chosen_frames(clip_of(joined), 5)))

    assert n_frames == 50 + 75 + 75
    # Times of film and sound before a join may differ by what a frame of AAC is longer.
    expected_s = [1.0, 1.9, 2.1, 2.5, 5.1, 5.5]
    assert find_clicks(hear(joined)) == pytest.approx(expected_s, abs=HOP_S)


def test_several_channels_are_as_loud_as_one(tmp_path: Path) -> None:
    levels = []
    for layout in ("mono", "stereo"):
        path = write_film(
            tmp_path / f"{layout}.mkv", tone(500, 1, 48_000), codec="pcm_s16le", layout=layout
        )
        levels.append(np.abs(hear(path)[4000:12000]).max())

    assert levels == pytest.approx([0.5, 0.5], abs=0.005)


def test_a_long_gap_comes_in_small_pieces(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mkv", clicks([0.5], 1), sound_at_s=3600)
    chunks = iter_sound(clip_of(path), Notes())

    sizes = [len(next(chunks)) for _ in range(3600)]

    assert sizes == [SOUND_RATE_HZ] * 3600
    assert find_clicks(np.concatenate(list(chunks))) == pytest.approx([0.5], abs=HOP_S)


def test_sound_without_a_film_cannot_be_placed(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "sound.mp4")

    with pytest.raises(ClipError, match="no video stream"):
        hear(path)


def test_whatever_a_float_decoder_gives_is_a_sound(tmp_path: Path) -> None:
    wild = np.array([np.nan, np.inf, -np.inf, 7, -7, 0.25] * 4000, dtype=np.float32)
    path = write_film(
        tmp_path / "film.mov", wild, codec="pcm_f32le", rate_hz=SOUND_RATE_HZ, n_frames=38
    )

    heard = hear(path)

    assert np.isfinite(heard).all()
    assert np.abs(heard).max() == 1


def test_the_frames_of_a_film_are_the_same_with_sound(tmp_path: Path) -> None:
    alone = write_video(tmp_path / "alone.mp4", grey_frames(10))
    both = write_video(tmp_path / "both.mp4", grey_frames(10), audio_s=0.4)

    one, other = (list(iter_chosen_frames(clip_of(path), 5)) for path in (alone, both))

    assert [f.record.pts_s for f in one] == [f.record.pts_s for f in other]


def _edit_sound(
    source: Path, target: Path, edit: Callable[[int, Packet[Any]], Packet[Any] | None]
) -> Path:
    """Copy a film; ``edit`` gets each packet of its sound, numbered, and returns it or None."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        streams = {
            s.index: write.add_stream_from_template(s)
            for s in (read.streams.video[0], read.streams.audio[0])
        }
        sounds = 0
        for packet in read.demux():
            if not packet.size:
                continue
            index = packet.stream.index
            edited: Packet[Any] | None = packet
            if packet.stream.type == "audio":
                edited = edit(sounds, packet)
                sounds += 1
            if edited is not None:
                edited.stream = streams[index]
                write.mux(edited)
    return target
