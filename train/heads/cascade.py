"""The cascade of section III-D: RNNs in a row, each attending to the one before.

In the paper two of them, context then face (CACA-RNN A) or face then context (B); here any ordered
list of streams, where each stream after the first attends to its predecessor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from train.heads.layers import ByStream, Head, Linear, Lstm, Memory, Read, State, mask_steps


@dataclass(frozen=True, kw_only=True)
class Link:
    """One stream of a cascade."""

    stream: str
    n_in: int
    """Values a step."""
    n_layers: int
    """Of the stream's LSTM."""


class Cascade(Head):
    """Encode each stream, read them one after the other, classify the last RNN's last output.

    ::

        context  --Linear--> LSTM ----------------+
                              | states  | last    |
                              v         v state   |
        face     --Linear--> LSTM with attention --> last step --Linear--> logits
    """

    def __init__(self, links: Sequence[Link], size: int, n_classes: int) -> None:
        super().__init__()
        if len(links) < 2:
            raise ValueError("a cascade has two streams or more")
        self.streams = tuple(link.stream for link in links)
        self.encode = ByStream({link.stream: Linear(link.n_in, size) for link in links})
        self.rnn = ByStream(
            {
                link.stream: Lstm(size, size, link.n_layers, attention_size=size if i else 0)
                for i, link in enumerate(links)
            }
        )
        self.classify = Linear(size, n_classes)

    def read(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        read = self._read_streams(streams, n_steps)[-1]
        logits: Tensor = self.classify(read.state.hidden[-1])  # [*runs, B, K]
        return logits

    def attend(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> tuple[Tensor, ...]:
        """What each stream after the first looked at in the one before.

        Returns:
            For each of them [*runs, B, T_query, T_memory]: row i sums to 1 over the memory's real
            steps (Eq. 2); rows of padded query steps are 0.
        """
        reads = self._read_streams(self.scale(streams), n_steps)[1:]
        real = mask_steps(n_steps, reads[0].hidden.shape[-2])
        return tuple(read.attention * real.unsqueeze(-1) for read in reads)

    def _read_streams(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> list[Read]:
        reads: list[Read] = []
        for name in self.streams:
            x = self.encode[name](streams[name])  # [*runs, B, T, H]
            rnn = cast(Lstm, self.rnn[name])
            if not reads:
                reads.append(rnn(x, n_steps))
                continue
            before = reads[-1]
            memory = Memory(before.hidden, mask_steps(n_steps, x.shape[-2]))
            first = match_layers(before.state, rnn.n_layers)
            reads.append(rnn(x, n_steps, first=first, memory=memory))
        return reads


def match_layers(state: State, n_layers: int) -> State:
    """The last state of one RNN as the first state of another with ``n_layers`` layers.

    Equal depth: layer by layer. A deeper RNN gives its top layers; a shallower one gives its top
    layer to every layer that has no counterpart. The paper says only that one initiates the other::

        2 -> 1 layers (caca-a, caca-b): top > only
        1 -> 2 layers (caca):           only > bottom, only > top
    """
    depth = len(state.hidden)
    chosen = [min(layer + max(depth - n_layers, 0), depth - 1) for layer in range(n_layers)]
    return State(
        tuple(state.hidden[layer] for layer in chosen), tuple(state.cell[layer] for layer in chosen)
    )
