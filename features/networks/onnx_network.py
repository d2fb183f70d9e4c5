"""Runs ONNX files: by OpenVINO on a CPU, by onnxruntime-gpu on a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from features.errors import ConfigError, WeightsError
from features.networks.runtime import CpuNetwork, Network, choose_batch, openvino_core


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxNetwork:
    """A compiled ONNX file."""

    run: Network
    """Takes exactly ``batch`` rows, gives the one output."""
    batch: int


def compile_onnx(
    path: Path,
    output: str | int,
    row_shape: tuple[int, ...],
    *,
    device: torch.device,
    precision: str = "float32",
    n_threads: int = 1,
) -> OnnxNetwork:
    """Prepare an ONNX file for many calls. No code of the file's author runs.

    Args:
        path: Its values may lie in a file beside it.
        output: The one of its outputs that is wanted: name, or place from 0 on.
        row_shape: Of one row of its only input; of a picture (channels, height, width).
        device: A CUDA device needs the package onnxruntime-gpu, and multiplies float32.
        precision: One of ``PRECISIONS``.
        n_threads: Threads that will call at once.

    Raises:
        WeightsError: not an ONNX file that OpenVINO reads, no such output, another input.
        ConfigError: a CUDA device, and no onnxruntime-gpu.
    """
    model = _read_onnx(path)
    batch, is_channels_last = _check_onnx_input(path, model, row_shape)
    batch = batch or choose_batch(device)
    place = _find_onnx_output(path, model, output)
    if device.type == "cuda":
        network: Network = OnnxRuntimeNetwork(path, place, _find_cuda_provider(path, device))
    else:
        import openvino as ov

        shape = (*row_shape[1:], row_shape[0]) if is_channels_last else row_shape
        try:
            model.reshape([batch, *shape])
            chosen = model.output(place).get_node().input_value(0)
            model = ov.Model([chosen], model.get_parameters(), "encoder")  # others cost no time
            network = CpuNetwork(model, precision, n_threads)
        except RuntimeError as error:
            raise WeightsError(
                f"{path}: it cannot take [{', '.join(map(str, (batch, *shape)))}] "
                f"({_last_line(error)}). Export it with a batch of any size, or of one."
            ) from error
    if is_channels_last:
        return OnnxNetwork(run=lambda x: network(x.permute(0, 2, 3, 1)), batch=batch)
    return OnnxNetwork(run=network, batch=batch)


class OnnxRuntimeNetwork:
    """An ONNX file run by onnxruntime; any number of threads may call."""

    def __init__(self, path: Path, place: int, provider: tuple[str, Mapping[str, str]]) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path), providers=[provider])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[place].name

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        values = x.contiguous().cpu().numpy()
        return tuple(
            map(torch.from_numpy, self._session.run([self._output], {self._input: values}))
        )


def _find_cuda_provider(path: Path, device: torch.device) -> tuple[str, Mapping[str, str]]:
    try:
        import onnxruntime

        is_there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    except ImportError:
        is_there = False
    if not is_there:
        raise ConfigError(
            f"{path}: torch runs no ONNX on a GPU. Run: pip install onnxruntime-gpu; or add this "
            "stream with --device cpu; or give a program of torch.export with --trust."
        )
    # TF32 is not the float32 that the fingerprint speaks of.
    return "CUDAExecutionProvider", {"device_id": str(device.index or 0), "use_tf32": "0"}


def _read_onnx(path: Path) -> Any:
    try:
        return openvino_core().read_model(str(path))
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: not an ONNX file, damaged, or with operations that OpenVINO does not know "
            f"({_last_line(error)}). Export it again, with an opset that OpenVINO reads."
        ) from error


def _check_onnx_input(
    path: Path, model: Any, row_shape: tuple[int, ...]
) -> tuple[int | None, bool]:
    """Its fixed batch (None: any), and whether it wants channels last. Raises WeightsError."""
    names = [source.get_any_name() for source in model.inputs]
    if len(names) != 1:
        raise WeightsError(
            f"{path}: it has the inputs {', '.join(names)}, expected one. Export a network that "
            "takes nothing but the rows."
        )
    found = [d.get_length() if d.is_static else None for d in model.inputs[0].get_partial_shape()]
    last = (*row_shape[1:], row_shape[0])
    fits = [
        len(found) == len(shape) + 1
        and all(d in (None, size) for d, size in zip(found[1:], shape, strict=True))
        for shape in (row_shape, last)
    ]
    kind = model.inputs[0].get_element_type().get_type_name()
    if not any(fits) or kind != "f32":
        raise WeightsError(
            f"{path}: it takes {kind} {found}, expected float32 [batch, "
            f"{', '.join(map(str, row_shape))}] by its sidecar. Correct the sidecar, or export it "
            "for such pictures."
        )
    return found[0], not fits[0]


def _find_onnx_output(path: Path, model: Any, output: str | int) -> int:
    """Its place. Raises WeightsError where there is no such output."""
    names = [sorted(found.get_names()) for found in model.outputs]
    for place, known in enumerate(names):
        if output == place or output in known:
            return place
    listed = ", ".join("/".join(known) or str(place) for place, known in enumerate(names))
    raise WeightsError(f"{path}: it has no output {output!r}, only {listed}. Correct the sidecar.")


def _last_line(error: BaseException) -> str:
    """OpenVINO tells first where in its source it failed."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
