"""The packets of a file's video by its repaired clock, and whether the file is all there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from features.disk import FileState
from features.errors import ClipError
from pipeline.decode import opening
from pipeline.decode.clock import LONGEST_STILL_S, Clock
from pipeline.decode.notes import Notes
from pipeline.decode.truncation import find_second_film, is_whole

_THEORA_HEADER = 0x80
"""Of the first byte of a packet."""

_LARGEST_REST, _LONGEST_REST_S = 0.1, 0.5
"""Share of an MPEG-TS file after its last picture, and how long a film that would be, at most."""


class Demuxer:
    """The packets of a stream from where its container stands."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container = container
        self._stream = stream
        self._clock = make_clock(container, stream)
        self.error: av.error.FFmpegError | None = None
        """What went wrong after the last packet."""
        self.is_monotone = True
        """Whether the times of all packets so far rise in the order in which they are stored."""
        self._latest_pts = -np.inf
        self._end_of_packets_s = self._end_of_film_s = 0.0
        """Of the streams that are read, by their own clocks; of the video, by its repaired one."""
        self._last_is_partial = False
        self._last_byte = 0
        """Where the last packet of the video ends in the file, about."""

    def __iter__(self) -> Iterator[Packet[Stream]]:
        """Packets that hold a frame, or nothing: the frame before is to be shown once more."""
        # Where the video stream does not know its own length, the other streams tell how much of
        # the file is there.
        demuxed = [self._stream] if self._stream.duration else list(self._container.streams)
        try:
            for packet in iter_packets(self._container, demuxed):
                if packet.pts is not None and packet.time_base is not None:
                    end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self._end_of_packets_s = max(self._end_of_packets_s, end_s)
                if packet.size:
                    self._last_is_partial = packet.is_corrupt
                if packet.stream is self._stream and packet.size and packet.pos is not None:
                    self._last_byte = max(self._last_byte, packet.pos + packet.size)
                if packet.stream is self._stream and holds_frame(packet, self._stream):
                    self._repair(packet)
                    yield packet
        except av.error.FFmpegError as error:  # those read before it are decoded first
            self.error = error

    def _repair(self, packet: Packet[Stream]) -> None:
        """Make the times of a packet those of the repaired clock."""
        if packet.pts is None or packet.is_discard:
            return
        shift = find_shift(self._clock, packet)
        packet.pts += shift
        if packet.dts is not None:
            packet.dts += shift
        self.is_monotone &= packet.pts >= self._latest_pts
        self._latest_pts = max(self._latest_pts, packet.pts)
        end_s = to_seconds(self._stream, packet.pts + (packet.duration or 0))
        self._end_of_film_s = max(self._end_of_film_s, end_s)

    def note_breaks(self, notes: Notes) -> None:
        """Note how often the clock was repaired."""
        notes.add("clock_restarts", self._clock.n_restarts)
        notes.add("clock_jumps", self._clock.n_jumps)

    def check_complete(self, path: Path, origin_s: float, end_s: float, notes: Notes) -> None:
        """Raises where less was found than the container promises: a truncated file.

        A file that ends where its structure says has a wrong promise. MPEG and Ogg promise nothing,
        nor does GIF: they end where they end.

        Nor is a film complete after which another follows that FFmpeg does not read.

        Args:
            path: The file.
            origin_s: When its first frame appears, by the stream's clock.
            end_s: When its last frame leaves the screen, from its first.
            notes: Of a wrong promise.
        """
        self._check_alone(path, end_s)
        if may_jump(self._container):
            promised_s = found_s = stored_s = 0.0
        elif self._stream.duration:
            # Counted from the first frame: what a recording begins with may not be decodable.
            last = (self._stream.start_time or 0) + self._stream.duration
            promised_s = to_seconds(self._stream, last) - origin_s
            found_s, stored_s = end_s, self._end_of_film_s - origin_s
        else:
            promised_s = (self._container.duration or 0) / av.time_base
            found_s = stored_s = self._end_of_packets_s
        least_s = promised_s - max(0.5, 0.05 * promised_s)
        cut_short = self._last_is_partial and "mpegts" not in self._container.format.name
        if found_s >= least_s and not cut_short:
            return
        if stored_s < least_s and not cut_short and is_whole(path, self._container.format.name):
            notes.add("missing_s", promised_s - found_s)
            return
        whole = f" of {promised_s:.2f} s" if found_s < promised_s else ""
        raise ClipError(f"breaks off after {end_s:.2f} s{whole} (truncated?)")

    def _check_alone(self, path: Path, end_s: float) -> None:
        second = find_second_film(path, self._container.format.name)
        if second is not None:
            raise ClipError(
                f"after {end_s:.2f} s a second film follows in the same file, from byte {second} "
                "on, which FFmpeg does not read: make two files of it, or remux both into one"
            )
        n_bytes = path.stat().st_size
        if "mpegts" not in self._container.format.name or not 0 < self._last_byte < n_bytes:
            return
        # A second recording may have streams of its own; sound alone is a small part of a file.
        share = 1 - self._last_byte / n_bytes
        rest_s = share * end_s / (1 - share)
        if share > _LARGEST_REST and rest_s > _LONGEST_REST_S:
            raise ClipError(
                f"its video ends after {end_s:.2f} s, at {1 - share:.0%} of the file: a second "
                "recording with streams of its own may follow; make a file of each"
            )


def iter_packets(
    container: InputContainer, streams: list[Any] | VideoStream
) -> Iterator[Packet[Any]]:
    """The packets of these streams.

    PyAV ends with an IndexError, or not, by what its memory held before, where streams appear on
    the way (sound that begins late in MPEG-TS); all packets have been given out by then.
    """
    with contextlib.suppress(IndexError):
        yield from container.demux(streams)


def holds_frame(packet: Packet[Any], stream: VideoStream) -> bool:
    """False of what ends a stream, and of the headers that begin each recording in Ogg."""
    if not packet.size:
        return packet.pts is not None or packet.dts is not None
    is_theora = stream.codec_context.name == "theora"
    return not (is_theora and memoryview(packet)[0] & _THEORA_HEADER)


def has_one_clock(container: InputContainer) -> bool:
    """Whether an index times all frames of such a container: MP4 and AVI."""
    return not {"mp4", "avi"}.isdisjoint(container.format.name.split(","))


@lru_cache(maxsize=256)
def can_be_sought(path: Path, _: FileState) -> bool:
    """Whether times lead to the right frames. Kept: many clips may be parts of one file."""
    with opening.open_file(path) as file, opening.open_container(file) as container:
        return keeps_its_clock(container, opening.find_film(container))


def keeps_its_clock(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the times in a file are right throughout, so that it can be sought by them.

    Reads the whole file, but decodes nothing; of MP4 and AVI, where an index has one clock for all
    frames, it reads nothing.
    """
    if has_one_clock(container):
        return True
    clock = make_clock(container, stream)
    with contextlib.suppress(av.error.FFmpegError):  # reading it later says what is wrong
        for packet in iter_packets(container, stream):
            if packet.pts is not None and find_shift(clock, packet):
                return False
    return True


def make_clock(container: InputContainer, stream: VideoStream) -> Clock:
    """The clock of a stream, before its first packet."""
    base_s = time_base(stream)
    return Clock(
        read_frame_s(stream) / base_s,
        longest_jump=LONGEST_STILL_S / base_s,
        may_jump=may_jump(container),
    )


def find_shift(clock: Clock, packet: Packet[Any]) -> int:
    """What to add to the times of a packet."""
    return clock.find_shift(packet.pts, packet.dts, packet.duration, is_key=packet.is_keyframe)


def may_jump(container: InputContainer) -> bool:
    """Whether a clock of such a container may jump though no time passes: MPEG-TS and such."""
    return Flags.ts_discont in Flags(container.format.flags)


def read_frame_s(stream: VideoStream) -> float:
    """How long a frame lasts where it does not tell."""
    frame_s = float(1 / stream.average_rate) if stream.average_rate else 0.04
    return frame_s if 0 < frame_s <= LONGEST_STILL_S else 0.04


def to_seconds(stream: Stream, count: int) -> float:
    """A count of a stream's time base."""
    return count * time_base(stream)


def time_base(stream: Stream) -> float:
    """Seconds of a count."""
    return float(stream.time_base) if stream.time_base else 1 / av.time_base
