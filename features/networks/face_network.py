"""Any network that sees faces for stage one: a file of fit-face, or another's exported program."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from features.contracts import FACE_CROP_PX, FACE_MAP_SHAPE, FACE_VECTOR_SIZE
from features.errors import WeightsError
from features.networks.face_cnn import FaceCNN, FaceEmbedding, read_face_cnn
from features.networks.programs import FAILED, first_line, load_program
from features.networks.runtime import choose_batch, compile_network, run_padded
from features.networks.weights import SHIPPED_FACE_WEIGHTS

FACE_BATCH = 32
"""Faces that a network is given at once, at most: more take memory and gain no speed."""
_HALF_MAX = 65504.0
"""Largest float16: what a store can keep."""
_TOLERANCE = 1e-2
"""Share of a vector's length by which one face may change with the faces beside it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceNetwork:
    """A frozen network on one device that gives a vector and a map for each face crop."""

    vector_size: int
    """D, values of one face's vector."""
    map_shape: tuple[int, int, int]
    """(C, h, w) of one face's map."""
    expressions: tuple[str, ...] = ()
    """Names of the K expressions whose probabilities it gives, too; a program gives none."""
    program: Callable[[Tensor], FaceEmbedding]
    """[B, 3, 128, 128] float32, 0..255, B from 1 to 32 -> [B, D], [B, C, h, w], [B, K] or None."""

    @torch.inference_mode()
    def embed(self, rgb: Tensor) -> FaceEmbedding:
        """The features of any number of faces, ``FACE_BATCH`` at a time.

        Args:
            rgb: [B, 3, 128, 128], 0..255, uint8 or float, B may be 0, on the network's device.

        Raises:
            ValueError: another shape.
        """
        if rgb.shape[1:] != (3, FACE_CROP_PX, FACE_CROP_PX):
            raise ValueError(f"rgb is {tuple(rgb.shape)}, not [B, 3, {FACE_CROP_PX}, ...]")
        if not len(rgb):  # programs are not asked to know what to do with no face
            shapes = ((self.vector_size,), self.map_shape, (len(self.expressions),))
            vector, maps, expression = (
                rgb.new_zeros((0, *shape), dtype=torch.float32) for shape in shapes
            )
            return FaceEmbedding(vector, maps, expression if self.expressions else None)
        seen = [self.program(faces.float()) for faces in torch.split(rgb, FACE_BATCH)]
        expressions = [part.expression for part in seen if part.expression is not None]
        return FaceEmbedding(
            vector=torch.cat([part.vector for part in seen]).float(),
            map=torch.cat([part.map for part in seen]).float(),
            expression=torch.cat(expressions).float() if expressions else None,
        )


def read_face_network(
    path: Path = SHIPPED_FACE_WEIGHTS,
    device: torch.device | str = "cpu",
    *,
    precision: str = "float32",
    n_threads: int = 1,
) -> FaceNetwork:
    """Read a network from a file: weights of ``fit-face``, or a program of any other network.

    A program is what ``torch.export.save`` writes, or TorchScript. It runs on a few made-up faces
    before it is accepted: docs/face_network.md says what it has to do. Loading a program can run
    code that its author put there: only load one from someone you trust.

    Args:
        path: What the file holds is told by its content, not its name.
        device: Where it shall run.
        precision: ``float32`` or ``bfloat16``; a program runs in what it was exported in.
        n_threads: Threads that will call ``embed`` at once.

    Raises:
        WeightsError: missing, damaged, of an unknown kind, or it does not give what it must.
    """
    device = torch.device(device)
    if not zipfile.is_zipfile(path):
        net = read_face_cnn(path)
        return FaceNetwork(
            vector_size=FACE_VECTOR_SIZE,
            map_shape=FACE_MAP_SHAPE,
            expressions=net.classes,
            program=_compile_face_cnn(net, device, precision, n_threads),
        )
    program = load_program(path, device)
    seen = _check_program(path, program, device)
    channels, height, width = seen.map.shape[1:]
    return FaceNetwork(
        vector_size=seen.vector.shape[1],
        map_shape=(channels, height, width),
        program=lambda rgb: FaceEmbedding(*program(rgb)),
    )


def _compile_face_cnn(
    net: FaceCNN, device: torch.device, precision: str, n_threads: int
) -> Callable[[Tensor], FaceEmbedding]:
    net, batch = net.to(device), min(choose_batch(device), FACE_BATCH)
    trunk = compile_network(
        _Trunk(net),
        torch.zeros(2, 1, FACE_CROP_PX, FACE_CROP_PX),
        device=device,
        precision=precision,
        n_threads=n_threads,
    )

    def embed(rgb: Tensor) -> FaceEmbedding:
        # OpenVINO 2026.4 folds the two divisions of normalise into a wrong one: it stays in torch.
        vector, feature_map = run_padded(trunk, net.normalise(rgb), batch=batch, multiple=batch)
        return FaceEmbedding(vector, feature_map, net.classifier(vector).softmax(1))

    return embed


class _Trunk(nn.Module):
    """The part of the face CNN after its normalisation."""

    def __init__(self, net: FaceCNN) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, 1, 128, 128]. Returns vector [B, 512] and map [B, 512, 7, 7]."""
        seen = self.net.embed_normalised(x)
        return seen.vector, seen.map


@torch.inference_mode()
def _check_program(
    path: Path, program: Callable[[Tensor], Any], device: torch.device
) -> FaceEmbedding:
    """What it gives for some faces. Raises WeightsError where the program breaks a rule."""
    draw = torch.Generator().manual_seed(0)
    size = (FACE_BATCH, 3, FACE_CROP_PX, FACE_CROP_PX)
    faces = (torch.rand(size, generator=draw) * 255).to(device)
    together, alone = (_run(path, program, batch) for batch in (faces, faces[:1]))
    for seen in (together, alone):
        for name, values in zip(("vector", "map"), seen[:2], strict=True):
            if not (values.abs() <= _HALF_MAX).all():
                raise WeightsError(
                    f"{path}: its {name} has values that are not finite, or above {_HALF_MAX:.0f}, "
                    "which float16 cannot keep. Scale its output."
                )
    for name, many, one in zip(("vector", "map"), together[:2], alone[:2], strict=True):
        change = float((many[:1].float() - one.float()).norm())
        if many.shape[1:] != one.shape[1:] or change > _TOLERANCE * float(one.float().norm()):
            raise WeightsError(
                f"{path}: the {name} of a face changes with the faces beside it. Call eval() "
                "before the export."
            )
    return together


def _run(path: Path, program: Callable[[Tensor], Any], faces: Tensor) -> FaceEmbedding:
    """Raises WeightsError where the program fails on a batch, or gives other shapes."""
    n = len(faces)
    try:
        seen = program(faces)
    except FAILED as error:
        raise WeightsError(
            f"{path}: it fails on a float32 batch of {n} faces [{n}, 3, {FACE_CROP_PX}, "
            f"{FACE_CROP_PX}] ({first_line(error)}). Export it with a batch of any size."
        ) from error
    is_pair = isinstance(seen, tuple | list) and len(seen) == 2
    found = [tuple(x.shape) for x in seen if isinstance(x, Tensor)] if is_pair else []
    is_right = [len(shape) for shape in found] == [2, 4] and 0 not in (*found[0], *found[1])
    if not is_right or any(shape[0] != n for shape in found):
        shapes = found or type(seen).__name__
        raise WeightsError(
            f"{path}: for {n} faces it gives {shapes}, expected two tensors, a vector [{n}, values]"
            f" and a map [{n}, channels, h, w]. Put a layer at its end that gives these, as "
            "docs/face_network.md tells, and export it again."
        )
    return FaceEmbedding(*seen)
