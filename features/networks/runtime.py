"""Runs frozen networks: by OpenVINO on a CPU, by torch on a CUDA device."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from features.errors import ConfigError

PRECISIONS: tuple[str, ...] = ("float32", "bfloat16")
"""What networks multiply in; sums, inputs and outputs are float32."""

_BFLOAT16_CAPABILITY = (8, 0)
"""Compute capability from which on a GPU multiplies bfloat16 itself: Ampere."""

Network = Callable[[Tensor], tuple[Tensor, ...]]
"""A batch of at least one row -> float32 outputs. May be called from several threads at once."""


def choose_device(device: str) -> torch.device:
    """``auto`` is a CUDA device where there is one. Raises ConfigError for one that is not."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve ``auto``: bfloat16 where the device multiplies it natively, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() asks the current device, and says yes where it is emulated.
        is_native = torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
        return "bfloat16" if is_native else "float32"
    can: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if can.get("avx512_bf16") or can.get("amx_bf16") else "float32"


def compile_network(
    module: nn.Module,
    example: Tensor,
    *,
    device: torch.device,
    precision: str = "float32",
    n_threads: int = 1,
) -> Network:
    """Prepare a frozen module for many calls.

    On a CPU each call runs on one core, so that callers in ``n_threads`` threads share all of them
    without waiting for each other: on networks this small that does up to twice the work of one
    call spread over two cores.

    Args:
        module: In eval mode; takes one tensor, gives a tuple of tensors.
        example: A small input of the right rank and type; sizes may differ in later calls.
        device: A CPU or a CUDA device.
        precision: One of ``PRECISIONS``.
        n_threads: Threads that will call at once.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: expected one of {PRECISIONS}")
    if device.type == "cuda":
        return _CudaNetwork(module, device, precision)
    return CpuNetwork(_read_model(module, example), precision, n_threads)


def choose_batch(device: torch.device) -> int:
    """Rows that the CNNs take at once: on a CPU four do as well as more, a GPU wants many."""
    return 64 if device.type == "cuda" else 4


def run_padded(network: Network, x: Tensor, *, batch: int, multiple: int) -> tuple[Tensor, ...]:
    """Run a network over ``batch`` rows at a time, the last batch grown by zeros to a multiple.

    Few shapes are compiled then, and with ``batch == multiple`` what a row gives does not depend
    on how many rows came with it.

    Args:
        network: From ``compile_network``.
        x: [N, ...] N >= 1.
        batch: Rows a call at most; divisible by ``multiple``.
        multiple: Every call has a multiple of this many rows.
    """
    parts = []
    for rows in torch.split(x, batch):
        n_pad = -len(rows) % multiple
        if n_pad:
            padded = torch.cat([rows, rows.new_zeros(n_pad, *rows.shape[1:])])
            parts.append(tuple(out[: len(rows)] for out in network(padded)))
        else:
            parts.append(network(rows))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


class CpuNetwork:
    """A compiled OpenVINO model; every calling thread has a request of its own."""

    def __init__(self, model: Any, precision: str, n_threads: int) -> None:
        """Arguments: the model; others see ``compile_network``. RuntimeError: it is wrong."""
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "NUM_STREAMS": n_threads,
            "INFERENCE_NUM_THREADS": n_threads,
            "ENABLE_CPU_PINNING": False,  # decoders use the same cores
        }
        self._compiled = openvino_core().compile_model(model, "CPU", settings)
        self._of_thread = threading.local()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if not len(x):
            raise ValueError("an empty batch")  # it would corrupt OpenVINO's memory
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        request.infer({0: x.contiguous().numpy()}, share_inputs=True)
        # Copied: the next call of this thread writes to the same place.
        return tuple(torch.from_numpy(out.data.copy()) for out in request.output_tensors)


class _CudaNetwork:
    """The module itself on the GPU, channels last, under autocast for bfloat16."""

    def __init__(self, module: nn.Module, device: torch.device, precision: str) -> None:
        self._module = module.to(device).to(memory_format=torch.channels_last)
        self._device = device
        self._reduced = precision == "bfloat16"

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16, enabled=self._reduced):
            outputs = self._module(x.to(self._device))
        return tuple(out.float() for out in outputs)


@cache
def openvino_core() -> Any:
    """What reads and compiles OpenVINO's models."""
    import openvino as ov

    return ov.Core()


def _read_model(module: nn.Module, example: Tensor) -> Any:
    """A module as OpenVINO's model, of any sizes.

    By its frontend, not by ``openvino.convert_model``: that reports each call to Google Analytics,
    from a process forked for the purpose.
    """
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated; it is what OpenVINO reads best
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=example)
    model = frontend.convert(frontend.load(decoder))
    source = model.get_parameters()[0]
    source.set_element_type(ov.Type(example.numpy().dtype))
    source.set_partial_shape(ov.PartialShape([-1] * example.ndim))
    model.validate_nodes_and_infer_types()
    return model
