"""P-, R- and O-Net (Zhang et al. 2016), with the ``mtcnn`` package's weights, and their patches.

Layer sizes are those of the package's Keras networks; its ``same`` poolings pad at the right and
bottom only, which is ``ceil_mode`` here.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.networks.weights import read_mtcnn


class PNet(nn.Module):
    """Proposes boxes: a 12x12 window slid over the picture at stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 10, 3), nn.PReLU(10), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(10, 16, 3), nn.PReLU(16)),
            *(nn.Conv2d(16, 32, 3), nn.PReLU(32)),
        )
        offsets, classes = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 2, 1)
        _load(nn.ModuleList([self.trunk, offsets, classes]), read_mtcnn("pnet"))
        self.head = _fold(self.trunk[0], offsets, classes)
        self.requires_grad_(False).eval()

    def forward(self, rgb: Tensor) -> tuple[Tensor]:
        """rgb: [B, H, W, 3] uint8.

        Returns:
            [B, 5, h, w] float32: four box offsets, and the margin: a score is its logistic.
        """
        return (self.head(self.trunk(rgb.permute(0, 3, 1, 2).float())),)


@torch.no_grad()
def _fold(first: nn.Module, offsets: nn.Conv2d, classes: nn.Conv2d) -> nn.Conv2d:
    """Put ``normalise`` into the first layer, and make one layer of the two last: a tenth faster.

    The softmax of two classes is the logistic of their difference.
    """
    assert isinstance(first, nn.Conv2d)
    shift, scale = normalise(torch.tensor(0.0)), normalise(torch.tensor(1.0))
    first.bias += shift * first.weight.sum((1, 2, 3))  # type: ignore[operator]
    first.weight *= scale - shift
    head = nn.Conv2d(offsets.in_channels, 5, 1)
    for name, parameter in head.named_parameters():  # the first axis is the output
        class_parameter = classes.get_parameter(name)
        margin = class_parameter[1:] - class_parameter[:1]
        parameter.copy_(torch.cat([offsets.get_parameter(name), margin]))
    return head


class RNet(nn.Module):
    """Refines boxes from 24x24 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(48, 64, 2), nn.PReLU(64)),
        )
        self.dense = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        self.offsets = nn.Linear(128, 4)
        self.classes = nn.Linear(128, 2)
        _load(self, read_mtcnn("rnet"))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """patches: [B, 3, 24, 24], -1..1. Returns box offsets [B, 4] and scores [B]."""
        x = self.dense(_flatten_width_first(self.trunk(patches)))
        return self.offsets(x), self.classes(x).softmax(1)[:, 1]


class ONet(nn.Module):
    """Gives the final boxes, scores and five landmarks from 48x48 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 32, 3), nn.PReLU(32), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(32, 64, 3), nn.PReLU(64), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 64, 3), nn.PReLU(64), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(64, 128, 2), nn.PReLU(128)),
        )
        self.dense = nn.Sequential(nn.Linear(1152, 256), nn.PReLU(256))
        self.offsets = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)
        self.classes = nn.Linear(256, 2)
        _load(self, read_mtcnn("onet"))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """patches: [B, 3, 48, 48], -1..1.

        Returns:
            Box offsets [B, 4], landmarks [B, 10] (five x, then five y, in box sides), scores [B].
        """
        x = self.dense(_flatten_width_first(self.trunk(patches)))
        return self.offsets(x), self.landmarks(x), self.classes(x).softmax(1)[:, 1]


def normalise(rgb: Tensor) -> Tensor:
    """0..255 -> about -1..1, as all three networks expect."""
    return (rgb.float() - 127.5) / 128


def sample_patches(rgb: Tensor, boxes: NDArray[np.float32], size: int) -> Tensor:
    """Sample boxes at size x size points, bilinearly and without antialiasing, as ``mtcnn`` does.

    Only the pixels that are read are converted: whole frames as floats would cost more than the
    networks.

    Args:
        rgb: [F, H, W, 3] uint8, contiguous.
        boxes: [N, 6] row of the frame, left, top, right, bottom in pixels, score.
        size: Points a side.

    Returns:
        [N, 3, size, size] float32, about -1..1 on ``rgb``'s device; 0 outside the frame.
    """
    height, width = rgb.shape[1:3]
    table = torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32)).to(rgb.device)
    step = torch.linspace(0, 1, size, device=rgb.device)
    x, x_inside = _points(table[:, 1], table[:, 3], step, width)
    y, y_inside = _points(table[:, 2], table[:, 4], step, height)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    in_x, in_y = (x - left)[:, None, None], (y - top)[:, None, :, None]
    first = table[:, 0].long()[:, None] * height  # row of the first line of the frame
    rows = (first + torch.cat([top, bottom], dim=1)) * width  # (N, 2 * size)
    place = (rows[:, :, None] + torch.cat([left, right], dim=1)[:, None]) * 3
    flat = rgb.flatten()
    planes = [torch.take(flat[channel:], place) for channel in range(3)]
    pixels = torch.stack(planes, dim=1).float()  # (N, 3, 2 * size, 2 * size)
    lines = torch.lerp(pixels[..., :size], pixels[..., size:], in_x)
    patches = normalise(torch.lerp(lines[:, :, :size], lines[:, :, size:], in_y))
    patches *= (y_inside[:, :, None] & x_inside[:, None])[:, None]
    return patches


def _points(first: Tensor, last: Tensor, step: Tensor, n_pixels: int) -> tuple[Tensor, Tensor]:
    """[N] ends of the boxes along one axis -> [N, size] places, and which lie in the frame."""
    limit = n_pixels - 1
    scale = limit / n_pixels
    places = first[:, None] * scale + step * ((last - first) * scale)[:, None]
    inside = (places >= 0) & (places <= limit)
    return places.clamp(0, limit), inside


def _flatten_width_first(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, W*H*C], the order that the dense weights were trained in."""
    return x.permute(0, 3, 2, 1).flatten(1)


def _load(network: nn.Module, arrays: list[NDArray[np.float32]]) -> None:
    """Copies the package's arrays, which stand in layer order, into the network's parameters."""
    source: Iterator[NDArray[np.float32]] = iter(arrays)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(torch.from_numpy(next(source)).permute(3, 2, 0, 1))
                module.bias.copy_(torch.from_numpy(next(source)))  # type: ignore[union-attr]
            elif isinstance(module, nn.Linear):
                module.weight.copy_(torch.from_numpy(next(source)).T)
                module.bias.copy_(torch.from_numpy(next(source)))
            elif isinstance(module, nn.PReLU):
                module.weight.copy_(torch.from_numpy(next(source)).flatten())
    network.requires_grad_(False).eval()
