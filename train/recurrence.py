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

sigmoid_backward = torch.ops.aten.sigmoid_backward
"""(gradient of the output, output) -> gradient of the input, in one pass."""
tanh_backward = torch.ops.aten.tanh_backward
"""The same of tanh."""


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
    """Steps that touch little memory: what a step writes is still in the cache when it is read.

    tanh(x) = 2 sigmoid(2x) - 1: with the cell gate's input doubled one sigmoid serves all four
    gates, and so does its derivative; on a CPU this is several times faster than torch.tanh.
    """

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
        size, full = n_gates // 4, weight.dtype
        w = weight.to(product_dtype) if product_dtype else weight
        gates = gates.to(w.dtype)
        w_t = w.transpose(1, 2)  # [S, R, 4H]

        def buffer(*shape: int, dtype: torch.dtype = full) -> Tensor:
            return torch.empty(n_runs, n_steps, n_clips, *shape, dtype=dtype, device=gates.device)

        acts, hidden, cell, cell_tanh = buffer(n_gates), buffer(size), buffer(size), buffer(size)
        # [S, T, B, R] attention vector and hidden state
        read = buffer(weight.shape[2], dtype=w.dtype)
        n_memory = memory.shape[2] if memory is not None else 0
        attention = buffer(n_memory)
        if memory is not None and memory_mask is not None:
            memory = memory.contiguous()
            # 0 for a real step, minus infinity for another
            blocked = torch.zeros_like(memory_mask, dtype=full)
            blocked.masked_fill_(~memory_mask, -torch.inf)

        h, c = first_hidden, first_cell
        for t in range(n_steps):
            r = read[:, t]
            r[..., -size:] = h
            if memory is not None:
                scores = _multiply_rows(h, memory.transpose(2, 3)).add_(blocked)  # [S, B, U]
                a = torch.softmax(scores, -1, out=attention[:, t])
                r[..., :size] = _multiply_rows(a, memory)
            act = acts[:, t].copy_(torch.baddbmm(gates[:, t], r, w_t))
            i, f, g, o = act.chunk(4, -1)
            g.mul_(2)
            act.sigmoid_()  # g is now (cell gate + 1) / 2
            c = torch.mul(f, c, out=cell[:, t]).addcmul_(i, g, value=2).sub_(i)
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
        n_runs, n_steps, n_clips, n_gates = acts.shape
        size = n_gates // 4
        d_gates = torch.empty_like(acts, dtype=w.dtype)
        d_vector = torch.empty_like(cell) if memory is not None else None  # of the attention vector
        d_scores = torch.empty_like(attention)

        d = torch.empty(n_runs, n_clips, n_gates, dtype=acts.dtype, device=acts.device)
        d_i, d_f, d_g, d_o = d.chunk(4, -1)
        dh = torch.zeros_like(first_cell)
        dc = torch.zeros_like(first_cell)
        for t in range(n_steps - 1, -1, -1):
            i, f, g, o = acts[:, t].chunk(4, -1)
            u = cell_tanh[:, t]
            dh = dh + d_hidden[:, t]
            dc.add_(d_cell[:, t]).add_(tanh_backward(dh * o, u))
            torch.mul(dc, g, out=d_i).mul_(2).sub_(dc)
            torch.mul(dc, cell[:, t - 1] if t else first_cell, out=d_f)
            torch.mul(dc, i, out=d_g).mul_(4)  # 2 for g, 2 for its doubled input
            torch.mul(dh, u, out=d_o)
            dc = dc * f
            d_step = d_gates[:, t].copy_(sigmoid_backward(d, acts[:, t]))
            dr = torch.bmm(d_step, w).to(d.dtype)  # [S, B, R]
            dh = dr[..., -size:]
            if memory is not None and d_vector is not None:
                dv = d_vector[:, t].copy_(dr[..., :size])
                a = attention[:, t]
                da = _multiply_rows(dv, memory.transpose(2, 3))  # [S, B, U]
                ds = torch.mul(a, da - (a * da).sum(-1, keepdim=True), out=d_scores[:, t])
                dh = dh + _multiply_rows(ds, memory)

        d_memory = None
        if d_vector is not None:
            asked = read[..., size:].to(attention.dtype)
            d_memory = _sum_over_steps(attention, d_vector) + _sum_over_steps(d_scores, asked)
        d_weight = torch.bmm(d_gates.flatten(1, 2).transpose(1, 2), read.flatten(1, 2))
        return d_gates, d_weight.to(acts.dtype), dh, dc, d_memory, None, None


def _multiply_rows(rows: Tensor, matrices: Tensor) -> Tensor:
    """[S, B, N] rows times [S, B, N, M] matrices: [S, B, M].

    As a row on the left: MKL takes several times longer for the same as a column on the right.
    """
    *many, n, m = matrices.shape
    return torch.bmm(rows.reshape(-1, 1, n), matrices.reshape(-1, n, m)).view(*many, m)


def _sum_over_steps(weights: Tensor, values: Tensor) -> Tensor:
    """[S, T, B, U] and [S, T, B, H] to [S, B, U, H]: the outer products of each step, summed."""
    return torch.matmul(weights.permute(0, 2, 3, 1), values.transpose(1, 2))
