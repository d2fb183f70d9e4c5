"""The sound of a clip as one line of samples, mono, on the clock of its frames.

::

    packets --repaired times--> frames --resampled--> segments --silence between--> chunks
    (sound_packets.py)                   from clip zero on, every 16th of a millisecond a sample
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path

import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from numpy.typing import NDArray

from features.contracts import Clip
from features.disk import FileState, read_state
from features.errors import ClipError
from pipeline.decode import opening
from pipeline.decode.demux import can_be_sought
from pipeline.decode.notes import Notes
from pipeline.decode.sound_packets import iter_repaired, iter_sought
from pipeline.decode.timeline import Timeline

SOUND_RATE_HZ = 16_000
"""Samples a second; speech has little above 8 kHz, and learned audio encoders expect this rate."""

LARGEST_JITTER_S = 0.01
"""Sound whose time differs by no more from the end of that before follows it without a gap:
Matroska, FLV and ASF round times to a millisecond."""

_SEEK_MARGINS_S = (1.0, 15.0)
"""Land this much before ``start_s``: decoders need some sound before that which they give right."""

_SILENCE_SAMPLES = SOUND_RATE_HZ
"""Of one chunk, however long a gap is."""

_DAMAGE = (av.error.FFmpegError, ValueError)
"""What a decoder says of a packet, and the resampler of a frame, that it cannot read."""


def iter_sound(
    clip: Clip, notes: Notes, *, check_state: Callable[[FileState], object] = lambda _: None
) -> Generator[NDArray[np.float32]]:
    """Decode the sound of a clip, in bounded memory: whoever reads on gets more.

    Sample i is what is heard i / 16,000 s after the clip's zero, that of ``pts_s``: the file's
    first frame, or ``start_s``. So sound that begins after the first frame comes after zeros, what
    is heard before it is left out, and what damage or a gap takes away is zeros::

        frames        0.00  0.04  0.08 ...                          pts_s
        sound      -0.02 [=========]         [=====================] its packets
        samples          0=========000000000=======================  mono, 16 kHz

    Of several channels the mono sound is FFmpeg's mix, its weights scaled to the sum 1. Of several
    streams the first that is marked default is taken, else the first. Of the film only the first
    frame is decoded.

    Args:
        clip: Its file, and the part of it.
        notes: What is unusual is added to them, a missing sound too.
        check_state: Gets the state of the file before its sound is read; what it raises ends it.

    Yields:
        [N] each, N >= 1; nothing where there is no sound. Ends with the sound, or at ``end_s``.

    Raises:
        ClipError: no file, or no film in it whose first frame could say when the clip begins.
    """
    try:
        with opening.open_file(clip.path) as file:
            state = read_state(file.fileno())
            check_state(state)
            origin_s = _find_origin(clip.path, state)
            n_samples = None
            if clip.end_s is not None:
                n_samples = round((clip.end_s - (clip.start_s or 0.0)) * SOUND_RATE_HZ)
            yield from _join(_iter_segments(file, clip, origin_s, notes), n_samples)
    except OSError as error:
        kind = ClipError if isinstance(error, av.error.FFmpegError) else opening.UnreadableError
        raise kind(f"cannot be read ({error.strerror or error})") from error


@lru_cache(maxsize=256)
def _find_origin(path: Path, _: FileState) -> float:
    """When a file's first frame appears, by the film's clock. Kept: clips may share a file."""
    clip = Clip(clip_id="", path=path, label="", split="train")
    try:
        with opening.open_file(path) as file, opening.open_container(file) as container:
            film = opening.find_film(container)
            timeline = Timeline(clip, container, film, Notes(), seek_margin_s=None, strict=False)
            for _first in timeline:
                return timeline.origin_s
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ClipError(f"not a video, or damaged ({reason})") from error
    raise ClipError("no frame can be decoded")


def _find_sound(container: InputContainer) -> AudioStream | None:
    """The stream to decode; None where there is none that can be decoded."""
    # PyAV gives no codec context where FFmpeg has no decoder, whatever its annotations say.
    sounds = [s for s in container.streams.audio if s.codec_context is not None]
    default = next((s for s in sounds if s.disposition & Disposition.default), None)
    return default or next(iter(sounds), None)


def _iter_segments(
    file: FileIO, clip: Clip, origin_s: float, notes: Notes
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Pieces of sound, each with the sample of the clip that it begins at; some before 0."""
    start_s = clip.start_s or 0.0
    margins_s = [margin_s for margin_s in _SEEK_MARGINS_S if margin_s < start_s]
    if margins_s and not can_be_sought(clip.path, read_state(file.fileno())):
        margins_s = []
    for margin_s in (*margins_s, None):
        notes.clear()
        with opening.open_container(file) as container:
            sound = _find_sound(container)
            if sound is None:
                notes.add("no_sound")
                return
            film = opening.find_film(container)
            if margin_s is None:
                packets = iter_repaired(container, sound, film)
            else:
                packets = iter_sought(container, sound, origin_s + start_s - margin_s)
            pieces = SoundTrack(sound, origin_s + start_s, notes).iter_pieces(packets)
            first = next(pieces, None)
            if margin_s is not None and (first is None or first[0] > 0):
                continue  # it landed too late, or there is no sound at start_s: that is to be seen
            if first is None:
                notes.add("no_sound")
                return
            yield first
            yield from pieces
            return


def _join(
    pieces: Iterator[tuple[int, NDArray[np.float32]]], n_samples: int | None
) -> Iterator[NDArray[np.float32]]:
    """One line of samples from 0 on, at most ``n_samples``: zeros in gaps, overlaps cut off."""
    position = 0
    for first, samples in pieces:
        if n_samples is not None:
            first = min(first, n_samples)
            samples = samples[: n_samples - first]
        while position < first:
            n_silent = min(first - position, _SILENCE_SAMPLES)
            yield np.zeros(n_silent, dtype=np.float32)
            position += n_silent
        samples = samples[position - first :]
        if len(samples):
            yield samples
            position += len(samples)
        if position == n_samples:
            return


class SoundTrack:
    """Decodes the packets of a sound stream and brings what they hold to mono at 16 kHz."""

    def __init__(self, stream: AudioStream, zero_s: float, notes: Notes) -> None:
        """zero_s: what is sample 0, by the clock of the packets. notes: of damage."""
        self._stream = stream
        self._zero_s = zero_s
        self._notes = notes
        self._segment: _Segment | None = None
        self._is_broken = False
        """Whether something was lost since the last frame."""

    def iter_pieces(
        self, packets: Iterator[Packet[AudioStream]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield pieces of sound and the sample that each begins at; nothing empty.

        A packet that cannot be decoded is passed over, a file that breaks off ends.
        """
        try:
            for packet in packets:
                try:
                    frames = self._stream.decode(packet)
                except _DAMAGE:
                    self._pass_over(packet)
                    continue
                for frame in frames:
                    yield from self._take(frame)
        except av.error.FFmpegError:  # of the container; what its film lacks is said elsewhere
            self._notes.add("damaged_sound_packets")
        try:
            last = self._stream.decode(None)
        except _DAMAGE:
            last = []
        for frame in last:
            yield from self._take(frame)
        yield from self._end_segment()

    def _pass_over(self, packet: Packet[AudioStream]) -> None:
        self._is_broken = True
        self._notes.add("damaged_sound_packets")
        if packet.duration and packet.time_base is not None:
            self._notes.add("lost_sound_s", float(packet.duration * packet.time_base))

    def _take(self, frame: AudioFrame) -> Iterator[tuple[int, NDArray[np.float32]]]:
        if not frame.samples or frame.sample_rate <= 0:
            return
        told_s = None
        if frame.pts is not None and frame.time_base is not None:
            told_s = float(frame.pts * frame.time_base) - self._zero_s
        segment = self._segment
        if segment is not None and not self._follows(segment, frame, told_s):
            yield from self._end_segment()
            start_s = segment.end_s if told_s is None else told_s
            segment = self._segment = _Segment(frame, start_s)
        if segment is None:
            segment = self._segment = _Segment(frame, told_s or 0.0)
        self._is_broken = False
        try:
            piece = segment.push(frame)
        except _DAMAGE:  # a layout of channels that FFmpeg cannot mix
            self._segment, self._is_broken = None, True
            self._notes.add("damaged_sound_packets")
            return
        if len(piece[1]):
            yield piece

    def _follows(self, segment: _Segment, frame: AudioFrame, told_s: float | None) -> bool:
        if segment.kind != _find_kind(frame):
            return False
        if told_s is None:
            return True
        return not self._is_broken and abs(told_s - segment.end_s) <= LARGEST_JITTER_S

    def _end_segment(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        segment, self._segment = self._segment, None
        if segment is not None:
            piece = segment.flush()
            if len(piece[1]):
                yield piece


class _Segment:
    """Sound without a gap, of one sample format, rate and layout."""

    def __init__(self, frame: AudioFrame, start_s: float) -> None:
        """frame: the first. start_s: its time from the clip's zero."""
        self.kind = _find_kind(frame)
        self._start_s = start_s
        self._rate_hz = frame.sample_rate
        self._n_taken = 0
        self._next = round(start_s * SOUND_RATE_HZ)
        # Float sound is not scaled by default, so that stereo would be 3 dB louder than mono.
        self._resampler = AudioResampler(
            format="flt", layout="mono", rate=SOUND_RATE_HZ, options={"rematrix_maxval": "1.0"}
        )

    @property
    def end_s(self) -> float:
        return self._start_s + self._n_taken / self._rate_hz

    def push(self, frame: AudioFrame) -> tuple[int, NDArray[np.float32]]:
        """What is resampled by now, and the sample of the clip that it begins at."""
        self._n_taken += frame.samples
        frame.pts = None  # its rounding is none of the resampler's business
        return self._place(self._resampler.resample(frame))

    def flush(self) -> tuple[int, NDArray[np.float32]]:
        """As ``push``, the rest."""
        return self._place(self._resampler.resample(None))

    def _place(self, frames: list[AudioFrame]) -> tuple[int, NDArray[np.float32]]:
        first = self._next
        parts = [np.asarray(frame.to_ndarray(), dtype=np.float32).reshape(-1) for frame in frames]
        samples = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        self._next += len(samples)
        # Damage may leave a float decoder as any number.
        return first, np.clip(np.nan_to_num(samples, nan=0.0), -1.0, 1.0)


def _find_kind(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate
