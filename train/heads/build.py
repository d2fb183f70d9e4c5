"""The heads of section IV and the registry that builds any head by name.

Layers and sizes follow Table I's parameter counts to the digit (see docs/models.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from features.contracts import CONTEXT_CHANNELS, FACE_MAP_SHAPE, FACE_VECTOR_SIZE
from train.config import FitConfig, split_names
from train.heads.cascade import Cascade, Link
from train.heads.conv2d3d import Conv2d3d
from train.heads.layers import Head, Linear, Lstm, draw_weights

Shapes = Mapping[str, tuple[int, ...]]
"""Stream or feature matrix -> shape of its values at one step, for example (512, 7, 7)."""

SIZE = 128
"""Width of encoded features and of the LSTMs, where not twice that (IV-C, V)."""


class SingleRnn(Head):
    """Face-RNN and Context-RNN (Fig. 3a): encode one stream, read it, classify the last output."""

    def __init__(self, stream: str, n_in: int, n_encoded: int, n_classes: int) -> None:
        super().__init__()
        self.streams = (stream,)
        self.encode = Linear(n_in, n_encoded)
        self.rnn = Lstm(n_encoded, 2 * SIZE, 2)
        self.classify = Linear(2 * SIZE, n_classes)

    def score(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        x = self.encode(streams[self.streams[0]])  # [*runs, B, T, n_encoded]
        logits: Tensor = self.classify(self.rnn(x, n_steps).state.hidden[-1])  # [*runs, B, K]
        return logits


class ParallelRnn(Head):
    """Parallel-RNN (Fig. 3b): a recurrent branch a stream, their last outputs classified as one."""

    streams = ("context", "face")

    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.encode = _encode_each(shapes)
        self.rnn = nn.ModuleDict({name: Lstm(SIZE, SIZE, 2) for name in self.streams})
        self.classify = Linear(2 * SIZE, n_classes)

    def score(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        last = [
            self.rnn[name](self.encode[name](streams[name]), n_steps).state.hidden[-1]
            for name in self.streams
        ]
        logits: Tensor = self.classify(torch.cat(last, -1))  # [*runs, B, K]
        return logits


class ConcatenatedRnn(Head):
    """Concatenated-RNN (Fig. 3c): both streams side by side at each step, in one RNN."""

    streams = ("context", "face")

    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.encode = _encode_each(shapes)
        self.rnn = Lstm(2 * SIZE, 2 * SIZE, 2)
        self.classify = Linear(2 * SIZE, n_classes)

    def score(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        # Joined as they lie in memory, the values first.
        parts = [self.encode[name](streams[name]).transpose(-3, -1) for name in self.streams]
        x = torch.cat(parts, -3).transpose(-3, -1)  # [*runs, B, T, 2 SIZE]
        logits: Tensor = self.classify(self.rnn(x, n_steps).state.hidden[-1])  # [*runs, B, K]
        return logits


SHAPES: Shapes = MappingProxyType(
    {
        "context_2x2": (CONTEXT_CHANNELS, 2, 2),
        "context_7x7": (CONTEXT_CHANNELS, 7, 7),
        "face": (FACE_VECTOR_SIZE,),
        "face_map": FACE_MAP_SHAPE,
    }
)
"""Feature matrices of a store made with the shipped networks; other stores tell their own."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """How to build a head, and what it reads."""

    build: Callable[[Shapes, int], Head]
    """(shapes by stream, number of classes) to a head whose weights are not drawn yet."""
    streams: tuple[str, ...] = ("context", "face")
    """What the head reads; empty where the setting ``streams`` says it."""
    context_grid: str = "2x2"
    """The pooling of the context features that the head was published with."""


def _build_cascade(first_layers: int, later_layers: int) -> Callable[[Shapes, int], Head]:
    """A cascade over all streams in their order; how deep its first LSTM is, and each later one."""

    def build(shapes: Shapes, n_classes: int) -> Head:
        links = [
            Link(stream=name, n_in=math.prod(shape), n_layers=later_layers if i else first_layers)
            for i, (name, shape) in enumerate(shapes.items())
        ]
        return Cascade(links, SIZE, n_classes)

    return build


HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "face": HeadSpec(
            build=lambda shapes, k: SingleRnn("face", shapes["face"][0], shapes["face"][0], k),
            streams=("face",),
        ),
        "context": HeadSpec(
            build=lambda shapes, k: SingleRnn("context", math.prod(shapes["context"]), SIZE, k),
            streams=("context",),
        ),
        "parallel": HeadSpec(build=ParallelRnn),
        "concatenated": HeadSpec(build=ConcatenatedRnn),
        "caca-a": HeadSpec(build=_build_cascade(2, 1)),
        "caca-b": HeadSpec(build=_build_cascade(2, 1), streams=("face", "context")),
        "caca": HeadSpec(build=_build_cascade(1, 2), context_grid="7x7"),
        "conv2d3d": HeadSpec(
            build=lambda shapes, k: Conv2d3d(shapes["face_map"], k), streams=("face_map",)
        ),
        "cascade": HeadSpec(build=_build_cascade(2, 1), streams=()),
    }
)
"""Every head by name, in the order of the tables."""


def choose_grid(name: str, context: str = "own") -> str:
    """The pooling grid a head reads: what the setting says, or what it was published with."""
    return HEADS[name].context_grid if context == "own" else context


def choose_streams(
    name: str, *, context: str = "own", streams: str = "context,face"
) -> dict[str, str]:
    """The streams that a head reads, in order -> the feature matrix that each comes from.

    Args:
        name: A key of ``HEADS``.
        context: ``2x2``, ``7x7``, or ``own`` for what the head was published with.
        streams: Of a head that reads any streams.
    """
    read = HEADS[name].streams or split_names("streams", streams)
    matrix = f"context_{choose_grid(name, context)}"
    return {stream: matrix if stream == "context" else stream for stream in read}


def find_matrices(names: Iterable[str], config: FitConfig) -> set[str]:
    """The feature matrices that some heads need."""
    return {
        matrix
        for name in names
        for matrix in choose_streams(name, context=config.context, streams=config.streams).values()
    }


def build_head(
    name: str,
    n_classes: int,
    *,
    context: str = "own",
    streams: str = "context,face",
    shapes: Shapes = SHAPES,
    seed: int = 0,
) -> Head:
    """Build a head with weights drawn from the seed alone.

    Args:
        name: A key of ``HEADS``.
        n_classes: K.
        context: ``2x2``, ``7x7``, or ``own`` for what the head was published with.
        streams: Of ``cascade``: what it reads, in order.
        shapes: Of the store's feature matrices; the shipped networks' by default.
        seed: Of the weights; the global random state is neither read nor changed.

    Raises:
        ValueError: No such head, or no matrix that it reads.
    """
    if name not in HEADS:
        raise ValueError(f"no head {name!r}; known: {', '.join(HEADS)}")
    read = choose_streams(name, context=context, streams=streams)
    missing = set(read.values()) - set(shapes)
    if missing:
        raise ValueError(f"no {', '.join(sorted(missing))}; there are: {', '.join(shapes)}")
    head = HEADS[name].build({stream: shapes[at] for stream, at in read.items()}, n_classes)
    draw_weights(head, seed)
    return head


def count_parameters(head: Head) -> int:
    """Trainable numbers of one run."""
    return sum(p.numel() for p in head.parameters())


def _encode_each(shapes: Shapes) -> nn.ModuleDict:
    return nn.ModuleDict(
        {stream: Linear(math.prod(shape), SIZE) for stream, shape in shapes.items()}
    )
