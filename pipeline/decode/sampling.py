"""Decodes clips as a stream of frames, so that memory does not grow with the clip."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from io import FileIO

import av.error
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from features.contracts import TICK_RATE_HZ, Clip
from features.disk import FileState, read_state
from features.errors import ClipError
from pipeline.decode import opening
from pipeline.decode.clock import EPSILON_S, LONGEST_STILL_S, count_ticks
from pipeline.decode.demux import can_be_sought
from pipeline.decode.display import Display
from pipeline.decode.notes import Notes
from pipeline.decode.nvdec import NoHardwareError, Nvdec
from pipeline.decode.timeline import SeekMissedError, Timeline

_log = logging.getLogger(__name__)

_SEEK_MARGINS_S = (0.5, 15.0)
"""Land this much before ``start_s``: containers place key frames by decoding time, and MPEG-TS
lands beyond where it finds none. The second is the next try; after it, reading starts at 0."""

_MOST_TICKS = 256
"""Of one DecodedFrame: a frame with more is given out several times."""


@dataclass(frozen=True, kw_only=True)
class FrameRecord:
    """Which frame of which clip: goes with it from the decoder to its rows in the store."""

    clip: Clip
    pts_s: float
    """Presentation time, seconds from the clip's start (below 0 if shown since before it)."""
    phases: tuple[int, ...]
    """The phase of each of its ticks, in the order of the ticks."""
    decoder: str
    """``software:`` or ``nvdec:`` and the codec."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedFrame:
    """A frame that is on screen at one tick or more."""

    record: FrameRecord
    rgb: Tensor
    """[H, W, 3] uint8, upright, of square pixels, on the device that was asked for."""


Frames = Generator[DecodedFrame, None, Mapping[str, float] | None]
"""The chosen frames of a clip; returns its notes (``pipeline.decode.notes``) after the last."""


class Software:
    """Decodes on the CPU whatever FFmpeg can; the frames are brought to a device.

    Has what ``Nvdec`` has: what either cannot decode raises NoHardwareError or ClipError.
    """

    name = "software"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def open(self, file: FileIO) -> InputContainer:
        return opening.open_container(file)

    def check_codec(self, codec: str) -> None:
        pass

    def read_rgb(self, frame: VideoFrame, stream: VideoStream) -> Tensor:
        return torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)).to(self._device)


def iter_chosen_frames(
    clip: Clip,
    n_phases: int,
    device: torch.device | str = "cpu",
    *,
    check_state: Callable[[FileState], object] = lambda _: None,
    strict: bool = False,
    hardware: Nvdec | None = None,
) -> Frames:
    """Decode a clip and yield the frames on screen at the ticks of the clock (IV-C).

    The clock has 5 * ``n_phases`` ticks a second; tick k has phase k mod ``n_phases``. It starts at
    ``start_s``, or at the first frame::

        pts_s   0.00  0.15  0.30        0.70 (end 0.80)       n_phases = 1
        ticks   0.0      0.2      0.4      0.6
        chosen  0.00     0.15     0.30     0.30               one DecodedFrame with two phases

    Only frames that are yielded are converted to RGB, by the matrix and range that the stream
    names (BT.601, limited, where it names none), each chroma sample standing for all its pixels.
    They are shown as players do: ``pipeline.decode.display``. One thread decodes:
    several clips at a time use the cores better (``pipeline.workers.prefetch``).

    A CUDA device decodes itself what it can. What it cannot is decoded in software and brought to
    it, from the first frame on or from where the GPU gave up; ``decoder`` tells.

    Args:
        clip: Its file, and the part of it.
        n_phases: Of the clock.
        device: Where the frames go.
        check_state: Gets the state of the file that the frames came from, after the last of them;
            what it raises ends the clip.
        strict: Whether the least damage ends the clip; else a little is passed over.
        hardware: Who decodes as far as it can; by default the CUDA device, where one is named.

    Raises:
        ClipError: no file, no video in it, not one frame to be had, the file breaks off, or it
            changed meanwhile; the frames before have been yielded.
    """
    device = torch.device(device)
    if hardware is None and device.type == "cuda":
        hardware = Nvdec(device)
    try:
        with opening.open_file(clip.path) as file:
            before = read_state(file.fileno())
            try:
                notes = yield from _iter_with_fallback(
                    file, clip, n_phases, hardware, Software(device), strict=strict
                )
            except Exception:  # damage in a file that changes is that of no content
                opening.check_unchanged(clip.path, file, before)
                raise
            opening.check_unchanged(clip.path, file, before)
    except OSError as error:
        raise ClipError(f"cannot be read ({error.strerror or error})") from error
    check_state(before)
    return notes


def _iter_with_fallback(
    file: FileIO,
    clip: Clip,
    n_phases: int,
    hardware: Nvdec | None,
    software: Software,
    *,
    strict: bool,
) -> Frames:
    """Every tick has one frame, whoever decoded it."""
    notes = Notes()
    n_ticks = 0
    reason = ""
    if hardware is not None:
        try:
            # What a GPU makes of damage is not what software does: it gives up at any.
            for frame in _iter_by(hardware, file, clip, n_phases, notes, strict=True):
                yield frame
                n_ticks += len(frame.record.phases)
            return notes.amounts
        except (ClipError, NoHardwareError) as error:  # a damaged file fails in software, too
            reason = str(error)
    for frame in _iter_by(software, file, clip, n_phases, notes, strict=strict):
        if reason:
            _log.debug("clip %s: decoded in software: %s", clip.clip_id, reason)
            reason = ""
        phases = frame.record.phases[n_ticks:]
        n_ticks = max(0, n_ticks - len(frame.record.phases))
        if phases:
            yield replace(frame, record=replace(frame.record, phases=phases))
    return notes.amounts


def _iter_by(
    decoder: Nvdec | Software,
    file: FileIO,
    clip: Clip,
    n_phases: int,
    notes: Notes,
    *,
    strict: bool,
) -> Iterator[DecodedFrame]:
    """Raises ClipError as above, and NoHardwareError as the decoder does."""
    try:
        margins_s = [margin_s for margin_s in _SEEK_MARGINS_S if margin_s < (clip.start_s or 0)]
        if margins_s and not can_be_sought(clip.path, read_state(file.fileno())):
            margins_s = []
        for margin_s in (*margins_s, None):
            notes.clear()
            try:
                with decoder.open(file) as container:
                    stream = opening.find_film(container)
                    decoder.check_codec(stream.codec_context.name)
                    timeline = Timeline(
                        clip, container, stream, notes, seek_margin_s=margin_s, strict=strict
                    )
                    try:
                        yield from _choose(clip, n_phases, timeline, decoder, notes)
                    except (ClipError, av.error.FFmpegError):
                        opening.check_decoded_size(stream)
                        raise
                    opening.check_decoded_size(stream)
                return
            except SeekMissedError:
                continue
    except av.error.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ClipError(f"not a video, or damaged ({reason})") from error


def _choose(
    clip: Clip, n_phases: int, timeline: Timeline, decoder: Nvdec | Software, notes: Notes
) -> Iterator[DecodedFrame]:
    rate_hz = TICK_RATE_HZ * n_phases
    origin_s = clip.start_s or 0.0
    end_s = np.inf if clip.end_s is None else clip.end_s
    stream = timeline.stream
    display = Display(stream, notes)
    tick = 0
    shown: tuple[float, VideoFrame] | None = None

    def leave_screen(at_s: float) -> Iterator[DecodedFrame]:
        nonlocal tick
        first, tick = tick, max(tick, count_ticks(at_s, origin_s, rate_hz))
        if tick == first or shown is None:
            return
        last = tick
        from_s = max(origin_s, shown[0])
        if at_s - from_s > LONGEST_STILL_S:
            notes.add("still_s", at_s - from_s)
            last = max(first, count_ticks(from_s + 1 / TICK_RATE_HZ, origin_s, rate_hz))
        rgb = display.show(shown[1], decoder.read_rgb(shown[1], stream))
        for k in range(first, last, _MOST_TICKS):
            record = FrameRecord(
                clip=clip,
                pts_s=shown[0] - origin_s,
                phases=tuple(i % n_phases for i in range(k, min(k + _MOST_TICKS, last))),
                decoder=f"{decoder.name}:{stream.codec_context.name}",
            )
            yield DecodedFrame(record=record, rgb=rgb)

    for now_s, frame in timeline:
        if now_s >= end_s - EPSILON_S:
            break
        if shown is not None:  # else the first frame stands in for ticks before it
            yield from leave_screen(now_s)
        shown = (now_s, frame)
    if shown is None or timeline.end_s <= origin_s + EPSILON_S:
        after = (
            f" from {origin_s:g} s on: the file ends at {timeline.end_s:.2f} s" if origin_s else ""
        )
        raise ClipError(f"no frame can be decoded{after}")
    yield from leave_screen(min(end_s, timeline.end_s))
    timeline.finish()
