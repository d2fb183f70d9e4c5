"""What decides the features: the fields of ExtractConfig enter the fingerprint."""

from __future__ import annotations

import re
from dataclasses import dataclass

from features.errors import ConfigError

DETECT_MODES: tuple[str, ...] = ("exact", "tracked")
_LEAST_FACE_PX = 12  # the window of P-Net


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Settings of stage one that change its output. Paths, batch sizes and workers do not."""

    phases: int = 5
    """Phases of the clock kept for the train split; val and test keep one (IV-C)."""
    detect: str = "exact"
    """``exact``: the whole cascade on every frame. ``tracked``: on some, faces carried between."""
    min_face: str = "20"
    """Smallest face side that MTCNN looks for: pixels, or a share of the height as ``5%``."""
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8)
    """Least score after P-, R- and O-Net; the ``mtcnn`` package's defaults."""
    context_weights: str = "ndf"
    """``ndf`` or ``torchvision``: where SqueezeNet's ImageNet weights come from."""
    face_map: bool = False
    """Keep the face CNN's 512-channel map too; conv2d3d needs it."""
    precision: str = "auto"
    """What the CNNs multiply in, ``float32`` or ``bfloat16``; faces are decided in float32.
    ``auto``, before a store is made: the existing store's, else bfloat16 where the device
    multiplies it natively."""
    strict: bool = False
    """Refuse clips with any damaged packet; else a little is passed over (docs/decoding.md)."""
    algorithm: int = 5
    """Raised by a release whose code makes other features of the same settings; not to be set."""

    def __post_init__(self) -> None:
        if not 1 <= self.phases <= 60:
            raise ConfigError(f"phases = {self.phases}: expected 1..60")
        if self.detect not in DETECT_MODES:
            raise ConfigError(f"detect = {self.detect!r}: expected {' or '.join(DETECT_MODES)}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"precision = {self.precision!r}: expected auto, float32 or bfloat16")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ConfigError(f"thresholds = {self.thresholds}: each must lie in 0..1")
        self._read_min_face()

    def n_phases(self, split: str) -> int:
        """Phases that a clip of this split is sampled at."""
        return self.phases if split == "train" else 1

    def min_face_px(self, height: int) -> int:
        """The smallest face side sought in frames of this height, at least 12 pixels."""
        number, is_share = self._read_min_face()
        return max(round(height * number / 100), _LEAST_FACE_PX) if is_share else round(number)

    def _read_min_face(self) -> tuple[float, bool]:
        """The number, and whether it is a percentage of the height."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?%|\d+)", self.min_face)
        number = float(self.min_face.rstrip("%")) if match else -1
        is_share = self.min_face.endswith("%")
        if not (0 < number <= 100 if is_share else number >= _LEAST_FACE_PX):
            raise ConfigError(
                f"min_face = {self.min_face!r}: expected whole pixels, at least {_LEAST_FACE_PX}, "
                "the window of P-Net, or a share of the frame's height, for example 5%"
            )
        return number, is_share
