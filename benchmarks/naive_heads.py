"""The heads of Table I as ordinary PyTorch code: what fit's speed is compared with.

One run at a time, float32: a loop of ``nn.LSTMCell`` over the steps, attention at each step; or,
for heads without attention, one call of ``nn.LSTM``. Layers, sizes and numbers of parameters are
those of ``train.heads.build``.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from train.streams import HEADS

SIZE = 128


RNNS = ("LSTMCell", "LSTM")
"""Modules of ``torch.nn`` that a head is made of."""


def may_be_made_of(name: str, rnn: str) -> bool:
    """Attention asks at each step, so such heads are a loop."""
    return rnn == "LSTMCell" or not name.startswith("caca")


def last_steps(outputs: Tensor, n_steps: Tensor) -> Tensor:
    """[B, T, H] to [B, H]: each clip's own last step."""
    return outputs[torch.arange(len(n_steps)), n_steps - 1]


class CellRnn(nn.Module):
    """Layers of LSTMCell, the first of which may attend to another RNN's states."""

    def __init__(self, n_in: int, size: int, n_layers: int, *, attends: bool = False) -> None:
        super().__init__()
        self.size, self.attends = size, attends
        first = n_in + size if attends else n_in
        self.cells = nn.ModuleList(
            nn.LSTMCell(size if layer else first, size) for layer in range(n_layers)
        )

    def forward(
        self, x: Tensor, first: tuple[Tensor, Tensor] | None, memory: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """x: [B, T, n_in]. Returns the top layer's hidden states [B, T, H], and its cell states,
        one a step."""
        zeros = x.new_zeros(len(x), self.size)
        states = [first or (zeros, zeros) for _ in self.cells]
        hidden, cell = [], []
        for t in range(x.shape[1]):
            out = x[:, t]
            if memory is not None:
                scores = torch.bmm(memory, states[0][0].unsqueeze(2)).squeeze(2)  # [B, T]
                weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), 1)
                read = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)  # [B, H]
                out = torch.cat([out, read], 1)
            for layer, of_layer in enumerate(self.cells):
                states[layer] = of_layer(out, states[layer])
                out = states[layer][0]
            hidden.append(states[-1][0])
            cell.append(states[-1][1])
        return torch.stack(hidden, 1), cell


class WholeRnn(nn.LSTM):
    """The same layers without attention, a whole sequence at a time."""

    def forward(
        self, x: Tensor, first: None, memory: None, mask: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        return super().forward(x)[0], []


class NaiveHead(nn.Module):
    """Any head of Table I, by name."""

    def __init__(self, name: str, n_classes: int, rnn: str = "LSTMCell") -> None:
        super().__init__()
        self.name = name
        sizes = {"context": 2048, "face": 512}
        self.streams = HEADS[name].streams
        encoded = 512 if name == "face" else SIZE
        self.encode = nn.ModuleDict({s: nn.Linear(sizes[s], encoded) for s in self.streams})
        sizes = {"parallel": [(SIZE, SIZE)] * 2, "concatenated": [(2 * SIZE, 2 * SIZE)]}
        if name.startswith("caca"):
            rnns = [CellRnn(SIZE, SIZE, 2), CellRnn(SIZE, SIZE, 1, attends=True)]
        else:
            made = CellRnn if rnn == "LSTMCell" else partial(WholeRnn, batch_first=True)
            rnns = [made(n_in, size, 2) for n_in, size in sizes.get(name, [(encoded, 2 * SIZE)])]
        self.rnns = nn.ModuleList(rnns)
        self.classify = nn.Linear(SIZE if name.startswith("caca") else 2 * SIZE, n_classes)

    def forward(self, streams: dict[str, Tensor], n_steps: Tensor) -> Tensor:
        """streams: [B, T, D] each. Returns [B, K] logits."""
        x = [self.encode[name](streams[name]) for name in self.streams]
        mask = torch.arange(x[0].shape[1]) < n_steps.unsqueeze(1)
        if self.name.startswith("caca"):
            hidden, cell = self.rnns[0](x[0], None, None, mask)
            first = (last_steps(hidden, n_steps), last_steps(torch.stack(cell, 1), n_steps))
            hidden, _ = self.rnns[1](x[1], first, hidden, mask)
            return self.classify(last_steps(hidden, n_steps))
        if self.name == "concatenated":
            x = [torch.cat(x, 2)]
        last = [
            last_steps(rnn(of_stream, None, None, mask)[0], n_steps)
            for rnn, of_stream in zip(self.rnns, x, strict=True)
        ]
        return self.classify(torch.cat(last, 1))
