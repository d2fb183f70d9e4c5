"""Tells before decoding which packets nobody needs: not seen at a tick, and no other refers to.

Only H.264 and HEVC as stored in MP4 and Matroska, where a packet is one picture, its presentation
time is right, and its units say whether other pictures refer to it. All else is needed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

_TOLERANCE_S = 1e-4
"""Frames this close to a tick are decoded, wherever rounding puts the tick."""

_N_KEPT_TIMES = 32
"""Times of packets that went before: among them is what follows a frame that is shown late."""


class Role(Enum):
    """What the pictures after a packet make of it."""

    START = auto()
    """No picture stored after it refers to one stored before it (an IDR picture)."""
    REFERENCE = auto()
    """Others may refer to it."""
    LEAF = auto()
    """No other refers to it."""
    UNKNOWN = auto()
    """Not one whole picture, or it carries something that others need."""


@dataclass(frozen=True, kw_only=True)
class NalSyntax:
    """How the units of a packet are told apart (ISO 14496-15)."""

    codec: str
    """``h264`` or ``hevc``."""
    n_length_bytes: int
    top_layer: int = 0
    """HEVC: the highest temporal sub-layer; below it even pictures marked so are referred to."""

    def read_role(self, packet: bytes | memoryview) -> Role:
        """The role of a packet, by the headers of its units."""
        read = _read_h264_role if self.codec == "h264" else self._read_hevc_role
        roles = set()
        at = 0
        while at < len(packet):
            start = at + self.n_length_bytes
            at = start + int.from_bytes(packet[at:start], "big")
            if at > len(packet) or at < start + 2:
                return Role.UNKNOWN
            roles.add(read(packet[start], packet[start + 1]))
        roles.discard(None)
        return (roles.pop() or Role.UNKNOWN) if len(roles) == 1 else Role.UNKNOWN

    def _read_hevc_role(self, first: int, second: int) -> Role | None:
        """ITU-T H.265, 7.4.2.2, Table 7-1."""
        kind, layer = first >> 1 & 63, (second & 7) - 1
        if kind in (19, 20):
            return Role.START
        if kind < 32:
            is_leaf = kind <= 14 and kind % 2 == 0 and layer == self.top_layer
            return Role.LEAF if is_leaf else Role.REFERENCE
        # Delimiter, filler, supplemental information; all else may set parameters.
        return None if kind in (35, 38, 39, 40) else Role.UNKNOWN


def _read_h264_role(first: int, _: int) -> Role | None:
    """ITU-T H.264, 7.4.1, Table 7-1; None for a unit that says nothing."""
    kind, is_referred_to = first & 31, first >> 5 & 3
    if kind == 5:
        return Role.START
    if kind == 1:
        return Role.REFERENCE if is_referred_to else Role.LEAF
    return None if kind in (6, 9, 12) else Role.UNKNOWN


def read_nal_syntax(codec: str, container: str, extradata: bytes | None) -> NalSyntax | None:
    """How packets of a stream are read; None if they cannot be.

    Args:
        codec: FFmpeg's name of the codec.
        container: FFmpeg's names of the container, separated by commas.
        extradata: The stream's decoder configuration record (ISO 14496-15).
    """
    if {"mp4", "matroska"}.isdisjoint(container.split(",")) or not extradata or extradata[0] != 1:
        return None
    if codec == "h264" and len(extradata) > 4:
        return NalSyntax(codec=codec, n_length_bytes=(extradata[4] & 3) + 1)
    if codec == "hevc" and len(extradata) > 21 and (n_layers := extradata[21] >> 3 & 7):
        n_length_bytes = (extradata[21] & 3) + 1
        return NalSyntax(codec=codec, n_length_bytes=n_length_bytes, top_layer=n_layers - 1)
    return None


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """The ticks of a clip by its stream's clock: ``start_s`` + k / ``rate_hz``, k = 0, 1 ..."""

    start_s: float
    rate_hz: float
    end_s: float = math.inf
    """Reading stops at the first frame that appears here or later."""

    def meet(self, from_s: float, to_s: float) -> bool:
        """Whether a tick or the end may lie in this time, or within a tolerance of it."""
        if from_s > self.end_s - _TOLERANCE_S:
            return True
        k = math.ceil((from_s - _TOLERANCE_S - self.start_s) * self.rate_hz)
        return self.start_s + max(k, 0) / self.rate_hz < to_s + _TOLERANCE_S


class Needs:
    """Follows the packets of a stream, in the order in which they are stored."""

    def __init__(self) -> None:
        self._is_reordered = False
        self._times_s: deque[float] = deque(maxlen=_N_KEPT_TIMES)

    def pass_by(self, pts_s: float) -> None:
        """A picture has gone to the decoder, or has been left out."""
        self._is_reordered |= any(s > pts_s for s in self._times_s)
        self._times_s.append(pts_s)

    def is_reordered(self, coming: Sequence[tuple[float, Role]]) -> bool:
        """Whether a picture is shown before one that is stored before it."""
        if not self._is_reordered:
            times_s = [*self._times_s, *(s for s, role in coming if role is not Role.UNKNOWN)]
            self._is_reordered = times_s != sorted(times_s)
        return self._is_reordered

    def is_needed(self, ticks: Ticks, coming: Sequence[tuple[float, Role]]) -> bool:
        """Whether the first of the coming packets must be decoded.

        Args:
            ticks: Of the clip.
            coming: Time by the stream's clock, and role, of this packet and of those stored next,
                as many as are known. Of more packets more can be left out, never a wrong one.
        """
        pts_s, role = coming[0]
        if role is Role.UNKNOWN or self._is_seen(ticks, pts_s, coming):
            return True
        if role is Role.LEAF:
            return False
        roles = [role for _, role in coming]
        if Role.START not in roles[1:]:
            return True
        # If nothing from here to there is seen, nothing is needed: what comes after refers to none.
        between = list(coming)[1 : roles.index(Role.START, 1)]
        return any(role is Role.UNKNOWN or self._is_seen(ticks, s, coming) for s, role in between)

    def _is_seen(self, ticks: Ticks, pts_s: float, coming: Sequence[tuple[float, Role]]) -> bool:
        later_s = [s for s in self._times_s if s > pts_s]
        later_s += [s for s, role in coming if s > pts_s and role is not Role.UNKNOWN]
        return ticks.meet(pts_s, min(later_s, default=math.inf))
