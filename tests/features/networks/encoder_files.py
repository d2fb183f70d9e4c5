"""Writes small encoders for tests: seeded networks as ONNX or programs, with their sidecars."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PICTURE = {
    "width": 32,
    "height": 32,
    "colours": "rgb",
    "scale": 1,
    "mean": [0.5, 0.4, 0.3],
    "deviation": [0.2, 0.25, 0.3],
}


class Small(nn.Module):
    """Two outputs: D values a picture, and the map that they are the means of."""

    def __init__(self, size: int = 6, n_channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, size, kernel_size=5, stride=3)
        draw = torch.Generator().manual_seed(size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1, 1, generator=draw)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.tanh(self.conv(x))
        return seen.mean((2, 3)), seen


def write_sidecar(path: Path, /, **changed: Any) -> Path:
    """The sidecar of ``path``; a field that is None is left out. Returns ``path``."""
    fields: dict[str, Any] = {"name": "small", "looks_at": "face", "size": 6, "licence": "MIT"}
    if changed.get("looks_at") != "audio":
        fields |= PICTURE
    if changed.get("looks_at") == "frame":
        fields["crop"] = "centre"
    fields |= changed
    kept = {name: value for name, value in fields.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(kept))
    return path


def write_onnx(
    path: Path,
    net: nn.Module | None = None,
    *,
    batch: int | None = None,
    shape: tuple[int, ...] = (3, 32, 32),
    external_data: bool = False,
    **sidecar: Any,
) -> Path:
    """A network as ONNX with its sidecar. batch: the only one that it takes; None: any."""
    sizes = None if batch else ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        torch.onnx.export(
            (net or Small()).eval(),
            (torch.zeros(batch or 2, *shape),),
            str(path),
            dynamic_shapes=sizes,
            input_names=["x"],
            output_names=["vector", "map"] if net is None else ["vector"],
            external_data=external_data,
            verbose=False,
        )
    return write_sidecar(path, **sidecar)


def write_program(path: Path, net: nn.Module, *, batch: int | None = None, **sidecar: Any) -> Path:
    """A network as a program of torch.export, with its sidecar."""
    sizes = None if batch else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    example = (torch.zeros(batch or 2, 3, 32, 32),)
    torch.export.save(torch.export.export(net, example, dynamic_shapes=sizes), path)
    return write_sidecar(path, **sidecar)
