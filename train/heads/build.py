"""The recurrent heads of section IV, and how any head of ``train.streams.HEADS`` is built.

Layers and sizes follow Table I's parameter counts to the digit (see docs/models.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from train.heads.cascade import Cascade, Link
from train.heads.conv2d3d import Conv2d3d
from train.heads.layers import ByStream, Head, Linear, Lstm, draw_weights
from train.heads.standardise import Standardise
from train.streams import HEADS, MATRICES, NETWORKS, HeadSpec, Matrices, Shapes, choose_streams

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

    def read(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        x = self.encode(streams[self.streams[0]])  # [*runs, B, T, n_encoded]
        logits: Tensor = self.classify(self.rnn(x, n_steps).state.hidden[-1])  # [*runs, B, K]
        return logits


class ParallelRnn(Head):
    """Parallel-RNN (Fig. 3b): a recurrent branch a stream, their last outputs classified as one."""

    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.streams = tuple(shapes)
        self.encode = _encode_each(shapes)
        self.rnn = ByStream({stream: Lstm(SIZE, SIZE, 2) for stream in shapes})
        self.classify = Linear(len(shapes) * SIZE, n_classes)

    def read(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        last = [
            self.rnn[name](self.encode[name](streams[name]), n_steps).state.hidden[-1]
            for name in self.streams
        ]
        logits: Tensor = self.classify(torch.cat(last, -1))  # [*runs, B, K]
        return logits


class ConcatenatedRnn(Head):
    """Concatenated-RNN (Fig. 3c): the streams side by side at each step, in one RNN."""

    def __init__(self, shapes: Shapes, n_classes: int) -> None:
        super().__init__()
        self.streams = tuple(shapes)
        self.encode = _encode_each(shapes)
        self.rnn = Lstm(len(shapes) * SIZE, 2 * SIZE, 2)
        self.classify = Linear(2 * SIZE, n_classes)

    def read(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        # Joined as they lie in memory, the values first.
        parts = [self.encode[name](streams[name]).transpose(-3, -1) for name in self.streams]
        x = torch.cat(parts, -3).transpose(-3, -1)  # [*runs, B, T, streams x SIZE]
        logits: Tensor = self.classify(self.rnn(x, n_steps).state.hidden[-1])  # [*runs, B, K]
        return logits


def _build_single(spec: HeadSpec, shapes: Shapes, n_classes: int) -> Head:
    ((stream, shape),) = shapes.items()
    n_in = math.prod(shape)
    n_encoded = min(n_in, spec.most_encoded) if spec.most_encoded else SIZE
    return SingleRnn(stream, n_in, n_encoded, n_classes)


def _build_cascade(spec: HeadSpec, shapes: Shapes, n_classes: int) -> Head:
    links = [
        Link(stream=name, n_in=math.prod(shape), n_layers=spec.layers[min(i, 1)])
        for i, (name, shape) in enumerate(shapes.items())
    ]
    return Cascade(links, SIZE, n_classes)


def _build_conv2d3d(spec: HeadSpec, shapes: Shapes, n_classes: int) -> Head:
    ((stream, shape),) = shapes.items()
    return Conv2d3d(stream, shape, n_classes)


KINDS: Mapping[str, Callable[[HeadSpec, Shapes, int], Head]] = MappingProxyType(
    {
        "single": _build_single,
        "parallel": lambda _, shapes, k: ParallelRnn(shapes, k),
        "concatenated": lambda _, shapes, k: ConcatenatedRnn(shapes, k),
        "cascade": _build_cascade,
        "conv2d3d": _build_conv2d3d,
    }
)
"""Kind of a head -> (its row of the table, shapes by stream, number of classes) to a head whose
weights are not drawn yet."""


def build_head(
    name: str,
    n_classes: int,
    *,
    context: str = "own",
    streams: str = "own",
    matrices: Matrices = MATRICES,
    standardise: bool = False,
    seed: int = 0,
) -> Head:
    """Build a head with weights drawn from the seed alone.

    Args:
        name: One of ``train.streams.NETWORKS``.
        n_classes: K.
        context: ``2x2``, ``7x7``, or ``own`` for what the head was published with.
        streams: What it reads, in order, as ``train.streams.choose_streams`` takes it.
        matrices: Of the store; those of the shipped networks by default.
        standardise: Whether the head has a place for the statistics of its streams.
        seed: Of the weights; the global random state is neither read nor changed.

    Raises:
        ValueError: No such head, or no matrix that it reads.
    """
    if name not in NETWORKS:
        raise ValueError(f"no head {name!r}; known: {', '.join(NETWORKS)}")
    read = choose_streams(name, context=context, streams=streams, matrices=matrices)
    missing = set(read.values()) - set(matrices)
    if missing:
        raise ValueError(f"no {', '.join(sorted(missing))}; there are: {', '.join(matrices)}")
    shapes = {stream: matrices[at].shape for stream, at in read.items()}
    head = shape_head(name, shapes, n_classes, standardise=standardise)
    draw_weights(head, seed)
    return head


def shape_head(name: str, shapes: Shapes, n_classes: int, *, standardise: bool = False) -> Head:
    """A head whose weights are not drawn yet.

    Args:
        name: One of ``train.streams.NETWORKS``.
        shapes: What it reads, in order: as many streams as ``train.streams.can_read`` allows.
        n_classes: K.
        standardise: As of ``build_head``.
    """
    spec = HEADS[name]
    head = KINDS[spec.kind](spec, shapes, n_classes)
    if standardise:
        for stream, shape in shapes.items():
            head.standardise[stream] = Standardise(math.prod(shape))
    return head


def count_parameters(head: Head) -> int:
    """Trainable numbers of one run."""
    return sum(p.numel() for p in head.parameters())


def _encode_each(shapes: Shapes) -> ByStream:
    return ByStream({stream: Linear(math.prod(shape), SIZE) for stream, shape in shapes.items()})
