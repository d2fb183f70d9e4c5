"""The heads of section IV and the registry that builds any head by name.

Layers and sizes follow Table I's parameter counts to the digit (see docs/models.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from features.contracts import CONTEXT_CHANNELS, FACE_VECTOR_SIZE
from train.cascade import Cascade, Link
from train.layers import Head, Linear, Lstm, draw_weights

CONTEXT_SIZES: Mapping[str, int] = MappingProxyType(
    {"2x2": CONTEXT_CHANNELS * 2 * 2, "7x7": CONTEXT_CHANNELS * 7 * 7}
)
"""Context values a step by pooling grid: 2,048 and 25,088."""

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

    def __init__(self, context_size: int, n_classes: int) -> None:
        super().__init__()
        self.encode = _encode_both(context_size)
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

    def __init__(self, context_size: int, n_classes: int) -> None:
        super().__init__()
        self.encode = _encode_both(context_size)
        self.rnn = Lstm(2 * SIZE, 2 * SIZE, 2)
        self.classify = Linear(2 * SIZE, n_classes)

    def score(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        x = torch.cat([self.encode[name](streams[name]) for name in self.streams], -1)
        logits: Tensor = self.classify(self.rnn(x, n_steps).state.hidden[-1])  # [*runs, B, K]
        return logits


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """How to build a head, and what it reads."""

    build: Callable[[int, int], Head]
    """(context size, number of classes) to a head whose weights are not drawn yet."""
    context_grid: str
    """The pooling of the context features that the head was published with."""
    reads_context: bool = True
    """False for a head that needs no context features at all."""


def _cascade(*streams: str, n_layers: tuple[int, int]) -> Callable[[int, int], Head]:
    def build(context_size: int, n_classes: int) -> Head:
        sizes = {"context": context_size, "face": FACE_VECTOR_SIZE}
        links = [
            Link(stream=name, n_in=sizes[name], n_layers=depth)
            for name, depth in zip(streams, n_layers, strict=True)
        ]
        return Cascade(links, SIZE, n_classes)

    return build


HEADS: Mapping[str, HeadSpec] = MappingProxyType(
    {
        "face": HeadSpec(
            build=lambda _, k: SingleRnn("face", FACE_VECTOR_SIZE, FACE_VECTOR_SIZE, k),
            context_grid="2x2",
            reads_context=False,
        ),
        "context": HeadSpec(
            build=lambda c, k: SingleRnn("context", c, SIZE, k), context_grid="2x2"
        ),
        "parallel": HeadSpec(build=ParallelRnn, context_grid="2x2"),
        "concatenated": HeadSpec(build=ConcatenatedRnn, context_grid="2x2"),
        "caca-a": HeadSpec(build=_cascade("context", "face", n_layers=(2, 1)), context_grid="2x2"),
        "caca-b": HeadSpec(build=_cascade("face", "context", n_layers=(2, 1)), context_grid="2x2"),
        "caca": HeadSpec(build=_cascade("context", "face", n_layers=(1, 2)), context_grid="7x7"),
    }
)
"""Every head by name, in the order of the tables."""


def choose_grid(name: str, context: str = "own") -> str:
    """The pooling grid a head reads: what the setting says, or what it was published with."""
    return HEADS[name].context_grid if context == "own" else context


def find_grids(names: Iterable[str], context: str = "own") -> set[str]:
    """The pooling grids of context features that some heads need; empty if none reads any."""
    return {choose_grid(name, context) for name in names if HEADS[name].reads_context}


def build_head(name: str, n_classes: int, *, context: str = "own", seed: int = 0) -> Head:
    """Build a head with weights drawn from the seed alone.

    Args:
        name: A key of ``HEADS``.
        n_classes: K.
        context: ``2x2``, ``7x7``, or ``own`` for what the head was published with.
        seed: Of the weights; the global random state is neither read nor changed.

    Raises:
        ValueError: No such head or grid.
    """
    if name not in HEADS:
        raise ValueError(f"no head {name!r}; known: {', '.join(HEADS)}")
    grid = choose_grid(name, context)
    if grid not in CONTEXT_SIZES:
        raise ValueError(f"no context grid {grid!r}; known: {', '.join(CONTEXT_SIZES)}")
    head = HEADS[name].build(CONTEXT_SIZES[grid], n_classes)
    draw_weights(head, seed)
    return head


def count_parameters(head: Head) -> int:
    """Trainable numbers of one run."""
    return sum(p.numel() for p in head.parameters())


def _encode_both(context_size: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"context": Linear(context_size, SIZE), "face": Linear(FACE_VECTOR_SIZE, SIZE)}
    )
