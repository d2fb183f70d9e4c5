"""The frames of an open video with their times, and whether the file is all there."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from features.contracts import Clip
from features.errors import ClipError
from pipeline.packets import Needs, Role, Ticks, read_nal_syntax

EPSILON_S = 1e-6
"""A frame stamped 0.2 counts as on screen at tick 1/5 despite rounding of its time base."""

_N_AHEAD = 16
"""Packets read before the first of them is decoded: H.264 shows no frame later than this."""

_PROGRESSIVE = 1
"""FFmpeg's number for it. In an interlaced stream a packet may be half a frame."""


class SeekMissedError(Exception):
    """Seeking did not land before ``start_s``; raised before the first frame is given out."""


class Timeline:
    """The frames of a file with the times at which they appear and the last one leaves."""

    def __init__(
        self,
        clip: Clip,
        container: InputContainer,
        stream: VideoStream,
        rate_hz: float,
        *,
        seek_margin_s: float | None,
    ) -> None:
        """Opens nothing yet.

        Args:
            clip: What part is wanted.
            container: Its file.
            stream: Of the container.
            rate_hz: Of the ticks: frames on screen at none of them may be left out.
            seek_margin_s: Start reading this much before ``start_s``; None: at the file's start.
        """
        self.container = container
        self.stream = stream
        self.rate_hz = rate_hz
        self.stream.thread_count = 1
        self.start_s = clip.start_s or 0.0
        self.stop_s = np.inf if clip.end_s is None else clip.end_s
        self.seek_margin_s = seek_margin_s
        self.origin_s = 0.0
        """When the file's first frame appears, by the stream's own clock."""
        self.end_s = 0.0
        """When the last frame read so far leaves the screen."""
        self._end_of_packets_s = 0.0
        self._last_is_partial = False
        self._demux_error: av.error.FFmpegError | None = None
        self._ticks: Ticks | None = None
        """Known once the first frame tells the origin."""
        context = stream.codec_context
        self._syntax = read_nal_syntax(context.name, container.format.name, context.extradata)
        if context.name == "h264" and context.field_order != _PROGRESSIVE:
            self._syntax = None

    def __iter__(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yields time since the file's first frame, increasing, and the frame.

        Raises:
            ClipError: the file breaks off or is damaged.
            SeekMissedError: no frame at or before ``start_s`` comes first.
        """
        try:
            frames = self._decode()
            first = next(frames, None)
            if first is not None:
                self.origin_s = self._read_clock(first) or 0.0
                self._ticks = Ticks(
                    start_s=self.origin_s + self.start_s,
                    rate_hz=self.rate_hz,
                    end_s=self.origin_s + self.stop_s,
                )
                if self.seek_margin_s is None or self._read_clock(first) is None:
                    frames = itertools.chain([first], frames)
                else:
                    frames = self._sought(self.start_s - self.seek_margin_s)
            yield from self._timed(frames)
        except av.error.InvalidDataError as error:
            raise ClipError(f"breaks off or is damaged after {self.end_s:.2f} s") from error
        self._check_complete()

    def _sought(self, to_s: float) -> Iterator[VideoFrame]:
        try:
            to = int((self.origin_s + to_s) / _time_base(self.stream))
            self.container.seek(to, stream=self.stream)
            frames = self._decode()
            first = next(frames, None)
        except av.error.FFmpegError as error:
            raise SeekMissedError from error
        landed_s = None if first is None else self._read_clock(first)
        if landed_s is None or landed_s - self.origin_s > self.start_s + EPSILON_S:
            raise SeekMissedError
        return itertools.chain(filter(None, [first]), frames)

    def _timed(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[float, VideoFrame]]:
        frame_s = float(1 / self.stream.average_rate) if self.stream.average_rate else 0.04
        last_s = -np.inf
        for frame in frames:
            clock_s = self._read_clock(frame)
            now_s = self.end_s if clock_s is None else clock_s - self.origin_s
            if now_s <= last_s:
                continue
            last_s = now_s
            duration_s = _seconds(self.stream, frame.duration) if frame.duration else frame_s
            self.end_s = now_s + duration_s
            yield now_s, frame

    def _read_clock(self, frame: VideoFrame) -> float | None:
        """When a frame appears by the stream's own clock, seconds; None where it is not said.

        AVI stores no presentation times, and those that FFmpeg makes up are wrong where frames are
        stored out of order; decoding times, which come with the frames in order, are right.
        """
        count = frame.dts if "avi" in self.container.format.name.split(",") else frame.pts
        return None if count is None else _seconds(self.stream, count)

    def _decode(self) -> Iterator[VideoFrame]:
        for packet in self._iter_needed():
            yield from self.stream.decode(packet)
        if self._demux_error:
            raise self._demux_error

    def _iter_needed(self) -> Iterator[Packet[Stream]]:
        """The packets to decode. Some are read ahead: a frame lasts until the next one comes."""
        coming: deque[Packet[Stream]] = deque()
        roles: deque[tuple[float, Role]] = deque()
        needs = Needs()
        n_ahead = 0 if self._syntax is None else _N_AHEAD
        packets = self._demux()
        packet = next(packets, None)
        while packet is not None or coming:
            if packet is not None:
                coming.append(packet)
                roles.append(self._read_role(packet))
                packet = next(packets, None)
            if packet is not None and len(coming) <= n_ahead:
                continue
            if self._is_needed(needs, roles):
                yield coming[0]
            coming.popleft()
            pts_s, role = roles.popleft()
            if role is not Role.UNKNOWN:
                needs.pass_by(pts_s)

    def _is_needed(self, needs: Needs, coming: Sequence[tuple[float, Role]]) -> bool:
        if self._ticks is None or self._syntax is None:
            return True
        # Some files stamp frames in the order in which they are stored, not shown.
        if self.stream.codec_context.has_b_frames and not needs.is_reordered(coming):
            return True
        return needs.is_needed(self._ticks, coming)

    def _read_role(self, packet: Packet[Stream]) -> tuple[float, Role]:
        """When the frame of a packet appears by the stream's clock, and what it is to others."""
        if packet.pts is None or self._syntax is None or packet.is_corrupt or packet.is_discard:
            return 0.0, Role.UNKNOWN
        return _seconds(self.stream, packet.pts), self._syntax.read_role(memoryview(packet))

    def _demux(self) -> Iterator[Packet[Stream]]:
        """The stream's packets. What went wrong after the last of them is in _demux_error."""
        # Where the video stream does not know its own length, the other streams tell how much of
        # the file is there.
        demuxed = [self.stream] if self.stream.duration else list(self.container.streams)
        try:
            for packet in self.container.demux(demuxed):
                if packet.pts is not None and packet.time_base is not None:
                    end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self._end_of_packets_s = max(self._end_of_packets_s, end_s)
                if packet.size:  # 0: the demuxer's end
                    self._last_is_partial = packet.is_corrupt
                if packet.stream is self.stream:
                    yield packet
        except av.error.FFmpegError as error:  # those read before it are decoded first
            self._demux_error = error

    def _check_complete(self) -> None:
        """Raises where less was found than the container promises: a truncated file.

        MPEG-TS and GIF promise nothing: they end where they end.
        """
        if self.stream.duration:
            # Counted from the first frame: what a recording begins with may not be decodable.
            last = (self.stream.start_time or 0) + self.stream.duration
            promised_s = _seconds(self.stream, last) - self.origin_s
            found_s = self.end_s
        else:
            promised_s = (self.container.duration or 0) / av.time_base
            found_s = self._end_of_packets_s
        cut_short = self._last_is_partial and "mpegts" not in self.container.format.name
        if cut_short or found_s < promised_s - max(0.5, 0.05 * promised_s):
            whole = f" of {promised_s:.2f} s" if found_s < promised_s else ""
            raise ClipError(f"breaks off after {found_s:.2f} s{whole} (truncated?)")


def _seconds(stream: VideoStream, count: int) -> float:
    return count * _time_base(stream)


def _time_base(stream: VideoStream) -> float:
    return float(stream.time_base) if stream.time_base else 1 / av.time_base
