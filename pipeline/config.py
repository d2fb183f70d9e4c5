"""What decides the features: the fields of ExtractConfig enter the fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

from features.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Settings of stage one that change its output. Paths, batch sizes and workers do not."""

    phases: int = 5
    """Phases of the clock kept for the train split; val and test keep one (IV-C)."""
    min_face_px: int = 20
    """Smallest face side that MTCNN looks for, pixels."""
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8)
    """Least score after P-, R- and O-Net; the ``mtcnn`` package's defaults."""
    context_weights: str = "ndf"
    """``ndf`` or ``torchvision``: where SqueezeNet's ImageNet weights come from."""
    face_map: bool = False
    """Keep the face CNN's 512-channel map too; conv2d3d needs it."""

    precision: str = "float32"
    """What the networks compute in; features are kept as float16."""
    algorithm: int = 1
    """Raised by a release whose code makes other features of the same settings; not to be set."""

    def __post_init__(self) -> None:
        if not 1 <= self.phases <= 60:
            raise ConfigError(f"phases = {self.phases}: expected 1..60")
        if self.precision != "float32":
            raise ConfigError(f"precision = {self.precision!r}: expected float32")
        if self.min_face_px < 12:
            raise ConfigError(
                f"min_face_px = {self.min_face_px}: expected at least 12, the window of P-Net"
            )
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ConfigError(f"thresholds = {self.thresholds}: each must lie in 0..1")

    def n_phases(self, split: str) -> int:
        """Phases that a clip of this split is sampled at."""
        return self.phases if split == "train" else 1
