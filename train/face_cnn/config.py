"""All that decides what ``fit-face`` makes of its images. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from features.contracts import FACE_CROP_PX
from features.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FaceAugmentation:
    """How far training pictures are changed. All zero, and ``view`` (1, 1): not at all.

    Sets of pictures are small or large, tight or loose, mostly clear; crops of MTCNN boxes are
    128 x 128 of a face that may be 20 pixels wide, turned, dark, blurred and compressed. Colour
    needs no augmentation: the network turns to grey what it sees.
    """

    flip: bool = True
    view: tuple[float, float] = (0.72, 1.35)
    """Side of the part shown, relative to the picture; above 1 the edges are replicated, as in a
    crop that leaves its frame."""
    shift: float = 0.12
    """Of the picture's side, each way."""
    aspect: float = 0.1
    rotation_deg: float = 18.0
    gamma: float = 0.5
    """Natural logarithm of the largest exponent."""
    light: float = 0.35
    """Brightness that a ramp of light adds from edge to edge, relative to white."""
    sharpness: float = 1.0
    """Largest share of the fine detail taken away (blur) or added (sharper than FER)."""
    noise: float = 10.0
    """Largest standard deviation of grain, in grey levels."""
    shrunk: float = 0.4
    """Share of the pictures that lose detail by being scaled down, to 24 pixels at the least."""
    moved: float = 0.2
    """Share of the pictures that are blurred along a line, by an eighth of the side at most."""
    compressed: float = 0.4
    """Share of the pictures that go through the quantisation of JPEG and of films' key frames."""
    erased: float = 0.25
    """Share of the pictures that have a grey rectangle laid over them."""


@dataclass(frozen=True, kw_only=True)
class FaceFitConfig:
    """All that decides the trained weights, beside the images."""

    epochs: int = 12
    epoch_pictures: int = 25_600
    """Pictures drawn in an epoch, of all sets, at most as many as these have; one may come several
    times."""
    batch: int = 64
    balance: float = 0.5
    """How far sets, and classes within a set, come equally often: 0 as they are, 1 equally; the
    chance of a set or class of n pictures is proportional to n ** (1 - balance)."""
    start: str = "ferplus"
    """Weights to start from: ``imagenet`` (SqueezeNet 1.1), shipped ones by name, or a file that
    ``fit-face`` wrote."""
    small_px: int = 96
    """Side of the crops in the first part of the training, which costs half as much there."""
    small_share: float = 0.67
    """Share of the epochs on crops of ``small_px``; the rest are on 128."""
    learning_rate: float = 1e-3
    """Its peak: it rises over ``warmup_steps``, then falls along a cosine to zero."""
    warmup_steps: int = 300
    weight_decay: float = 0.02
    dropout: float = 0.3
    """Share of the face vector's values hidden from the classifier."""
    label_smoothing: float = 0.1
    """Of targets that are one person's label, not a distribution of votes."""
    decorrelation: float = 0.02
    """Weight of the penalty on correlated values of the face vector."""
    within_shrinkage: float = 0.3
    """After training: how much of the mean variance within classes is added to each direction's
    before they are made equal (``train.face_cnn.balance``)."""
    between_gain: float = 3.0
    """After training: by how much the directions between classes are stretched."""
    clip_norm: float = 2.0
    averaging: float = 0.998
    """The scored and kept weights are a running mean; the part of it kept at each step."""
    seed: int = 0
    labels: str = ""
    """Array or column with the labels, where it is not ``votes`` or ``label``."""
    precision: str = "auto"
    """``bfloat16`` (autocast; about twice as fast where the device multiplies it natively),
    ``float32``, or ``auto``: the first where it is the faster one."""
    augmentation: FaceAugmentation = field(default_factory=FaceAugmentation)

    def __post_init__(self) -> None:
        """Raises ConfigError: a value is out of its range."""
        for name in ("epochs", "epoch_pictures", "batch", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"setting {name}: found {getattr(self, name)}, expected 1 or more."
                )
        for name in ("balance", "small_share", "dropout", "label_smoothing", "averaging"):
            most = "below 1" if name == "dropout" else "at most 1"
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "dropout" and value == 1):
                raise ConfigError(f"setting {name}: found {value:g}, expected 0 or more, {most}.")
        for name in ("weight_decay", "decorrelation", "within_shrinkage"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"setting {name}: found {getattr(self, name):g}, expected >= 0.")
        for name in ("learning_rate", "clip_norm", "between_gain"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"setting {name}: found {getattr(self, name):g}, expected > 0.")
        if self.small_px % 8 or not 32 <= self.small_px <= FACE_CROP_PX:
            raise ConfigError(
                f"setting small_px: found {self.small_px}, expected a multiple of 8 from 32 to "
                f"{FACE_CROP_PX}."
            )
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ConfigError(
                f"setting precision: found {self.precision!r}, expected auto, float32 or bfloat16."
            )
