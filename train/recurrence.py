"""The LSTM recurrence over a whole sequence, with or without attention, for many runs at once.

Only what depends on the step before runs in the loop: inputs arrive projected, and the gradients
of the weights are one product over all steps. PyTorch's own LSTM has no run dimension and no place
for attention; without attention and with one run it is the oracle of the tests.

Sizes: S runs, T steps, B clips, H hidden values, U context steps, R = H, or 2H with attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Steps(NamedTuple):
    """What a recurrence computed at every step."""

    hidden: Tensor
    """[S, T, B, H]"""
    cell: Tensor
    """[S, T, B, H]"""
    attention: Tensor
    """[S, T, B, U] Weights over the context steps, carrying no gradient; U = 0 without."""


def run_recurrence(
    gates: Tensor,
    weight: Tensor,
    first_hidden: Tensor,
    first_cell: Tensor,
    memory: Tensor | None = None,
    memory_mask: Tensor | None = None,
) -> Steps:
    """Run an LSTM layer over all steps. Gates are in PyTorch's order: input, forget, cell, output.

    With ``memory`` each step first asks it with the hidden state of the step before, by dot product
    and softmax (Eq. 2), and reads the weighted sum (Eq. 3) beside that hidden state (Eq. 4, 5).
    Under autocast the products with ``weight`` run in autocast's type, the rest in float32.

    Args:
        gates: [S, T, B, 4H] Inputs times their weights plus both biases.
        weight: [S, 4H, R] From the attention vector (if any), then the hidden state, to the gates.
        first_hidden: [S, B, H]
        first_cell: [S, B, H]
        memory: [S, B, U, H] States of the RNN before in the cascade.
        memory_mask: [S, B, U] True where ``memory`` is a real step; one at least in each clip.
    """
    kind = gates.device.type
    product_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False):
        return Steps(
            *_Recurrence.apply(
                gates, weight, first_hidden, first_cell, memory, memory_mask, product_dtype
            )
        )


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        weight: Tensor,
        first_hidden: Tensor,
        first_cell: Tensor,
        memory: Tensor | None,
        memory_mask: Tensor | None,
        product_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_runs, n_steps, n_clips, n_gates = gates.shape
        size = n_gates // 4
        w = weight.to(product_dtype) if product_dtype else weight
        gates = gates.to(w.dtype)
        w_t = w.transpose(1, 2)  # [S, R, 4H]
        full = weight.dtype

        def buffer(*shape: int) -> Tensor:
            return torch.empty(n_runs, n_steps, n_clips, *shape, dtype=full, device=gates.device)

        acts, hidden, cell, cell_tanh = buffer(n_gates), buffer(size), buffer(size), buffer(size)
        read = buffer(weight.shape[2])  # [S, T, B, R] attention vector and hidden state
        n_memory = memory.shape[2] if memory is not None else 0
        attention = buffer(n_memory)
        blocked = None if memory_mask is None else ~memory_mask

        h, c = first_hidden, first_cell
        for t in range(n_steps):
            r = read[:, t]
            r[..., -size:] = h
            if memory is not None and blocked is not None:
                scores = torch.matmul(memory, h.unsqueeze(-1)).squeeze(-1)  # [S, B, U]
                a = attention[:, t]
                torch.softmax(scores.masked_fill_(blocked, -torch.inf), -1, out=a)
                r[..., :size] = torch.matmul(a.unsqueeze(-2), memory).squeeze(-2)
            act = acts[:, t]
            act.copy_(torch.baddbmm(gates[:, t], r.to(w.dtype), w_t))
            # tanh(x) = 2 sigmoid(2x) - 1: one sigmoid serves all gates, several times faster
            # on a CPU than torch.tanh.
            candidate = act[..., 2 * size : 3 * size]
            candidate.mul_(2)
            act.sigmoid_()
            candidate.mul_(2).sub_(1)
            i, f, g, o = act.chunk(4, -1)
            c = torch.mul(f, c, out=cell[:, t]).addcmul_(i, g)
            u = torch.mul(c, 2, out=cell_tanh[:, t]).sigmoid_().mul_(2).sub_(1)
            h = torch.mul(o, u, out=hidden[:, t])

        saved = (w, first_cell, acts, cell, cell_tanh, read, attention, memory)
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(attention)
        ctx.set_materialize_grads(True)
        return hidden, cell, attention

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_hidden: Tensor, d_cell: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        w, first_cell, acts, cell, cell_tanh, read, attention, memory = ctx.saved_tensors
        size = first_cell.shape[-1]
        n_steps = acts.shape[1]
        i, f, g, o = acts.chunk(4, -1)
        # What of each gate's derivative does not depend on later steps, for all steps at once.
        by_cell = o * (1 - cell_tanh.square())
        before = torch.cat([first_cell.unsqueeze(1), cell[:, :-1]], 1)
        local = torch.stack(  # [S, T, B, 4, H]
            [g * i * (1 - i), before * f * (1 - f), i * (1 - g.square()), cell_tanh * o * (1 - o)],
            -2,
        )
        d_gates = torch.empty_like(local)
        d_vector = torch.empty_like(cell) if memory is not None else None  # of the attention vector
        d_scores = torch.empty_like(attention)

        dh = torch.zeros_like(first_cell)
        dc = torch.zeros_like(first_cell)
        for t in range(n_steps - 1, -1, -1):
            dh = dh + d_hidden[:, t]
            dc = torch.addcmul(dc.add_(d_cell[:, t]), dh, by_cell[:, t])
            d = d_gates[:, t]
            torch.mul(local[:, t, :, :3], dc.unsqueeze(-2), out=d[:, :, :3])
            torch.mul(local[:, t, :, 3], dh, out=d[:, :, 3])
            dc = dc * f[:, t]
            dr = torch.bmm(d.flatten(-2).to(w.dtype), w).to(d.dtype)  # [S, B, R]
            dh = dr[..., -size:]
            if memory is not None and d_vector is not None:
                d_vector[:, t] = dr[..., :size]
                a = attention[:, t]
                da = torch.matmul(memory, dr[..., :size].unsqueeze(-1)).squeeze(-1)  # [S, B, U]
                ds = torch.mul(a, da - (a * da).sum(-1, keepdim=True), out=d_scores[:, t])
                dh = dh + torch.matmul(ds.unsqueeze(-2), memory).squeeze(-2)

        d_memory = None
        if d_vector is not None:
            asked = read[..., size:]
            d_memory = _sum_over_steps(attention, d_vector) + _sum_over_steps(d_scores, asked)
        d_gates = d_gates.flatten(-2)  # [S, T, B, 4H]
        flat = d_gates.flatten(1, 2).to(w.dtype)
        d_weight = torch.bmm(flat.transpose(1, 2), read.flatten(1, 2).to(w.dtype)).to(acts.dtype)
        return d_gates, d_weight, dh, dc, d_memory, None, None


def _sum_over_steps(weights: Tensor, values: Tensor) -> Tensor:
    """[S, T, B, U] and [S, T, B, H] to [S, B, U, H]: the outer products of each step, summed."""
    return torch.matmul(weights.permute(0, 2, 3, 1), values.transpose(1, 2))
