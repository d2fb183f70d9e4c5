"""The demo set's plan: which 104 clips there are and all that decides how each is drawn.

Each class has thirteen clips: seven to train, three to validate, three to test. In eight of the
thirteen the scene is the class's own, in the others a plain wall that says nothing, or another
class's. The classes stand in a circle of neighbours: some faces are faint, or half way to a
neighbour, and a wrong scene is never a neighbour's. So the scene helps where the face leaves a
doubt, the face where the scene says nothing or errs, and neither is enough alone. The voice is the
class's own in two of three clips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from features.contracts import MEC_CLASSES, SPLITS
from pipeline.demo.expressions import EXPRESSIONS, Expression
from pipeline.demo.scenes import ANYWHERE, SCENES, SceneView
from pipeline.demo.voices import VOICES, Voice

FRAME_RATE_HZ = 25

_CIRCLE = ("happy", "surprise", "anxious", "worried", "sad", "disgust", "angry", "neutral")
"""Neighbours are easily taken for each other."""

_SIZES_PX = ((320, 240), (320, 240), (384, 288), (352, 288))


@dataclass(frozen=True, kw_only=True)
class _Slot:
    split: str
    face: str
    """``clear``, ``faint`` (a weak expression) or ``mixed`` (half way to a neighbour's)."""
    scene: str = "own"
    """``own``, ``wall``, or ``wrong``: another class's for one class in some, a wall for others."""
    scene_step: int = 0
    """How far round the circle a wrong scene's class is."""
    one_in: int = 1
    """For which share of the classes a wrong scene is drawn."""
    special: str = ""
    """``still``, ``second-face`` or ``no-face``; the last two only for some classes."""
    voice: str = "own"
    """``own``, ``neighbour``, ``none`` (only the room is heard), or ``wrong``: that of the class
    whose scene is shown."""


_SLOTS = (
    _Slot(split="train", face="clear"),
    _Slot(split="train", face="mixed"),
    _Slot(split="train", face="clear", special="still", voice="none"),
    _Slot(split="train", face="faint", special="no-face"),
    _Slot(split="train", face="clear", scene="wall", voice="neighbour"),
    _Slot(split="train", face="clear", scene="wall", special="second-face"),
    _Slot(split="train", face="clear", scene="wrong", scene_step=4, one_in=2, voice="wrong"),
    _Slot(split="val", face="mixed"),
    _Slot(split="val", face="faint", voice="none"),
    _Slot(split="val", face="clear", scene="wrong", scene_step=3, one_in=4),
    _Slot(split="test", face="faint", special="no-face"),
    _Slot(split="test", face="mixed", voice="neighbour"),
    _Slot(split="test", face="clear", scene="wrong", scene_step=5, one_in=4),
)

_NO_FACE = {("train", "surprise"), ("test", "disgust")}
_SECOND_FACE = {"happy", "worried"}
_NO_SOUND = {"demo_neutral_03", "demo_disgust_09"}


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One face in a clip: what it does, and where it stands."""

    expression: Expression
    """At its height."""
    onset_s: float
    """When the face leaves its near-neutral start."""
    rise_s: float
    """How long it takes to its height, where it stays."""
    blink_s: float
    x: float
    """Centre of the face, as a share of the frame's width."""
    y: float
    """The same of its height."""
    scale: float
    """Frame height over the height that shows 240 rows of the photograph, so about 1."""
    width: float
    """Stretch of the face's width."""
    tilt_deg: float
    sway: float
    """How far the head swings, as a share of the frame's height."""
    sway_s: float
    """Period of the swing."""
    flipped: bool
    tone: tuple[float, float, float]
    """Gain of red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """What is heard in a clip."""

    voice: Voice | None
    """None: nobody hums."""
    onset_s: float
    """When the first syllable begins."""
    room: float
    """Loudness of the room's noise, in tens of dB below full scale."""
    seed: int
    """Of the noise."""


@dataclass(frozen=True, kw_only=True)
class DemoClip:
    """All that decides the pixels and the sound of one clip."""

    clip_id: str
    label: str
    split: str
    scene: SceneView
    actors: tuple[Actor, ...]
    """Drawn in this order; the last is nearest."""
    size_px: tuple[int, int]
    """Width, height."""
    n_frames: int
    still: tuple[int, int]
    """First and last frame of a stretch in which nothing moves; equal where there is none."""
    sound: Sound | None
    """None: the file has no sound."""

    def __post_init__(self) -> None:
        if self.label not in MEC_CLASSES or self.split not in SPLITS:
            raise ValueError(f"{self.clip_id}: {self.label!r} in {self.split!r}")
        if self.size_px[0] % 2 or self.size_px[1] % 2:
            raise ValueError(f"{self.clip_id}: h264 4:2:0 needs even sides, not {self.size_px}")
        if not 0 <= self.still[0] <= self.still[1] < self.n_frames:
            raise ValueError(f"{self.clip_id}: still stretch {self.still} of {self.n_frames}")


def demo_clips() -> tuple[DemoClip, ...]:
    """The plan of the demo set: the same 104 clips each time, ordered by class."""
    return tuple(
        _plan_clip(label, number, slot)
        for label in MEC_CLASSES
        for number, slot in enumerate(_SLOTS, start=1)
    )


def _plan_clip(label: str, number: int, slot: _Slot) -> DemoClip:
    clip_id = f"demo_{label}_{number:02d}"
    # Only random() and what is one formula over it: Python keeps that sequence for a seed.
    rng = Random(clip_id)
    mood = _choose_mood(label, slot)
    n_frames = 44 + int(rng.random() * 13)
    pictures = SCENES[mood]
    view = _choose_view(mood, pictures[number % len(pictures)], rng)
    actors: tuple[Actor, ...] = (_choose_actor(_choose_expression(label, slot.face, rng), rng),)
    if slot.special == "no-face" and (slot.split, label) in _NO_FACE:
        actors = ()
    elif slot.special == "second-face" and label in _SECOND_FACE:
        actors = (_choose_bystander(actors[0], rng), *actors)
    still = (0, 0)
    if slot.special == "still":
        first = 8 + int(rng.random() * 20)
        still = (first, first + 16)
    return DemoClip(
        clip_id=clip_id,
        label=label,
        split=slot.split,
        scene=view,
        actors=actors,
        size_px=_SIZES_PX[int(rng.random() * len(_SIZES_PX))],
        n_frames=n_frames,
        still=still,
        sound=None if clip_id in _NO_SOUND else _choose_sound(label, slot, clip_id),
    )


def _choose_mood(label: str, slot: _Slot) -> str:
    place = _CIRCLE.index(label)
    misled = slot.scene == "wrong" and (place + slot.scene_step) % slot.one_in == 0
    if slot.scene == "own" or misled:
        return _CIRCLE[(place + slot.scene_step) % len(_CIRCLE)]
    return ANYWHERE


def _choose_view(mood: str, picture: str, rng: Random) -> SceneView:
    view = SceneView(
        mood=mood,
        picture=picture,
        zoom=rng.uniform(1.02, 1.25),
        x=rng.uniform(0.25, 0.75),
        y=rng.uniform(0.25, 0.75),
        drift=rng.uniform(-0.25, 0.25) if rng.random() < 0.5 else 0.0,
        flipped=rng.random() < 0.2,
        gain=rng.uniform(0.88, 1.12),
        hue=(rng.uniform(0.95, 1.05), 1.0, rng.uniform(0.95, 1.05)),
    )
    if mood == ANYWHERE:
        # All walls look alike: a head must not learn clips by heart by their walls.
        return replace(view, flipped=False, gain=1.0, hue=(1.0, 1.0, 1.0))
    return view


def _choose_expression(label: str, face: str, rng: Random) -> Expression:
    """The expression at its height: the label's, faint, or half way to a neighbour's."""
    place = _CIRCLE.index(label)
    step = 1 if rng.random() < 0.5 else -1
    neighbour = EXPRESSIONS[_CIRCLE[(place + step) % len(_CIRCLE)]]
    if face == "faint":
        return EXPRESSIONS[label] * rng.uniform(0.12, 0.28) + neighbour * rng.uniform(0.1, 0.25)
    if face == "mixed":
        share = rng.uniform(0.5, 0.65)
        return (EXPRESSIONS[label] * (1 - share) + neighbour * share) * rng.uniform(0.7, 1.0)
    return EXPRESSIONS[label] * rng.uniform(0.7, 1.05) + neighbour * rng.uniform(0.0, 0.2)


def _choose_sound(label: str, slot: _Slot, clip_id: str) -> Sound:
    rng = Random(f"{clip_id} sound")  # of its own: the pictures are what they were without sound
    place = _CIRCLE.index(label)
    step = 1 if rng.random() < 0.5 else -1
    misled = slot.voice == "wrong" and (place + slot.scene_step) % slot.one_in == 0
    neighbour = _CIRCLE[(place + step) % len(_CIRCLE)]
    mood = neighbour if slot.voice == "neighbour" else label
    if misled:
        mood = _CIRCLE[(place + slot.scene_step) % len(_CIRCLE)]
    # A voice leans to its neighbour's, and each person's is higher or lower, louder or softer.
    lean = rng.uniform(0.0, 0.35)
    towards = _CIRCLE[(_CIRCLE.index(mood) + step) % len(_CIRCLE)]
    person = Voice(
        pitch=rng.uniform(-0.3, 0.3),
        glide=rng.uniform(-0.12, 0.12),
        pace=rng.uniform(-0.25, 0.25),
        loudness=rng.uniform(-0.5, 0.5),
        dullness=rng.uniform(-0.25, 0.25),
    )
    voice = VOICES[mood] * (1 - lean) + VOICES[towards] * lean + person
    return Sound(
        voice=None if slot.voice == "none" else voice,
        onset_s=rng.uniform(0.05, 0.5),
        room=rng.uniform(-5.5, -4.0),
        seed=int(rng.random() * 2**32),
    )


def _choose_actor(expression: Expression, rng: Random) -> Actor:
    light = rng.uniform(0.88, 1.08)
    scale = rng.uniform(0.58, 0.74)
    # At most 185 rows of the photograph below the face: the cut-out has few more.
    y = max(1 - rng.uniform(150, 185) / 240 * scale, 0.42)
    return Actor(
        expression=expression,
        onset_s=rng.uniform(0.05, 0.6),
        rise_s=rng.uniform(0.3, 0.7),
        blink_s=rng.uniform(0.2, 2.0),
        x=rng.uniform(0.43, 0.57),
        y=y,
        scale=scale,
        width=rng.uniform(0.92, 1.06),
        tilt_deg=rng.uniform(-7, 7),
        sway=rng.uniform(0.004, 0.02),
        sway_s=rng.uniform(1.2, 3.0),
        flipped=rng.random() < 0.25,
        tone=(light * rng.uniform(0.96, 1.04), light, light * rng.uniform(0.95, 1.03)),
    )


def _choose_bystander(main: Actor, rng: Random) -> Actor:
    """A second, smaller face on the side where there is more room, at rest."""
    actor = vars(_choose_actor(EXPRESSIONS["neutral"], rng))
    side = 0.18 if main.x > 0.5 else 0.82
    return Actor(**{**actor, "x": side, "y": 0.68, "scale": 0.4, "tilt_deg": 0.0})
