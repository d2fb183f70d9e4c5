"""The layers that heads are made of, for one run or for several side by side.

A parameter may carry a leading run dimension: then the layer holds S runs of equal shape, and its
input carries the same S in front. Without it the layer is an ordinary one. Names and layouts are
those of ``torch.nn.Linear`` and ``torch.nn.LSTM``, so weights load into either.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from train.heads.dropout import Noise
from train.heads.lstm import Steps, Weights, run_recurrence
from train.seeds import make_torch_seed

M = TypeVar("M", bound=nn.Module)


class Head(nn.Module):
    """A trainable model from streams of features to class logits.

    The one base class of the package: it pins the two ways to call any head, by the two streams of
    the paper or by any streams, so that drivers need not know which head they hold.
    """

    streams: tuple[str, ...]
    """The streams that the head reads; others may be missing."""
    classify: Linear
    """The last layer: its rows are the classes."""
    standardise: ByStream
    """What each stream passes first; empty where the streams are read as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.standardise = ByStream({})

    def forward(self, context: Tensor, face: Tensor, n_steps: Tensor) -> Tensor:
        """Score clips by the streams of the paper.

        Args:
            context: [*runs, B, T, C] zero-padded; C is the head's context size.
            face: [*runs, B, T, D] zero-padded; D is the head's face size.
            n_steps: [*runs, B] true lengths, 1..T.

        Returns:
            [*runs, B, K] Logits.
        """
        return self.score({"context": context, "face": face}, n_steps)

    def score(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        """The same by stream name; only the streams that the head reads are looked at."""
        return self.read(self.scale(streams), n_steps)

    def scale(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The streams that the head reads, standardised where they are to be."""
        return {
            name: self.standardise[name](streams[name])
            if name in self.standardise
            else streams[name]
            for name in self.streams
        }

    def read(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        """What each head has of its own: as ``score``, on what ``scale`` gives."""
        raise NotImplementedError


class ByStream(nn.ModuleDict):
    """Layers by the name of their stream; ``nn.ModuleDict`` refuses those of its own methods."""

    def __getitem__(self, stream: str) -> nn.Module:
        return super().__getitem__(_name_layer(stream))

    def __setitem__(self, stream: str, layer: nn.Module) -> None:
        super().__setitem__(_name_layer(stream), layer)

    def __contains__(self, stream: str) -> bool:
        return super().__contains__(_name_layer(stream))


def _name_layer(stream: str) -> str:
    return f"{stream}-" if hasattr(nn.ModuleDict, stream) else stream


class Linear(nn.Module):
    """``torch.nn.Linear`` with an optional run dimension."""

    noise: Noise | None = None
    """Of dropout at the input, in training."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out))

    def draw_weights(self, rng: torch.Generator) -> None:
        """Draw as PyTorch does: uniform within 1 / sqrt(inputs)."""
        _draw_uniform(self, 1 / math.sqrt(self.weight.shape[-1]), rng)

    def forward(self, x: Tensor) -> Tensor:
        """x: [*runs, ..., n_in]. Returns [*runs, ..., n_out]."""
        if self.noise is not None:
            x = self.noise.drop(x)
        return _project(x, self.weight, self.bias)


class Conv(nn.Module):
    """``torch.nn.Conv2d`` or ``Conv3d`` with an optional run dimension.

    Edges are padded with zeros so that a stride of 1 keeps the size.
    """

    def __init__(
        self, n_in: int, n_out: int, kernel: tuple[int, ...], *, stride: tuple[int, ...] = ()
    ) -> None:
        """kernel: 2 or 3 odd sizes; stride: as many, 1 each by default."""
        super().__init__()
        self.stride = stride or (1,) * len(kernel)
        self.padding = tuple(size // 2 for size in kernel)
        self.weight = nn.Parameter(torch.empty(n_out, n_in, *kernel))
        self.bias = nn.Parameter(torch.empty(n_out))

    def draw_weights(self, rng: torch.Generator) -> None:
        """Draw as PyTorch does: uniform within 1 / sqrt(inputs)."""
        _draw_uniform(self, 1 / math.sqrt(self.weight[0].numel()), rng)

    def forward(self, x: Tensor) -> Tensor:
        """x: [*runs, N, n_in, *places]. Returns [*runs, N, n_out, *places]."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.weight.dtype)
        convolve = nn.functional.conv2d if len(self.stride) == 2 else nn.functional.conv3d
        if self.bias.dim() == 1:
            return convolve(x, self.weight, self.bias, self.stride, self.padding)
        # A call a run: each has work enough, and on a CPU it is as fast as one grouped convolution
        # over space and time, and several times faster than a grouped 1x1.
        runs = zip(x, self.weight, self.bias, strict=True)
        return torch.stack([convolve(*run, self.stride, self.padding) for run in runs])


class State(NamedTuple):
    """Where an LSTM stands after its last real step, one entry a layer."""

    hidden: tuple[Tensor, ...]
    """[*runs, B, H] each"""
    cell: tuple[Tensor, ...]
    """[*runs, B, H] each"""


class Read(NamedTuple):
    """What an LSTM made of a sequence."""

    hidden: Tensor
    """[*runs, B, T, H] Top layer at every step; past a clip's last real step it means nothing."""
    state: State
    attention: Tensor
    """[*runs, B, T, U] Attention weights of each step over the memory's steps; U = 0 without."""


class Memory(NamedTuple):
    """What an LSTM may attend to while it reads: another's hidden states."""

    hidden: Tensor
    """[*runs, B, U, H]"""
    mask: Tensor
    """[*runs, B, U] True where the step is real."""


class Lstm(nn.Module):
    """``torch.nn.LSTM`` (two bias vectors a layer) with optional runs and optional attention.

    With ``attention_size`` the first layer's input is the step's own, then the attention vector.
    The layer that reads the vector is the one that asks for it: the query is its hidden state of
    the step before.
    """

    noise: Noise | None = None
    """Of dropout at the input of each layer, in training."""

    def __init__(self, n_in: int, size: int, n_layers: int, *, attention_size: int = 0) -> None:
        super().__init__()
        if attention_size not in (0, size):
            raise ValueError(f"dot product attention needs equal sizes: {attention_size}, {size}")
        self.n_layers, self.size, self.attention_size = n_layers, size, attention_size
        for layer in range(n_layers):
            width = n_in + attention_size if layer == 0 else size
            for name, shape in _layer_shapes(width, size).items():
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(*shape)))

    def draw_weights(self, rng: torch.Generator) -> None:
        """Draw as PyTorch does: uniform within 1 / sqrt(hidden size)."""
        _draw_uniform(self, 1 / math.sqrt(self.size), rng)

    def forward(
        self,
        x: Tensor,
        n_steps: Tensor,
        *,
        first: State | None = None,
        memory: Memory | None = None,
    ) -> Read:
        """Read a batch of sequences.

        Args:
            x: [*runs, B, T, n_in] zero-padded.
            n_steps: [*runs, B] True lengths, 1..T.
            first: The state before the first step, one entry a layer; None: zeros.
            memory: What the first layer attends to; needed exactly with ``attention_size``.
        """
        if (memory is None) != (self.attention_size == 0):
            raise ValueError("memory goes with attention_size")
        bare = n_steps.dim() == 1

        def add_run(tensor: Tensor) -> Tensor:
            return tensor.unsqueeze(0) if bare else tensor

        def drop_run(tensor: Tensor) -> Tensor:
            return tensor.squeeze(0) if bare else tensor

        begins: Sequence[tuple[Tensor, Tensor] | None] = [None] * self.n_layers
        if first is not None:
            states = zip(first.hidden, first.cell, strict=True)
            begins = [(add_run(h).transpose(1, 2), add_run(c).transpose(1, 2)) for h, c in states]
        asked = (add_run(memory.hidden), add_run(memory.mask)) if memory is not None else None
        layers: list[Steps] = []
        for layer, begin in enumerate(begins):
            # [S, n_in, T, B], as the recurrence has it
            x = layers[-1].hidden if layers else add_run(x).transpose(1, 3)
            if self.noise is not None:
                x = self.noise.drop(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            weights = Weights(
                *(add_run(self.get_parameter(f"{name}_l{layer}")) for name in _layer_shapes(0, 0))
            )
            about = None if layers else asked
            layers.append(run_recurrence(x, add_run(n_steps), weights, begin, about))
        return Read(
            drop_run(layers[-1].hidden.transpose(1, 3)),
            State(
                tuple(drop_run(steps.last_hidden.transpose(1, 2)) for steps in layers),
                tuple(drop_run(steps.last_cell.transpose(1, 2)) for steps in layers),
            ),
            drop_run(layers[0].attention),
        )


def mask_steps(n_steps: Tensor, n_padded: int) -> Tensor:
    """[..., B] true lengths to [..., B, T]: True where the step is real."""
    return torch.arange(n_padded, device=n_steps.device) < n_steps.unsqueeze(-1)


def draw_weights(module: nn.Module, seed: int) -> None:
    """Draw the weights of every layer of a module, in order, from the seed alone."""
    rng = torch.Generator().manual_seed(make_torch_seed("weights", seed))
    for part in module.modules():
        if isinstance(part, Linear | Conv | Lstm):
            part.draw_weights(rng)


def set_noise(head: Head, noise: Noise | None) -> None:
    """Switch dropout on, with this noise, or off: before each LSTM layer and the last Linear."""
    head.classify.noise = noise
    for part in head.modules():
        if isinstance(part, Lstm):
            part.noise = noise


def stack_runs(modules: Sequence[M]) -> M:
    """One module that holds several of equal shape side by side: parameters get a run dimension."""
    stacked = copy.deepcopy(modules[0])
    states = [dict(module.named_parameters()) for module in modules]
    for name, parameter in stacked.named_parameters():
        parameter.data = torch.stack([state[name].detach() for state in states])
    return stacked


def read_run_state(stacked: nn.Module, run: int) -> dict[str, Tensor]:
    """A copy of one run's weights, under the names and shapes of the unstacked module."""
    own = {name: p.detach()[run].clone() for name, p in stacked.named_parameters()}
    return own | {name: b.clone() for name, b in stacked.named_buffers()}  # all runs have these


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x: [*runs, ..., D], weight: [*runs, N, D], bias: [*runs, N]. Returns [*runs, ..., N].

    With runs, sequences [S, B, T, D] come out as [S, N, T, B] lies in memory, as the recurrence
    reads them.
    """
    if not torch.is_autocast_enabled(x.device.type):
        x = x.to(weight.dtype)
    if weight.dim() == 2:
        return nn.functional.linear(x, weight, bias)
    if x.dim() == 4:
        x = x.transpose(1, 2)
    if x.stride(0) == 0:  # the same for all runs, as in scoring: one product, no copies
        rows, many = x[0].flatten(0, -2), bias.flatten().unsqueeze(1)
        out = torch.addmm(many, weight.flatten(0, 1), rows.t())
    else:
        out = torch.baddbmm(bias.unsqueeze(2), weight, x.flatten(1, -2).transpose(1, 2))
    return out.view(*bias.shape, *x.shape[1:-1]).transpose(1, -1)


def _layer_shapes(width: int, size: int) -> dict[str, tuple[int, ...]]:
    return {
        "weight_ih": (4 * size, width),
        "weight_hh": (4 * size, size),
        "bias_ih": (4 * size,),
        "bias_hh": (4 * size,),
    }


def _draw_uniform(module: nn.Module, bound: float, rng: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            parameter.uniform_(-bound, bound, generator=rng)
