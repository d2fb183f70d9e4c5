"""What was unusual about a clip's film: counted while it is decoded, then kept in the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

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


class Notes:
    """The notes of one clip while it is decoded."""

    def __init__(self) -> None:
        self._amounts: dict[str, float] = defaultdict(float)

    def add(self, name: str, amount: float = 1) -> None:
        """Count something. name: one of ``NOTES``."""
        if name not in NOTES:
            raise ValueError(f"note {name!r} is none of {', '.join(NOTES)}")
        self._amounts[name] += amount

    def clear(self) -> None:
        """Forget all: decoding begins anew."""
        self._amounts.clear()

    @property
    def amounts(self) -> Mapping[str, float]:
        """Name -> count or seconds; empty where nothing was unusual."""
        return {name: self._amounts[name] for name in NOTES if name in self._amounts}


def describe_notes(amounts: Mapping[str, float]) -> str:
    """The notes of a clip in words."""
    return "; ".join(NOTES[name].format(amount) for name, amount in amounts.items())
