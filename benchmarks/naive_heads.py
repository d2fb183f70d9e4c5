"""The heads of Table I as ordinary PyTorch code: what fit's speed is compared with.

One run at a time, a loop of ``nn.LSTMCell`` over the steps, attention at each step, float32.
Layers, sizes and numbers of parameters are those of ``train.heads.build``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE = 128


def last_steps(outputs: list[Tensor], n_steps: Tensor) -> Tensor:
    """[T] x [B, H] to [B, H]: each clip's own last step."""
    return torch.stack(outputs, 1)[torch.arange(len(n_steps)), n_steps - 1]


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
    ) -> tuple[list[Tensor], list[Tensor]]:
        """x: [B, T, n_in]. Returns hidden and cell state of the top layer at every step."""
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
        return hidden, cell


class NaiveHead(nn.Module):
    """Any head of Table I, by name."""

    def __init__(self, name: str, n_classes: int) -> None:
        super().__init__()
        self.name = name
        sizes = {"context": 2048, "face": 512}
        self.streams = {
            "face": ["face"],
            "context": ["context"],
            "caca-b": ["face", "context"],
        }.get(name, ["context", "face"])
        encoded = 512 if name == "face" else SIZE
        self.encode = nn.ModuleDict({s: nn.Linear(sizes[s], encoded) for s in self.streams})
        if name in ("face", "context"):
            rnns = [CellRnn(encoded, 2 * SIZE, 2)]
        elif name == "concatenated":
            rnns = [CellRnn(2 * SIZE, 2 * SIZE, 2)]
        elif name == "parallel":
            rnns = [CellRnn(SIZE, SIZE, 2), CellRnn(SIZE, SIZE, 2)]
        else:
            rnns = [CellRnn(SIZE, SIZE, 2), CellRnn(SIZE, SIZE, 1, attends=True)]
        self.rnns = nn.ModuleList(rnns)
        self.classify = nn.Linear(SIZE if name.startswith("caca") else 2 * SIZE, n_classes)

    def forward(self, streams: dict[str, Tensor], n_steps: Tensor) -> Tensor:
        """streams: [B, T, D] each. Returns [B, K] logits."""
        x = [self.encode[name](streams[name]) for name in self.streams]
        mask = torch.arange(x[0].shape[1]) < n_steps.unsqueeze(1)
        if self.name.startswith("caca"):
            hidden, cell = self.rnns[0](x[0], None, None, mask)
            first = (last_steps(hidden, n_steps), last_steps(cell, n_steps))
            hidden, _ = self.rnns[1](x[1], first, torch.stack(hidden, 1), mask)
            return self.classify(last_steps(hidden, n_steps))
        if self.name == "concatenated":
            x = [torch.cat(x, 2)]
        last = [
            last_steps(rnn(of_stream, None, None, mask)[0], n_steps)
            for rnn, of_stream in zip(self.rnns, x, strict=True)
        ]
        return self.classify(torch.cat(last, 1))
