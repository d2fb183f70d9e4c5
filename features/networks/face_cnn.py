"""The face CNN: which emotion a face shows, and the 512 values that say so; its file on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from features.contracts import FACE_CROP_PX, FACE_VECTOR_SIZE
from features.disk import write_atomically
from features.errors import WeightsError
from features.json_records import JsonFormat
from features.networks.weights import SHIPPED_FACE_WEIGHTS

_HEADER_JSON = JsonFormat(
    name="caca-rnn face CNN",
    damaged=WeightsError,
    other_version=WeightsError,
    remedy="Give a file that fit-face wrote, or copy it again.",
)
FACE_ARCHITECTURE = "squeezenet1_1-bn-grey"

_FIRES = (
    (64, 16, 128), (128, 16, 128), (128, 32, 256), (256, 32, 256),
    (256, 48, 384), (384, 48, 384), (384, 64, 512), (512, 64, 512),
)  # fmt: skip
"""Channels in, squeezed and out of SqueezeNet 1.1's fire modules 2 to 9."""
_POOLED_FIRES = (1, 3)
"""Index of the fire modules that halve their map."""


class FaceEmbedding(NamedTuple):
    """What the face CNN sees in a batch of faces; all values are >= 0 (after a ReLU)."""

    vector: Tensor
    """[B, 512]: the mean of ``map`` over its places; the classifier is linear in it."""
    map: Tensor
    """[B, 512, h, w]: output of the last fire module; 7 x 7 for a crop of 128 x 128."""
    expression: Tensor | None = None
    """[B, K]: probabilities of the network's classes; None where it has no classifier."""


class FaceCNN(nn.Module):
    """An image-emotion classifier; without its last layer it is the face CNN of section IV-B.

    The trunk is SqueezeNet 1.1 (Iandola et al. 2016) with batch normalisation, on grey pictures:
    a crop becomes luminance (BT.601) of zero mean and fixed spread, so that neither the colours
    nor the exposure of a film matter to a network that has learned from grey stills.
    """

    luma: Tensor
    spread: Tensor

    def __init__(self, classes: Sequence[str]) -> None:
        """classes: names of the emotions, in the order of the logits; at least two."""
        super().__init__()
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise ValueError(f"classes {tuple(classes)}: expected two or more different names")
        self.classes = tuple(classes)
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1))
        # 60: the spread of ImageNet pictures, which the trunk's initial weights know. 8: a crop
        # without contrast is not blown up to noise.
        self.register_buffer("spread", torch.tensor([60.0, 8.0]))
        self.stem = nn.Conv2d(1, _FIRES[0][0], kernel_size=3, stride=2)
        self.stem_norm = nn.BatchNorm2d(_FIRES[0][0])
        self.fires = nn.ModuleList(
            _Fire(*channels, halves=index in _POOLED_FIRES) for index, channels in enumerate(_FIRES)
        )
        self.classifier = nn.Linear(FACE_VECTOR_SIZE, len(self.classes))

    def forward(self, rgb: Tensor) -> Tensor:
        """rgb: [B, 3, 128, 128], 0..255, uint8 or float. Returns logits [B, K]."""
        logits: Tensor = self.classifier(self.embed(rgb).vector)
        return logits

    def embed(self, rgb: Tensor) -> FaceEmbedding:
        """rgb: [B, 3, 128, 128], 0..255, uint8 or float, B may be 0.

        Raises:
            ValueError: another shape.
        """
        if rgb.shape[1:] != (3, FACE_CROP_PX, FACE_CROP_PX):
            raise ValueError(f"rgb is {tuple(rgb.shape)}, not [B, 3, {FACE_CROP_PX}, ...]")
        return self.embed_normalised(self.normalise(rgb))

    def embed_normalised(self, x: Tensor) -> FaceEmbedding:
        """x: [B, 1, 128, 128], as ``normalise`` gives it."""
        # Pooling before normalisation and ReLU gives what pooling after them gives where the
        # factor is positive, at a quarter of the work.
        x = F.max_pool2d(self.stem(x), kernel_size=3, stride=2, ceil_mode=True)
        x = F.relu(self.stem_norm(x))  # (B, 64, 31, 31)
        for fire in self.fires:
            x = fire(x)
        return FaceEmbedding(vector=x.mean((2, 3)), map=x)  # (B, 512), (B, 512, 7, 7)

    def normalise(self, rgb: Tensor) -> Tensor:
        """[B, 3, 128, 128], 0..255 -> [B, 1, 128, 128] luminance of zero mean and fixed spread."""
        grey = (rgb.to(self.luma.dtype) * self.luma).sum(1, keepdim=True)
        centred = grey - grey.mean((1, 2, 3), keepdim=True)
        deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
        target, floor = self.spread
        normalised: Tensor = centred * (target / (deviation + floor))
        return normalised


class _Fire(nn.Module):
    """Squeeze to few channels, expand by 1 x 1 and 3 x 3 kernels side by side."""

    def __init__(self, n_in: int, n_squeezed: int, n_out: int, *, halves: bool) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, n_squeezed, kernel_size=1)
        self.squeeze_norm = nn.BatchNorm2d(n_squeezed)
        self.expand1x1 = nn.Conv2d(n_squeezed, n_out // 2, kernel_size=1)
        self.expand3x3 = nn.Conv2d(n_squeezed, n_out // 2, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(n_out)
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, n_in, h, w]. Returns [B, n_out, h, w], or half of h and w."""
        squeezed = F.relu(self.squeeze_norm(self.squeeze(x)))
        x = torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1)
        if self.halves:
            x = F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
        return F.relu(self.norm(x))


def write_face_cnn(net: FaceCNN, path: Path, training: Mapping[str, Any]) -> None:
    """Write the weights as safetensors; the file appears under its name only when complete.

    training: facts about how the weights came to be, kept in the file's header as JSON.
    """
    metadata = {
        "format": str(_HEADER_JSON.name),
        "version": str(_HEADER_JSON.version),
        "architecture": FACE_ARCHITECTURE,
        "classes": json.dumps(net.classes),
        "training": json.dumps(training, sort_keys=True),
    }
    # contiguous: training in channels_last leaves strides that safetensors does not store.
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    write_atomically(path, save(tensors, metadata))


def read_face_cnn(path: Path = SHIPPED_FACE_WEIGHTS) -> FaceCNN:
    """Read a file that ``fit-face`` wrote. Returns the network frozen, in eval mode.

    Raises:
        WeightsError: missing, damaged, not a face CNN, or of a version this code does not read.
    """
    header, state = _read_safetensors(path)
    try:
        net = FaceCNN(header.classes)
        net.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{path}: its tensors are not those of {FACE_ARCHITECTURE} ({first}). "
            "Run fit-face again."
        ) from error
    return net.requires_grad_(False).eval()


def read_face_training(path: Path = SHIPPED_FACE_WEIGHTS) -> dict[str, Any]:
    """The facts about the training that ``write_face_cnn`` kept. Raises WeightsError."""
    training: dict[str, Any] = json.loads(_read_safetensors(path)[0].training)
    return training


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What a file says of its weights."""

    architecture: str
    classes: tuple[str, ...]
    training: str = "{}"
    """JSON; may hold numbers that are not finite."""

    def __post_init__(self) -> None:
        if self.architecture != FACE_ARCHITECTURE:
            raise ValueError(f"architecture {self.architecture!r}, expected {FACE_ARCHITECTURE!r}")


def _read_safetensors(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. Give a file that fit-face wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}). Copy it again, or give one "
            "that fit-face wrote."
        ) from error
    parts = [
        f"{json.dumps(name)}: {text if name in ('version', 'classes') else json.dumps(text)}"
        for name, text in metadata.items()
    ]
    return _HEADER_JSON.read(_Header, f"{{{', '.join(parts)}}}", str(path)), state
