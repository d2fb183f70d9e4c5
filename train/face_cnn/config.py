"""All that decides what ``fit-face`` makes of its images. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class FaceAugmentation:
    """How far training pictures are changed. All zero, and ``view`` (1, 1): not at all.

    The pictures of FER are grey, 48 x 48 and tight about the face; crops of MTCNN boxes are in
    colour, 128 x 128, sharp or blurred, and sometimes loose. Colour needs no augmentation: the
    network turns to grey what it sees.
    """

    flip: bool = True
    view: tuple[float, float] = (0.8, 1.35)
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
    erased: float = 0.25
    """Share of the pictures that have a grey rectangle laid over them."""


@dataclass(frozen=True, kw_only=True)
class FaceFitConfig:
    """All that decides the trained weights, beside the images."""

    epochs: int = 18
    batch: int = 64
    learning_rate: float = 1e-3
    """Its peak: it rises over ``warmup_steps``, then falls along a cosine to zero."""
    warmup_steps: int = 300
    weight_decay: float = 0.02
    dropout: float = 0.3
    """Share of the face vector's values hidden from the classifier."""
    clip_norm: float = 2.0
    averaging: float = 0.998
    """The scored and kept weights are a running mean; the part of it kept at each step."""
    seed: int = 0
    labels: str = ""
    """Array or column with the labels, where it is not ``votes`` or ``label``."""
    precision: str = "bfloat16"
    """``bfloat16`` (autocast; about twice as fast where the processor knows it) or ``float32``."""
    augmentation: FaceAugmentation = field(default_factory=FaceAugmentation)
