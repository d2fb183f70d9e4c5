"""The frames of an open video with their times."""

from __future__ import annotations

import contextlib
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
from pipeline.decode.clock import EPSILON_S, LONGEST_STILL_S, PendingTimes
from pipeline.decode.demux import Demuxer, read_frame_s, time_base, to_seconds
from pipeline.decode.notes import Losses, Notes

_N_EARLY = 16
"""Packets before the first frame that it may be shown after: H.264 shows none later than this."""

_DAMAGE = (
    av.error.InvalidDataError,
    av.error.ArgumentError,
    av.error.BlockingIOError,  # VP9, where a packet is cut up wrongly
    av.error.PermissionError,  # -1, in old decoders
)
"""What a decoder says of a packet that it cannot read; it goes on with the next."""

_N_PROBED = 32
"""Packets decoded twice where their times may be in stored order."""


class SeekMissedError(Exception):
    """Seeking did not land before ``start_s``; raised before the first frame is given out."""


class Timeline:
    """The frames of a file with the times at which they appear and the last one leaves."""

    def __init__(
        self,
        clip: Clip,
        container: InputContainer,
        stream: VideoStream,
        notes: Notes,
        *,
        seek_margin_s: float | None,
        strict: bool,
    ) -> None:
        """Opens nothing yet.

        Args:
            clip: What part is wanted.
            container: Its file.
            stream: Of the container.
            notes: What is unusual is added to them.
            seek_margin_s: Start reading this much before ``start_s``; None: at the file's start.
            strict: No damaged packet is passed over.
        """
        self.path = clip.path
        self.container = container
        self.stream = stream
        self.stream.thread_count = 1
        self.start_s = clip.start_s or 0.0
        self.notes = notes
        self.strict = strict
        self.seek_margin_s = seek_margin_s
        self.origin_s = 0.0
        """When the file's first frame appears, by the stream's clock."""
        self._knows_origin = False
        self.end_s = 0.0
        """When the last frame read so far leaves the screen."""
        self._is_avi = "avi" in container.format.name.split(",")
        self._frame_s = read_frame_s(stream)
        self._in_stored_order = False
        """Whether presentation times are in the order in which frames are stored, not shown."""
        self._begin()

    def _begin(self) -> None:
        """Reading begins at the file's start, or where seeking has landed."""
        self._demuxer = Demuxer(self.container, self.stream)
        self._losses = Losses(strict=self.strict)
        self._n_repeated = self._n_skipped = 0
        self._early: deque[int] = deque(maxlen=_N_EARLY)
        """Times of the last packets before the first frame."""
        self._held_until_s = -np.inf
        """When the last packet that shows the frame before once more ends, by the clock."""
        self._pending = PendingTimes()
        self._last_shown_pts = -np.inf

    def __iter__(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yields time since the file's first frame, increasing, and the frame.

        Raises:
            ClipError: the file breaks off or is damaged.
            SeekMissedError: no frame at or before ``start_s`` comes first.
        """
        try:
            frames = self._decode(self._probe(iter(self._demuxer)))
            first = next(frames, None)
            if first is not None:
                clock_s = self._read_clock(first)
                if clock_s is not None:
                    self.origin_s, self._knows_origin = clock_s, True
                if self.seek_margin_s is None or clock_s is None or self._in_stored_order:
                    frames = itertools.chain([first], frames)
                    self._n_skipped += sum(pts < (first.pts or 0) for pts in self._early)
                else:
                    frames = self._seek(self.start_s - self.seek_margin_s)
            yield from self._iter_timed(frames)
        except _DAMAGE as error:
            raise ClipError(f"breaks off or is damaged after {self.end_s:.2f} s") from error
        self._demuxer.check_complete(self.path, self.origin_s, self.end_s, self.notes)

    def finish(self) -> None:
        """Note what was unusual in what was read. Raises ClipError where too much is damaged."""
        self._losses.check(self.notes)
        self._demuxer.note_breaks(self.notes)
        self.notes.add("stored_order", self._in_stored_order)
        self.notes.add("repeated_frames", self._n_repeated)
        self.notes.add("skipped_start_frames", self._n_skipped)

    def _seek(self, to_s: float) -> Iterator[VideoFrame]:
        try:
            to = int((self.origin_s + to_s) / time_base(self.stream))
            self.container.seek(to, stream=self.stream)
            self._begin()
            frames = self._decode(iter(self._demuxer))
            first = next(frames, None)
        except av.error.FFmpegError as error:
            raise SeekMissedError from error
        landed_s = None if first is None else self._read_clock(first)
        if landed_s is None or landed_s - self.origin_s > self.start_s + EPSILON_S:
            raise SeekMissedError
        self._n_skipped = 0  # the file begins elsewhere
        return itertools.chain(filter(None, [first]), frames)

    def _iter_timed(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[float, VideoFrame]]:
        last_s = -np.inf
        for frame in frames:
            clock_s = self._read_clock(frame)
            if not self._knows_origin and clock_s is not None:  # those before it told no times
                self.origin_s, self._knows_origin = clock_s - self.end_s, True
            now_s = self.end_s if clock_s is None else clock_s - self.origin_s
            if now_s <= last_s:
                continue
            last_s = now_s
            duration_s = (
                to_seconds(self.stream, frame.duration) if frame.duration else self._frame_s
            )
            self.end_s = now_s + duration_s
            yield now_s, frame
        if last_s > -np.inf:
            self.end_s = max(self.end_s, self._held_until_s - self.origin_s)

    def _read_clock(self, frame: VideoFrame) -> float | None:
        """When a frame appears by the stream's clock, seconds; None where it is not said.

        AVI stores no presentation times, and those that FFmpeg makes up are wrong where frames are
        stored out of order; decoding times, which come with the frames in order, are right.
        """
        count = frame.dts if self._is_avi else frame.pts
        return None if count is None else to_seconds(self.stream, count)

    def _may_be_in_stored_order(self) -> bool:
        if self._is_avi or self._in_stored_order:
            return False
        return self._demuxer.is_monotone and bool(self.stream.codec_context.has_b_frames)

    def _probe(self, packets: Iterator[Packet[Stream]]) -> Iterator[Packet[Stream]]:
        """The same packets; finds out whether times are in stored order before one is used."""
        if not self._may_be_in_stored_order():
            return packets
        head = list(itertools.islice(packets, _N_PROBED))
        if self._may_be_in_stored_order():
            self._in_stored_order = self._shows_disorder(head)
        return itertools.chain(head, packets)

    def _shows_disorder(self, packets: Sequence[Packet[Stream]]) -> bool:
        """Whether frames leave the decoder with times that fall; it is then as it was before."""
        times = []
        for packet in packets:
            with contextlib.suppress(*_DAMAGE):
                times += [f.pts for f in self.stream.decode(packet if packet.size else None)]
        with contextlib.suppress(*_DAMAGE):
            times += [frame.pts for frame in self.stream.decode(None)]
        self.stream.codec_context.flush_buffers()
        known = [pts for pts in times if pts is not None]
        return known != sorted(known)

    def _decode(self, packets: Iterator[Packet[Stream]]) -> Iterator[VideoFrame]:
        has_key = has_frame = False
        for packet in packets:
            has_key |= packet.is_keyframe
            if not packet.size:
                self._n_repeated += 1
                self._hold(packet)
                continue
            try:
                frames = self.stream.decode(packet)
            except _DAMAGE:
                if has_key or has_frame:
                    self._pass_over(packet)
                else:
                    self._n_skipped += 1
                continue
            self._losses.add_whole()
            if not has_frame and packet.pts is not None and not packet.is_discard:
                self._n_skipped += len(self._early) == _N_EARLY
                self._early.append(packet.pts)
            self._pending.push(packet.pts)
            has_frame |= bool(frames)
            yield from map(self._put_in_order, frames)
        yield from map(self._put_in_order, self.stream.decode(None))
        if self._demuxer.error:
            raise self._demuxer.error

    def _put_in_order(self, frame: VideoFrame) -> VideoFrame:
        """The same frame; where times are in stored order it gets that of its place on screen."""
        if frame.pts is not None and (self._in_stored_order or self._may_be_in_stored_order()):
            earliest = self._pending.pop(frame.pts, is_key=frame.key_frame)
            self._in_stored_order |= frame.pts < self._last_shown_pts
            if self._in_stored_order:
                frame.pts = earliest
            self._last_shown_pts = frame.pts
        return frame

    def _hold(self, packet: Packet[Stream]) -> None:
        """The frame before stays on screen for the time of a packet."""
        if packet.pts is not None:
            until_s = to_seconds(self.stream, packet.pts) + self._read_duration_s(packet)
            self._held_until_s = max(self._held_until_s, until_s)

    def _pass_over(self, packet: Packet[Stream]) -> None:
        """Raises ClipError where more than is passed over cannot be decoded."""
        self._hold(packet)
        pts_s = None if packet.pts is None else to_seconds(self.stream, packet.pts) - self.origin_s
        self._losses.add_damaged(pts_s, self._read_duration_s(packet), self.end_s)

    def _read_duration_s(self, packet: Packet[Stream]) -> float:
        duration_s = to_seconds(self.stream, packet.duration or 0)
        return duration_s if 0 < duration_s <= LONGEST_STILL_S else self._frame_s
