"""Runs an encoder: pictures or sound in, a row of the stream out; tries it before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from features.errors import ClipError, WeightsError
from features.networks.encoders import EncoderSpec, hash_network
from features.networks.onnx_network import compile_onnx
from features.networks.programs import FAILED, first_line, load_program
from features.networks.runtime import Network, choose_batch, run_padded

_PROGRAM_BATCH = 32
"""Rows that a program is given at once, at most."""
_HALF_MAX = 65504.0
"""Largest float16: what a store can keep."""
_TOLERANCE = 1e-2
"""Share of a row's length by which it may change with the rows beside it."""
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """An encoder on one device; several threads may use it at once."""

    spec: EncoderSpec
    device: torch.device
    batch: int
    """Rows that its network takes at once, neither more nor fewer."""
    network: Network
    """[batch, ...] as the sidecar tells -> [batch, D], float32."""

    @torch.inference_mode()
    def embed(self, rows: Tensor) -> Tensor:
        """The rows of a stream.

        Args:
            rows: Pictures [B, 3, height, width], RGB, 0..255, uint8 or float, or sound
                [B, samples], float, -1..1; B may be 0. On any device.

        Returns:
            [B, D] float32.

        Raises:
            ValueError: another shape.
            ClipError: values that are not finite, or that float16 cannot keep.
        """
        shape = self.spec.input_shape
        expected = shape if len(shape) == 1 else (3, *shape[1:])
        if rows.shape[1:] != expected:
            raise ValueError(f"rows are {tuple(rows.shape)}, not [B, {', '.join(map(str, shape))}]")
        seen = [torch.empty((0, self.spec.size))]
        for part in torch.split(rows, self.batch):
            if not len(part):
                continue
            x = _prepare(part.to(self.device).float(), self.spec)
            seen.append(run_padded(self.network, x, batch=self.batch, multiple=self.batch)[0].cpu())
        values = torch.cat(seen)
        if not (values.abs() <= _HALF_MAX).all():
            raise ClipError(
                f"encoder {self.spec.name}: it gives values that are not finite, or above "
                f"{_HALF_MAX:.0f}, which float16 cannot keep. Scale its output"
            )
        return values


def read_encoder(
    spec: EncoderSpec,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    n_threads: int = 1,
) -> Encoder:
    """Load an encoder and try it on made-up rows.

    Args:
        spec: From ``read_encoder_spec``.
        device: Where it shall run.
        precision: ``float32`` or ``bfloat16``; a program, and ONNX on a GPU, multiply as exported.
        n_threads: Threads that will call ``embed`` at once.

    Raises:
        WeightsError: it cannot be loaded, fails, or does not give what its sidecar tells.
        ConfigError: ONNX on a GPU without onnxruntime-gpu.
    """
    device = torch.device(device)
    if hash_network(spec.path) != spec.sha256:
        raise WeightsError(f"{spec.path}: changed since it was first read. Run the same again.")
    if spec.is_program:
        batch, network = _read_program(spec, device)
    else:
        compiled = compile_onnx(
            spec.path,
            spec.output,
            spec.input_shape,
            device=device,
            precision=precision,
            n_threads=n_threads,
        )
        batch, network = compiled.batch, compiled.run
    encoder = Encoder(
        spec=spec, device=device, batch=batch, network=_check_shapes(spec, batch, network)
    )
    _check_rows(encoder)
    return encoder


def draw_rows(spec: EncoderSpec, n: int) -> Tensor:
    """Made-up rows that an encoder takes: [n, 3, height, width] or [n, samples]."""
    draw = torch.Generator().manual_seed(0)
    if spec.looks_at == "audio":
        return torch.rand((n, *spec.input_shape), generator=draw) * 2 - 1
    coarse = torch.rand((n, 3, 8, 8), generator=draw) * 255
    return torch.nn.functional.interpolate(
        coarse, size=(spec.height, spec.width), mode="bilinear"
    ).to(torch.uint8)


def _prepare(rows: Tensor, spec: EncoderSpec) -> Tensor:
    """[B, 3, H, W] RGB 0..255 as the network takes it; sound as it is."""
    if spec.looks_at == "audio":
        return rows
    if spec.colours == "grey":
        rows = (rows * rows.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    elif spec.colours == "bgr":
        rows = rows.flip(1)
    mean, deviation = (rows.new_tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.deviation))
    return (rows * (spec.scale / 255) - mean) / deviation


def _read_program(spec: EncoderSpec, device: torch.device) -> tuple[int, Network]:
    """Its batch and the program."""
    program = load_program(spec.path, device)
    batch = _find_fixed_batch(program) or min(choose_batch(device), _PROGRAM_BATCH)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return (_choose_output(spec, program(x)),)

    return batch, run


def _find_fixed_batch(program: Any) -> int | None:
    """The batch that an exported program was made for; None: any, or it does not tell."""
    graph = getattr(program, "graph", None)
    inputs = [] if graph is None else [n for n in graph.nodes if n.op == "placeholder"]
    shape = getattr(inputs[0].meta.get("val"), "shape", ()) if len(inputs) == 1 else ()
    return shape[0] if shape and isinstance(shape[0], int) else None


def _choose_output(spec: EncoderSpec, seen: Any) -> Tensor:
    """The output of a program that the sidecar names. Raises WeightsError."""
    if isinstance(seen, Tensor) and spec.output == 0:
        return seen
    chosen = None
    if isinstance(seen, Mapping):
        chosen = seen.get(spec.output)
    elif isinstance(seen, Sequence) and isinstance(spec.output, int) and spec.output < len(seen):
        chosen = seen[spec.output]
    if not isinstance(chosen, Tensor):
        known = list(seen) if isinstance(seen, Mapping) else type(seen).__name__
        raise WeightsError(
            f"{spec.path}: it has no output {spec.output!r}, it gives {known}. Correct the sidecar."
        )
    return chosen


def _check_shapes(spec: EncoderSpec, batch: int, network: Network) -> Network:
    """The network, whose output is looked at each time; sizes of 1 are dropped."""

    def run(x: Tensor) -> tuple[Tensor, ...]:
        (seen,) = network(x)
        sizes = [size for size in seen.shape[1:] if size != 1] or [1]
        if not seen.ndim or seen.shape[0] != batch or sizes != [spec.size]:
            raise WeightsError(
                f"{spec.path}: for {batch} rows its output {spec.output!r} is "
                f"{list(seen.shape)}, expected [{batch}, {spec.size}] by its sidecar. Correct "
                "size or output; a map, or a row for each token, is to be pooled inside the "
                "network before it is exported."
            )
        return (seen.reshape(batch, spec.size).float(),)

    return run


def _check_rows(encoder: Encoder) -> None:
    """Raises WeightsError where it fails, a row changes with those beside it, or is wrong."""
    spec = encoder.spec
    rows = draw_rows(spec, max(encoder.batch, 2))
    try:
        together, alone = encoder.embed(rows), encoder.embed(rows[-1:])
    except ClipError as error:
        raise WeightsError(f"{spec.path}: {error}.") from error
    except FAILED as error:
        raise WeightsError(
            f"{spec.path}: it fails on {encoder.batch} rows of {list(spec.input_shape)}, float32 "
            f"({first_line(error)}). Export it for a batch of any size up to 64, or of one."
        ) from error
    change = float((together[-1] - alone[0]).norm())
    if change > _TOLERANCE * float(alone[0].norm()):
        raise WeightsError(
            f"{spec.path}: what a row gives changes with the rows beside it. Call eval() before "
            "the export; nothing may be normalised over the batch."
        )
