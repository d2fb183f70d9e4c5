"""The context CNN: SqueezeNet 1.1 without its classifier, and the preprocessing of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from features.errors import ConfigError, WeightsError
from features.fingerprint import hash_file
from features.networks.weights import SQUEEZENET_NDF, read_squeezenet_ndf

CONTEXT_WEIGHTS = ("ndf", "torchvision")


class ContextEmbedding(NamedTuple):
    """What the context CNN sees in a batch of frames."""

    pooled_7x7: Tensor
    """[B, 512, 7, 7]: 25,088 values, section IV-C."""
    pooled_2x2: Tensor
    """[B, 512, 2, 2]: 2,048 values, what the parameter counts of Table I imply."""


class ContextCNN(nn.Module):
    """SqueezeNet 1.1, frozen; the output of its last fire module is the context (IV-B).

    Takes RGB 0..255 whatever its weights expect: channel order, scale and mean belong to the
    weights and are applied inside.
    """

    def __init__(self, weights: str = "ndf") -> None:
        """weights: ``ndf`` (in a package, no download) or ``torchvision`` (IMAGENET1K_V1).

        Raises:
            ConfigError: another name.
            WeightsError: the weights are not to be had, or are not the pinned file.
        """
        super().__init__()
        network = squeezenet1_1()
        if weights == "ndf":
            network.load_state_dict(read_squeezenet_state())
            mean, scale = torch.tensor([103.939, 116.779, 123.68]), torch.ones(3)
            bgr = True
        elif weights == "torchvision":
            network.load_state_dict(_read_torchvision_weights()[0])
            mean = torch.tensor([0.485, 0.456, 0.406]) * 255
            scale = 1 / (torch.tensor([0.229, 0.224, 0.225]) * 255)
            bgr = False
        else:
            raise ConfigError(f"context weights {weights!r}: expected one of {CONTEXT_WEIGHTS}")
        self.features = network.features
        self.classifier = network.classifier
        _fold_normalisation(self.features[0], mean, scale, bgr)
        # Twice as fast on a CPU, and no slower elsewhere.
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()

    def forward(self, rgb: Tensor) -> ContextEmbedding:
        """rgb: [B, 3, 224, 224], 0..255, any dtype. Returns both poolings of the 13x13 map."""
        last = self._last_fire(rgb)  # (B, 512, 13, 13)
        # Adaptive poolings to 7x7 and 2x2, in a form for which OpenVINO has fast code.
        pooled_7x7 = F.avg_pool2d(last, 3, stride=2, padding=1, count_include_pad=False)
        return ContextEmbedding(pooled_7x7=pooled_7x7, pooled_2x2=F.avg_pool2d(last, 7, stride=6))

    def classify(self, rgb: Tensor) -> Tensor:
        """rgb: [B, 3, 224, 224], 0..255. Returns [B, 1000] logits over the ImageNet classes."""
        logits: Tensor = self.classifier(self._last_fire(rgb)).flatten(1)
        return logits

    def _last_fire(self, rgb: Tensor) -> Tensor:
        last: Tensor = self.features(rgb.to(self.features[0].weight.dtype))
        return last


@torch.no_grad()
def _fold_normalisation(first: nn.Module, mean: Tensor, scale: Tensor, bgr: bool) -> None:
    """Make the first layer, which has no padding, take RGB as it is: a third of the CPU's time.

    It takes (x - mean) * scale, mean and scale [3] in its own order of colours; bgr: that is blue,
    green, red.
    """
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    first.weight *= scale.view(3, 1, 1)
    first.bias -= (first.weight * mean.view(3, 1, 1)).sum((1, 2, 3))
    if bgr:
        first.weight.copy_(first.weight.flip(1))


def read_squeezenet_state() -> dict[str, Tensor]:
    """The ``ndf`` package's weights for torchvision's ``squeezenet1_1``; raises WeightsError."""
    return {name: torch.from_numpy(values) for name, values in read_squeezenet_ndf().items()}


def find_context_weights_sha256(weights: str) -> str:
    """SHA-256 of the file that ``ContextCNN(weights)`` loads; raises as it does."""
    return SQUEEZENET_NDF.sha256 if weights == "ndf" else _read_torchvision_weights()[1]


def _read_torchvision_weights() -> tuple[dict[str, Tensor], str]:
    """torchvision's own weights, downloaded to its cache once, with the file's SHA-256."""
    weights = SqueezeNet1_1_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    expected = path.stem.rpartition("-")[2]  # torchvision puts the hash's beginning into the name
    if path.is_file() and not hash_file(path).startswith(expected):
        raise WeightsError(
            f"{path}: SHA-256 does not begin with {expected}: damaged. Delete the file to have it "
            "downloaded again, or use the default weights (ndf), which need no download."
        )
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the download has another hash
        raise WeightsError(
            f"torchvision's SqueezeNet weights could not be fetched ({error}). Put {path.name} "
            f"into {path.parent}, or use the default weights (ndf), which need no download."
        ) from error
    return dict(state), hash_file(path)
