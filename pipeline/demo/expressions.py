"""The eight expressions of MEC as weights of facial action units.

The units are those of the Facial Action Coding System. Which make which emotion follows Ekman and
Friesen (1978), table 11-1: *anxious* takes their fear; *worried*, which they do not list, a drawn
brow over a pressed mouth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Expression:
    """How strongly each action unit is drawn: 0 is the face at rest, 1 a strong movement."""

    inner_brow: float = 0.0
    """AU 1, raised."""
    outer_brow: float = 0.0
    """AU 2, raised."""
    lower_brow: float = 0.0
    """AU 4, lowered and drawn together."""
    wide_lids: float = 0.0
    """AU 5"""
    cheeks: float = 0.0
    """AU 6, raised."""
    tight_lids: float = 0.0
    """AU 7"""
    nose: float = 0.0
    """AU 9, wrinkled."""
    upper_lip: float = 0.0
    """AU 10, raised."""
    smile: float = 0.0
    """AU 12 and 25: lip corners drawn up, teeth shown."""
    corners_down: float = 0.0
    """AU 15"""
    chin: float = 0.0
    """AU 17, raised."""
    stretch: float = 0.0
    """AU 20 and 25: lips drawn wide, parted."""
    press: float = 0.0
    """AU 24: lips pressed."""
    jaw: float = 0.0
    """AU 26, dropped."""
    closed_lids: float = 0.0
    """AU 43: 1 is a closed eye."""

    def __mul__(self, strength: float) -> Expression:
        return Expression(**{unit: weight * strength for unit, weight in vars(self).items()})

    def __add__(self, other: Expression) -> Expression:
        return Expression(
            **{unit: weight + vars(other)[unit] for unit, weight in vars(self).items()}
        )


EXPRESSIONS: Mapping[str, Expression] = {
    "happy": Expression(smile=1.1, cheeks=1.0),
    "sad": Expression(
        inner_brow=1.2, lower_brow=0.35, closed_lids=0.35, corners_down=1.1, chin=0.7
    ),
    "angry": Expression(
        lower_brow=1.5, wide_lids=0.2, tight_lids=0.7, press=1.0, corners_down=0.3, nose=0.3
    ),
    "surprise": Expression(inner_brow=1.1, outer_brow=1.2, wide_lids=1.2, jaw=0.8, stretch=0.15),
    "disgust": Expression(
        nose=1.2, upper_lip=1.2, lower_brow=0.7, tight_lids=0.9, cheeks=0.5, corners_down=0.6
    ),
    "worried": Expression(
        inner_brow=1.0, lower_brow=1.0, tight_lids=0.3, press=0.9, corners_down=0.3, chin=0.4
    ),
    "anxious": Expression(
        inner_brow=1.1,
        outer_brow=0.5,
        lower_brow=0.5,
        wide_lids=1.0,
        stretch=1.1,
        jaw=0.22,
        corners_down=0.3,
    ),
    "neutral": Expression(),
}
"""The strong form of each class's expression."""
