"""How much damage is passed over."""

from __future__ import annotations

import pytest

from features.errors import ClipError
from pipeline.decode.notes import Losses, Notes

FRAME_S = 0.04


def note_losses(packets: str, *, strict: bool = False) -> dict[str, float]:
    """packets: ``.`` is whole, ``x`` damaged."""
    losses, notes = Losses(strict=strict), Notes()
    for i, packet in enumerate(packets):
        if packet == "x":
            losses.add_damaged(i * FRAME_S, FRAME_S, i * FRAME_S)
        else:
            losses.add_whole()
    losses.check(notes)
    return dict(notes.amounts)


PASSED_OVER: dict[str, tuple[str, dict[str, float]]] = {
    "nothing": ("." * 20, {}),
    "one packet of few": ("..x..", {"damaged_packets": 1, "lost_s": 0.04}),
    "0.2 s of a short clip": ("." * 20 + "xxxxx" + "." * 20, {"damaged_packets": 5, "lost_s": 0.2}),
    "1% of a long film, 1 s in a row": (
        "." * 1000 + "x" * 25 + "." * 1475, {"damaged_packets": 25, "lost_s": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("packets", "expected"), PASSED_OVER.values(), ids=PASSED_OVER)
def test_is_passed_over(packets: str, expected: dict[str, float]) -> None:
    assert note_losses(packets) == pytest.approx(expected)


TOO_MUCH: dict[str, tuple[str, str]] = {
    "more than 1%": ("x....." * 10, r"10 of 60 packets \(0.40 s\) cannot be decoded, more than 1%"),
    "more than 1 s in a row": ("." * 5000 + "x" * 26, "breaks off or is damaged after 201.00 s"),
    "all of it": ("x" * 26, "breaks off or is damaged after 1.00 s"),
}


@pytest.mark.parametrize(("packets", "reason"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_is_too_much(packets: str, reason: str) -> None:
    with pytest.raises(ClipError, match=reason):
        note_losses(packets)


def test_packets_without_times_follow_each_other() -> None:
    losses = Losses(strict=False)
    for _ in range(25):
        losses.add_damaged(None, FRAME_S, 3.0)
    with pytest.raises(ClipError, match=r"after 3\.00 s: more than 1 s in a row"):
        losses.add_damaged(None, FRAME_S, 3.0)


def test_strict_passes_over_nothing() -> None:
    with pytest.raises(ClipError, match=r"damaged after 0\.08 s, and strict"):
        note_losses("..x" + "." * 500, strict=True)
