"""How the parts of the demo set's face move: smooth displacement fields, one action unit at a time.

Lengths are pixels of the astronaut photograph. A field says, at each pixel of the *result*, how far
what is seen there has come (right and down positive). Positions were read off the photograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.expressions import Expression

Plane = NDArray[np.floating]

_MOUTH_X, _MOUTH_HALF = 223.8, 21.3
_REST_Y, _REST_HALF = 146.8, 18.6
"""Where the lips meet, and half their length, once the photograph's smile is undone."""
_NOSE_BASE_Y, _CHIN_Y = 132.5, 176.0
_EYE_HALF = 13.0


@dataclass(frozen=True, kw_only=True)
class _Brow:
    inner: tuple[float, float]
    middle: tuple[float, float]
    outer: tuple[float, float]
    inwards: float
    """Sign of x towards the other brow."""
    lid_y: float


@dataclass(frozen=True, kw_only=True)
class _Eye:
    x: float
    upper_y: float
    lower_y: float
    slope: float


_BROWS = (
    _Brow(inner=(214, 92.3), middle=(202, 89.3), outer=(191, 90.6), inwards=1.0, lid_y=97.0),
    _Brow(inner=(237, 93.4), middle=(249, 92.4), outer=(261, 95.4), inwards=-1.0, lid_y=99.0),
)
_EYES = (
    _Eye(x=204.5, upper_y=96.9, lower_y=104.2, slope=0.02),
    _Eye(x=247.0, upper_y=99.0, lower_y=106.3, slope=-0.03),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mouth:
    """The mouth's field, and what is seen between the lips. All [h, w]."""

    dx: Plane
    dy: Plane
    along: Plane
    """-1 at the left corner of the mouth, 1 at the right."""
    below_upper: Plane
    """Pixels below the upper lip's edge."""
    above_lower: Plane
    """Pixels above the lower lip's edge."""
    teeth_y: Plane
    """Row of the photograph that shows between the lips."""
    teeth_height: Plane
    """How far below the upper lip the photograph's teeth reach."""

    @property
    def parted(self) -> NDArray[np.bool_]:
        return (self.below_upper > 0) & (self.above_lower > 0)


def move_brows_and_eyes(x: Plane, y: Plane, e: Expression) -> tuple[Plane, Plane]:
    """Fields dx, dy [h, w] of brows and lids."""
    inner_dy = -5.0 * e.inner_brow + 3.6 * e.lower_brow
    outer_dy = -5.0 * e.outer_brow + 2.4 * e.lower_brow + 1.0 * e.inner_brow
    middle_dy = 0.35 * inner_dy + 0.65 * outer_dy
    dx, dy = np.zeros_like(x), np.zeros_like(y)
    for brow in _BROWS:
        inner = bump(x, y, (brow.inner[0], brow.inner[1] + inner_dy), (7.5, 7.0))
        middle = bump(x, y, (brow.middle[0], brow.middle[1] + middle_dy), (7.0, 6.5))
        outer = bump(x, y, (brow.outer[0], brow.outer[1] + outer_dy), (7.0, 6.5))
        total = np.maximum(inner + middle + outer, 1)
        brow_dy = (inner_dy * inner + middle_dy * middle + outer_dy * outer) / total
        # A raised brow leaves the lid where it is; a lowered one pushes it down.
        spared = 1 - ramp((y - brow.lid_y + 9.5) / 5)
        dy += np.where(brow_dy < 0, brow_dy * spared, brow_dy)
        dx += brow.inwards * 2.6 * e.lower_brow * inner
    for eye in _EYES:
        dy += _move_lids(x, y, e, eye)
    return dx, dy


def _move_lids(x: Plane, y: Plane, e: Expression, eye: _Eye) -> Plane:
    across = (x - eye.x) / _EYE_HALF
    arch = np.clip(1 - across * across, 0, 1)
    corners = 0.35 * eye.upper_y + 0.65 * eye.lower_y + eye.slope * (x - eye.x)
    upper = corners - 0.65 * (eye.lower_y - eye.upper_y) * arch
    lower = corners + 0.35 * (eye.lower_y - eye.upper_y) * arch
    opening = 2.0 * e.wide_lids - 1.4 * e.tight_lids - 6.6 * e.closed_lids
    new_lower = lower + (0.35 * e.wide_lids - 1.6 * e.tight_lids - 1.5 * e.cheeks) * arch
    new_upper = np.minimum(upper - opening * arch, new_lower)
    above = (new_upper - upper) * (1 - ramp((new_upper - y) / 9))
    below = (new_lower - lower) * (1 - ramp((y - new_lower) / 10))
    # Lids slide over the eyeball when they narrow; only a widened eye is stretched.
    stretch = 1 - (lower - upper) / np.maximum(new_lower - new_upper, 0.5)
    within = np.clip((y - (upper + lower) / 2) * stretch, -2.5, 2.5) * float(opening > 0)
    moved = np.where(y < new_upper, above, np.where(y > new_lower, below, within))
    shared: Plane = moved * (1 - ramp((np.abs(across) - 1) / 0.5))
    return shared


def move_nose_and_cheeks(x: Plane, y: Plane, e: Expression) -> tuple[Plane, Plane]:
    """Fields dx, dy [h, w] of nose and cheeks."""
    wings = bump(x, y, (213, 126), (6, 8)), bump(x, y, (235, 126), (6, 8))
    dx = 1.2 * e.nose * (wings[1] - wings[0])
    dy = -3.2 * e.nose * (wings[0] + wings[1]) - 2.0 * e.nose * bump(x, y, (224, 122), (7, 9))
    dy -= 1.6 * e.cheeks * bump(x, y, (196, 122), (10, 9))
    dy -= 1.6 * e.cheeks * bump(x, y, (254, 124), (10, 9))
    return dx, dy


def move_mouth(x: Plane, y: Plane, e: Expression) -> Mouth:
    """The mouth of an expression.

    The photograph's lips are parted over the teeth. Each lip's edge is a curve along the mouth; it
    moves to its new curve, and the skin follows, less and less towards nose base and chin::

        photograph   (  teeth  )        new edges meet: the teeth are gone
        at rest      -----------        new edges part: teeth, then the dark of the mouth
    """
    half = _REST_HALF + 2.7 * e.smile + 3.6 * e.stretch - 2.6 * e.press - 2.6 * e.jaw
    along = (x - _MOUTH_X) / half
    u = np.clip(along, -1, 1)
    upper = 143.6 - 3.6 * u**2 + 0.5 * u
    lower = 150.2 - 9.9 * u**2 + 0.5 * u

    line = _REST_Y - 0.4 * e.corners_down - 1.6 * e.chin + 0.3 * e.press
    corner = _REST_Y - 6.8 * e.smile + 4.4 * e.corners_down + 0.6 * e.stretch + 1.0 * e.jaw
    corner -= 0.3 * e.upper_lip
    upper_mid = line - 3.2 * e.smile - 3.6 * e.upper_lip - 2.0 * e.jaw - 0.3 * e.stretch
    lower_mid = line + 3.4 * e.smile + 0.9 * e.upper_lip + 11.0 * e.jaw + 1.0 * e.stretch
    round_share = min(max(e.jaw, 0.0), 1.0)
    arch = (1 - round_share) * (1 - u**2) + round_share * np.sqrt(np.clip(1 - u**2, 0, 1))
    new_upper = corner + (upper_mid - corner) * arch + 0.5 * u
    new_lower = np.maximum(corner + (lower_mid - corner) * arch + 0.5 * u, new_upper)

    jaw_dy = 8.5 * e.jaw - 1.2 * e.chin
    nose_y = _NOSE_BASE_Y - 2.0 * e.nose
    sideways = 1 - ramp((np.abs(along) - 1) / 0.9)
    to_nose = ramp((new_upper - y) / np.maximum(new_upper - nose_y, 4))
    to_chin = ramp((y - new_lower) / np.maximum(_CHIN_Y + jaw_dy - new_lower, 6))
    beyond_chin = 1 - ramp((y - _CHIN_Y - 2 - jaw_dy) / 16)
    jaw_width = np.exp(-(((x - _MOUTH_X) / 30) ** 4))
    upper_dy = (new_upper - upper) * (1 - to_nose) * sideways
    lower_dy = (new_lower - lower) * (1 - to_chin) * sideways
    lower_dy += jaw_dy * to_chin * beyond_chin * jaw_width

    lips_gap = np.maximum(np.maximum(new_upper - y, y - new_lower), 0)
    outside_dx = np.sign(u) * (half - _MOUTH_HALF) * (1 - ramp((np.abs(along) - 1) / 0.8))
    lips_dx = np.where(np.abs(along) < 1, u * (half - _MOUTH_HALF), outside_dx)
    hidden = 2.0 * e.jaw * (1 - min(e.smile, 1.0))
    return Mouth(
        dx=lips_dx * np.exp(-(lips_gap**2) / (2 * 11.0**2)),
        dy=np.where(y <= new_upper, upper_dy, np.where(y >= new_lower, lower_dy, 0)),
        along=along,
        below_upper=y - new_upper,
        above_lower=new_lower - y,
        teeth_y=np.minimum(upper + hidden + (y - new_upper), lower - 0.3),
        teeth_height=np.maximum(lower - upper - hidden, 0),
    )


def shade_mouth(rgb: Plane, mouth: Mouth, e: Expression) -> Plane:
    """Draw the seam of closed lips and the dark behind open ones: [3, h, w] to [3, h, w]."""
    gap = mouth.below_upper + mouth.above_lower
    seam = np.exp(-(((mouth.below_upper - mouth.above_lower) / 1.5) ** 2) / 2)
    seam *= np.clip(1.08 - np.abs(mouth.along), 0, 0.3) / 0.3 * np.clip(1 - gap / 2, 0, 1)
    under_lip = np.exp(-(((4 + mouth.above_lower) / 2) ** 2) / 2 - (mouth.along / 0.55) ** 2 / 2)
    shadow = np.clip(0.48 * seam + 0.14 * e.press * under_lip, 0, 0.8)
    rgb = rgb * (1 - shadow * np.array([0.8, 1.0, 1.05], np.float32)[:, None, None])

    unsmiling = 1 - min(max(e.smile, 0.0), 1.0)
    within = np.clip(np.minimum(mouth.below_upper, mouth.above_lower) / 0.6, 0, 1)
    dark = unsmiling * ramp((mouth.below_upper - mouth.teeth_height + 1) / 2)
    at_sides = ramp((np.abs(mouth.along) - 0.45) / 0.4)
    dark = within * np.maximum(dark, 0.9 * min(max(e.jaw, 0.0), 1.0) * at_sides)
    tongue = np.clip((mouth.below_upper - 0.62 * gap) / 6, 0, 1)
    tongue *= 0.8 * np.clip(1 - 2 * mouth.along**2, 0, 1)
    depths = np.array([0.16, 0.05, 0.05], np.float32)[:, None, None]
    flesh = depths + np.array([0.28, 0.10, 0.09], np.float32)[:, None, None] * tongue
    rgb = rgb * (1 - dark) + flesh * dark
    lip_shadow = 0.55 * unsmiling * within * np.exp(-((mouth.below_upper / 1.3) ** 2))
    shaded: Plane = (rgb * (1 - lip_shadow)).astype(np.float32)
    return shaded


def bump(x: Plane, y: Plane, centre: tuple[float, float], sigma: tuple[float, float]) -> Plane:
    """A Gaussian hill of height 1."""
    hill: Plane = np.exp(
        -(((x - centre[0]) / sigma[0]) ** 2) / 2 - ((y - centre[1]) / sigma[1]) ** 2 / 2
    )
    return hill


def ramp(t: Plane) -> Plane:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)
