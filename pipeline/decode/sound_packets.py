"""The packets of a file's sound by the repaired clock of its film."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from pipeline.decode.demux import (
    find_shift,
    has_one_clock,
    holds_frame,
    iter_packets,
    make_clock,
    time_base,
    to_seconds,
)

_N_FILM_AHEAD = 32
"""Packets of the film that are looked at after a packet of sound: a new recording begins with
either."""
_MOST_WAITING = 256
"""Packets of sound that wait for them, where a file is badly interleaved."""


def iter_sought(
    container: InputContainer, sound: AudioStream, from_s: float
) -> Iterator[Packet[AudioStream]]:
    """The packets of a sound from about a time on, of a file that keeps its clock throughout."""
    _leave_out_all_but(container, sound)
    container.seek(int(from_s / time_base(sound)), stream=sound)
    yield from _iter_whole(container, [sound])


def iter_repaired(
    container: InputContainer, sound: AudioStream, film: VideoStream
) -> Iterator[Packet[AudioStream]]:
    """The packets of a sound from the file's start on, by the clock that the film's frames have.

    Where that starts again or jumps (``pipeline.decode.clock``), sound has its shift. Sound and
    film change over to a new recording some packets apart, and which recording a packet belongs to
    is not said: it is the one in which it is heard nearest to the film beside it in the file::

        film, stored     0.0  0.4   0.8        | 0.0  0.4
        repaired         0.0  0.4   0.8        | 1.2  1.6
        sound, stored       0.1  0.5   0.0  0.9  0.2  0.4
        its recording       1    1     2    1    2    2
    """
    if has_one_clock(container):
        _leave_out_all_but(container, sound)
        yield from _iter_whole(container, [sound])
        return
    _leave_out_all_but(container, sound, film)
    shifts = _Shifts(container, sound, film)
    for packet in _iter_whole(container, [sound, film]):
        yield from shifts.take(packet)
    yield from shifts.end()


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    packet: Packet[AudioStream]
    recording: int
    """In which the film is beside it."""
    film_s: float | None
    """Time of the film beside it, repaired; None: it has not begun."""
    n_film: int
    """Packets of the film before it."""


class _Shifts:
    """Gives each packet of sound the shift of its recording."""

    def __init__(self, container: InputContainer, sound: AudioStream, film: VideoStream) -> None:
        self._sound = sound
        self._film = film
        self._clock = make_clock(container, film)
        self._shifts_s = [0.0]
        """Of each recording so far."""
        self._film_s: float | None = None
        self._n_film = 0
        self._waiting: deque[_Waiting] = deque()

    def take(self, packet: Packet[Any]) -> Iterator[Packet[AudioStream]]:
        """Take the next packet of either; yield those of sound whose recording is known."""
        if packet.stream is self._film:
            self._follow_film(packet)
        else:
            self._waiting.append(
                _Waiting(
                    packet=packet,
                    recording=len(self._shifts_s) - 1,
                    film_s=self._film_s,
                    n_film=self._n_film,
                )
            )
        while self._waiting and (
            len(self._waiting) > _MOST_WAITING
            or self._waiting[0].n_film + _N_FILM_AHEAD <= self._n_film
        ):
            yield self._repair(self._waiting.popleft())

    def end(self) -> Iterator[Packet[AudioStream]]:
        """Yield the rest."""
        while self._waiting:
            yield self._repair(self._waiting.popleft())

    def _follow_film(self, packet: Packet[VideoStream]) -> None:
        self._n_film += 1
        if packet.pts is None or packet.is_discard or not holds_frame(packet, self._film):
            return
        shift_s = to_seconds(self._film, find_shift(self._clock, packet))
        if shift_s != self._shifts_s[-1]:
            self._shifts_s.append(shift_s)
        self._film_s = to_seconds(self._film, packet.pts) + shift_s

    def _repair(self, waiting: _Waiting) -> Packet[AudioStream]:
        packet = waiting.packet
        if packet.pts is None or waiting.film_s is None or len(self._shifts_s) == 1:
            return packet
        film_s, base_s = waiting.film_s, time_base(self._sound)
        stored_s = packet.pts * base_s
        nearby = self._shifts_s[max(0, waiting.recording - 1) : waiting.recording + 2]
        shift_s = min(nearby, key=lambda shift_s: abs(stored_s + shift_s - film_s))
        packet.pts += round(shift_s / base_s)
        if packet.dts is not None:
            packet.dts += round(shift_s / base_s)
        return packet


def _leave_out_all_but(container: InputContainer, *streams: AudioStream | VideoStream) -> None:
    """Let FFmpeg pass over the packets of other streams."""
    kept = {stream.index for stream in streams}
    for stream in container.streams:
        if stream.index not in kept:
            stream.discard = Discard.all


def _iter_whole(container: InputContainer, streams: list[Any]) -> Iterator[Packet[Any]]:
    """The packets that hold something."""
    for packet in iter_packets(container, streams):
        if packet.size:
            yield packet
