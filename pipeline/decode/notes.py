"""What was unusual about a clip's film, and how much damage is too much: counted while decoding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from features.contracts import TICK_RATE_HZ
from features.errors import ClipError
from pipeline.decode.clock import EPSILON_S

NOTES: Mapping[str, str] = {
    "clock_restarts": "times that its clock starts again: {:g}",
    "clock_jumps": "times that its clock jumps forward: {:g}",
    "stored_order": "its times are in stored order, frames are shown at a regular distance",
    "repeated_frames": "frames stored as empty packets, shown as the frame before: {:g}",
    "skipped_start_frames": "frames at its start that need one before the file begins: {:g}",
    "damaged_packets": "damaged packets, over which the frame before stays on screen: {:g}",
    "lost_s": "film lost by damage: {:.2f} s",
    "missing_s": "its header promises {:.2f} s more than there are",
    "stretched_frames": "frames stretched to square pixels: {:g}",
    "ignored_shape_frames": "frames whose pixels are said to be absurdly wide or high, shown as "
    "square ones: {:g}",
    "mirrored_frames": "frames mirrored as its display matrix says: {:g}",
    "interlaced_frames": "interlaced frames, of which one field is shown: {:g}",
    "still_s": "one frame stays on screen for very long, in all {:.2f} s",
}
"""Name -> how it is said. FORMAT.md tells what each counts; ``_s`` is seconds."""

SOUND_NOTES: Mapping[str, str] = {
    "no_sound": "it has no sound that can be decoded: zeros",
    "damaged_sound_packets": "damaged packets of its sound, silence in their places: {:g}",
    "lost_sound_s": "sound lost by damage: {:.2f} s",
}
"""The same of its sound (docs/sound.md)."""

_ALL_NOTES = {**NOTES, **SOUND_NOTES}


LONGEST_LOSS_S = 1.0
"""Film in a row that may be lost: five ticks of the clock."""
LARGEST_SHARE = 0.01
"""Of the packets, that may be damaged."""
SMALL_LOSS_S = 1 / TICK_RATE_HZ
"""Film that may be lost in all, whatever the share, as may one packet."""


class Notes:
    """The notes of one clip while it is decoded."""

    def __init__(self) -> None:
        self._amounts: dict[str, float] = defaultdict(float)

    def add(self, name: str, amount: float = 1) -> None:
        """Count something; 0 is no note. name: one of the tables above."""
        if name not in _ALL_NOTES:
            raise ValueError(f"note {name!r} is none of {', '.join(_ALL_NOTES)}")
        if amount:
            self._amounts[name] += amount

    def clear(self) -> None:
        """Forget all: decoding begins anew."""
        self._amounts.clear()

    @property
    def amounts(self) -> Mapping[str, float]:
        """Name -> count or seconds; empty where nothing was unusual."""
        return {name: self._amounts[name] for name in _ALL_NOTES if name in self._amounts}


class Losses:
    """Counts the packets of a clip and those that cannot be decoded."""

    def __init__(self, *, strict: bool) -> None:
        """strict: Any damage is too much."""
        self._strict = strict
        self._n_packets = self._n_damaged = 0
        self._lost_s = 0.0
        self._run: tuple[float, float] | None = None
        """From when to when nothing could be decoded, as far as is known."""

    def add_whole(self) -> None:
        """A packet that is whole."""
        self._n_packets += 1
        self._run = None

    def add_damaged(self, start_s: float | None, duration_s: float, shown_s: float) -> None:
        """A packet that is damaged. Raises ClipError where too much in a row is.

        Args:
            start_s: When its frame would appear, from the file's first; None if it is not said.
            duration_s: For how long it would be on screen.
            shown_s: When the last frame so far leaves the screen.
        """
        self._n_packets += 1
        self._n_damaged += 1
        self._lost_s += duration_s
        if start_s is None:
            start_s = shown_s if self._run is None else self._run[1]
        first_s, last_s = self._run or (start_s, start_s)
        first_s, last_s = min(first_s, start_s), max(last_s, start_s + duration_s)
        self._run = first_s, last_s
        if self._strict:
            raise ClipError(f"damaged after {shown_s:.2f} s, and strict passes over no damage")
        if last_s - first_s > LONGEST_LOSS_S + EPSILON_S:
            raise ClipError(
                f"breaks off or is damaged after {shown_s:.2f} s: more than {LONGEST_LOSS_S:g} s "
                "in a row cannot be decoded"
            )

    def check(self, notes: Notes) -> None:
        """Take a note of what was lost. Raises ClipError where it is too large a share."""
        small = self._n_damaged <= 1 or self._lost_s < SMALL_LOSS_S + EPSILON_S
        if not small and self._n_damaged > LARGEST_SHARE * self._n_packets:
            raise ClipError(
                f"damaged: {self._n_damaged} of {self._n_packets} packets ({self._lost_s:.2f} s) "
                f"cannot be decoded, more than {LARGEST_SHARE:.0%}"
            )
        notes.add("damaged_packets", self._n_damaged)
        notes.add("lost_s", self._lost_s)


def describe_notes(amounts: Mapping[str, float]) -> str:
    """The notes of a clip in words."""
    return "; ".join(_ALL_NOTES[name].format(amount) for name, amount in amounts.items())
