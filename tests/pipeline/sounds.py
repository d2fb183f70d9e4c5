"""Writes small films with sound for tests; a click tells where a moment of it has gone."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from numpy.typing import NDArray

from features.contracts import Clip
from pipeline.decode.notes import Notes
from pipeline.decode.sound import SOUND_RATE_HZ, iter_sound
from tests.pipeline.videos import GREY_STEP

_CLICK_S = 0.002


def clicks(at_s: list[float], duration_s: float, rate_hz: int = 48_000) -> NDArray[np.float32]:
    """Silence with clicks of 2 ms whose middles are at these times."""
    sound = np.zeros(round(duration_s * rate_hz), dtype=np.float32)
    click = 0.5 * np.hanning(round(_CLICK_S * rate_hz)).astype(np.float32)
    for middle_s in at_s:
        first = round(middle_s * rate_hz) - len(click) // 2
        sound[first : first + len(click)] += click
    return sound


def tone(hertz: float, duration_s: float, rate_hz: int = SOUND_RATE_HZ) -> NDArray[np.float32]:
    """A sine."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def find_clicks(samples: NDArray[np.float32]) -> list[float]:
    """Times of the loudest sample of each click, in seconds."""
    times_s: list[float] = []
    for at in np.flatnonzero(np.abs(samples) > 0.2):
        if not times_s or at / SOUND_RATE_HZ - times_s[-1] > 10 * _CLICK_S:
            window = np.abs(samples[at : at + 64])
            times_s.append((at + int(window.argmax())) / SOUND_RATE_HZ)
    return times_s


def write_film(
    path: Path,
    sound: NDArray[np.float32] | None,
    *,
    codec: str = "aac",
    rate_hz: int = 48_000,
    layout: str = "mono",
    n_frames: int = 50,
    fps: int = 25,
    sound_at_s: float = 0.0,
    film_at_s: float = 0.0,
    container_format: str | None = None,
) -> Path:
    """Grey frames and a sound, the same in each channel.

    Args:
        path: Its ending says the container, unless ``container_format`` does.
        sound: [N] at ``rate_hz``; None: no sound stream.
        codec: Of the sound.
        rate_hz: Of the sound.
        layout: Of its channels.
        n_frames: Of the film.
        fps: Frames a second.
        sound_at_s: When the sound begins by the file's clock.
        film_at_s: The same of the film.
        container_format: FFmpeg's name.
    """
    with av.open(str(path), "w", format=container_format) as container:
        film = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        film.codec_context.thread_count = 1
        film.codec_context.gop_size = fps
        voice = None if sound is None else container.add_stream(codec, rate=rate_hz, layout=layout)
        packets: list[Packet[Any]] = []
        for i in range(n_frames):
            grey = np.full((48, 64, 3), i * GREY_STEP % 250, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(film_at_s * fps) + i, Fraction(1, fps)
            packets += film.encode(frame)
        packets += film.encode()
        if voice is not None:
            for heard in _cut(sound, voice, rate_hz, layout, sound_at_s):
                packets += voice.encode(heard)
            packets += voice.encode()
        # In the order of a real recording, whatever the muxer buffers.
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)
    return path


def _cut(
    sound: NDArray[np.float32], voice: Any, rate_hz: int, layout: str, at_s: float
) -> Iterator[av.AudioFrame]:
    size = voice.codec_context.frame_size or 1024
    fmt, n_channels = voice.format.name, voice.layout.nb_channels
    for first in range(0, len(sound), size):
        piece = np.repeat(sound[None, first : first + size], n_channels, axis=0)
        if fmt.startswith(("s16", "s32")):
            bits = int(fmt[1:3])
            piece = (piece * (2 ** (bits - 1) - 1)).astype(f"int{bits}")
        if not fmt.endswith("p"):
            piece = piece.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format=fmt, layout=layout)
        frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
        frame.pts = round(at_s * rate_hz) + first
        yield frame


def clip_of(path: Path, **changes: Any) -> Clip:
    """The clip that is this file, or a part of it."""
    return Clip(clip_id="c", path=path, label="", split="test", **changes)


def hear(path: Path, notes: Notes | None = None, **changes: Any) -> NDArray[np.float32]:
    """All of a clip's sound in one piece."""
    chunks = list(iter_sound(clip_of(path, **changes), notes or Notes()))
    return np.concatenate([np.zeros(0, dtype=np.float32), *chunks])
