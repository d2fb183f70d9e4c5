"""Decodes clips: the only door to PyAV. Streams, so that memory does not grow with the clip."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from features.contracts import TICK_RATE_HZ, Clip
from features.errors import ClipError
from pipeline.packets import Needs, Role, Ticks, read_nal_syntax

_EPSILON_S = 1e-6
"""A frame stamped 0.2 counts as on screen at tick 1/5 despite rounding of its time base."""

_SEEK_MARGINS_S = (0.5, 15.0)
"""Land this much before ``start_s``: containers place key frames by decoding time, and MPEG-TS
lands beyond where it finds none. The second is the next try; after it, reading starts at 0."""

_N_AHEAD = 16
"""Packets read before the first of them is decoded: H.264 shows no frame later than this."""

_PROGRESSIVE = 1
"""FFmpeg's number for it. In an interlaced stream a packet may be half a frame."""

_TEXT_CODECS = ("ansi", "bintext", "idf", "xbin")
"""FFmpeg plays a text file as the screen of a terminal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenFrame:
    """A frame that is on screen at one tick or more."""

    pts_s: float
    """Presentation time, seconds from the clip's start (below 0 if shown since before it)."""
    phases: tuple[int, ...]
    """The phase of each of its ticks, in the order of the ticks."""
    rgb: Tensor
    """[H, W, 3] uint8, upright."""
    decoder: str
    """``software:`` and the codec."""


def decoder_version() -> str:
    """Name and version of the decoder, part of the fingerprint."""
    libavcodec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return f"PyAV {av.__version__}, libavcodec {libavcodec}"


def iter_chosen_frames(clip: Clip, n_phases: int) -> Generator[ChosenFrame]:
    """Decode a clip and yield the frames on screen at the ticks of the clock (IV-C).

    The clock has 5 * ``n_phases`` ticks a second; tick k has phase k mod ``n_phases``. It starts at
    ``start_s``, or at the first frame::

        pts_s   0.00  0.15  0.30        0.70 (end 0.80)       n_phases = 1
        ticks   0.0      0.2      0.4      0.6
        chosen  0.00     0.15     0.30     0.30               one ChosenFrame with two phases

    Only frames that are yielded are converted to RGB, by the matrix and range that the stream
    names (BT.601, limited, where it names none), each chroma sample standing for all its pixels.
    Pixels are taken as square. A frame that is not yielded is not even decoded where no other
    refers to it, so damage within such a frame is not noticed. One thread decodes: several clips
    at a time use the cores better (``pipeline.prefetch``).

    Raises:
        ClipError: no file, no video in it, not one frame to be had, or the file breaks off; where
            it breaks off, the frames before have been yielded.
    """
    try:
        _check_file(clip.path)
        for margin_s in (*_SEEK_MARGINS_S, None):
            if margin_s is not None and (clip.start_s or 0) <= margin_s:
                continue
            try:
                with av.open(str(clip.path)) as container:
                    timeline = _Timeline(
                        clip,
                        container,
                        _find_video(container),
                        TICK_RATE_HZ * n_phases,
                        seek_margin_s=margin_s,
                    )
                    yield from _choose(clip, n_phases, timeline)
                return
            except _SeekMissedError:
                continue
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ClipError(f"not a video, or damaged ({reason})") from error
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror or error})") from error


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ClipError("no such file")
    if path.is_dir():
        raise ClipError("a folder, not a video file")
    if path.is_file() and path.stat().st_size == 0:
        raise ClipError("the file is empty (0 bytes)")


def _find_video(container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture of a sound file."""
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        found = ", ".join(sorted({s.type for s in container.streams} - {"video"}))
        raise ClipError("no video stream in the file" + (f", only {found}" if found else ""))
    # PyAV gives no codec context where FFmpeg has no decoder, whatever its annotations say.
    if films[0].codec_context is None:
        raise ClipError("its video is damaged, or of a codec that cannot be decoded")
    if films[0].codec_context.name in _TEXT_CODECS:
        raise ClipError("not a video: the file is text")
    return films[0]


class _SeekMissedError(Exception):
    """Seeking did not land before ``start_s``; raised before the first frame is given out."""


class _Timeline:
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
        self.decoder = f"software:{self.stream.codec_context.name}"
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
            _SeekMissedError: no frame at or before ``start_s`` comes first.
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
            raise _SeekMissedError from error
        landed_s = None if first is None else self._read_clock(first)
        if landed_s is None or landed_s - self.origin_s > self.start_s + _EPSILON_S:
            raise _SeekMissedError
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


def _choose(clip: Clip, n_phases: int, timeline: _Timeline) -> Iterator[ChosenFrame]:
    rate_hz = TICK_RATE_HZ * n_phases
    origin_s = clip.start_s or 0.0
    end_s = np.inf if clip.end_s is None else clip.end_s
    tick = 0
    shown: tuple[float, VideoFrame] | None = None

    def leave_screen(at_s: float) -> Iterator[ChosenFrame]:
        nonlocal tick
        first = tick
        while origin_s + tick / rate_hz < at_s - _EPSILON_S:
            tick += 1
        if tick > first and shown is not None:
            yield ChosenFrame(
                pts_s=shown[0] - origin_s,
                phases=tuple(k % n_phases for k in range(first, tick)),
                rgb=_to_rgb(shown[1]),
                decoder=timeline.decoder,
            )

    for now_s, frame in timeline:
        if now_s >= end_s - _EPSILON_S:
            break
        if shown is not None:  # else the first frame stands in for ticks before it
            yield from leave_screen(now_s)
        shown = (now_s, frame)
    if shown is None or timeline.end_s <= origin_s + _EPSILON_S:
        after = (
            f" from {origin_s:g} s on: the file ends at {timeline.end_s:.2f} s" if origin_s else ""
        )
        raise ClipError(f"no frame can be decoded{after}")
    yield from leave_screen(min(end_s, timeline.end_s))


def _to_rgb(frame: VideoFrame) -> Tensor:
    rgb = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1))
    quarter_turns = round(frame.rotation / 90)  # counter-clockwise, as torch.rot90 counts
    return torch.rot90(rgb, quarter_turns).contiguous()


def _seconds(stream: VideoStream, count: int) -> float:
    return count * _time_base(stream)


def _time_base(stream: VideoStream) -> float:
    return float(stream.time_base) if stream.time_base else 1 / av.time_base
