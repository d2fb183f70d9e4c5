"""An LSTM layer over a whole sequence, with or without attention, for many runs at once.

What the input gives to the gates is one large product over all steps, ahead of them; a step is one
product of the weights with what is known only then, the attention vector (if any) and the hidden
state of the step before. The gradients of the weights and of the input are products over all steps
too. PyTorch's own LSTM has no run dimension and no place for attention; without attention and with
one run it is the oracle of the tests.

Clips come last in memory, behind the values: so the gates of a step lie in whole blocks, which is
what makes the work between the products cheap, and the products need their weights in no other
order than they lie in.

Sizes: S runs, T steps, B clips, D input values, H hidden values, U context steps.
R = H, or 2H with attention: what a step reads beside its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

sigmoid_backward = torch.ops.aten.sigmoid_backward
"""(gradient of the output, output) -> gradient of the input, in one pass."""
tanh_backward = torch.ops.aten.tanh_backward
"""The same of tanh."""


BLOCK = 16
"""Numbers that a core multiplies at once: clips leave the recurrence so many at a time."""


class Weights(NamedTuple):
    """Of a layer, as ``torch.nn.LSTM`` has them: gates are input, forget, cell, output."""

    input: Tensor
    """[S, 4H, D + R - H] From the input, then the attention vector (if any), to the gates."""
    hidden: Tensor
    """[S, 4H, H]"""
    input_bias: Tensor
    """[S, 4H]"""
    hidden_bias: Tensor
    """[S, 4H]"""


class Steps(NamedTuple):
    """What a layer computed."""

    hidden: Tensor
    """[S, H, T, B] At every step, in the type of the products."""
    last_hidden: Tensor
    """[S, H, B] At each clip's last real step."""
    last_cell: Tensor
    """[S, H, B]"""
    attention: Tensor
    """[S, B, T, U] Weights over the context steps, carrying no gradient; U = 0 without."""


def run_recurrence(
    x: Tensor,
    n_steps: Tensor,
    weights: Weights,
    first: tuple[Tensor, Tensor] | None = None,
    memory: tuple[Tensor, Tensor] | None = None,
) -> Steps:
    """Run an LSTM layer over all steps.

    With ``memory`` each step first asks it with the hidden state of the step before, by dot product
    and softmax (Eq. 2), and reads the weighted sum (Eq. 3) beside that hidden state (Eq. 4, 5).
    Under autocast the products with the weights run in autocast's type, the rest in float32.

    Args:
        x: [S, D, T, B]
        n_steps: [S, B] True lengths, 1..T.
        weights: Of the layer.
        first: [S, H, B] each: hidden and cell state before the first step; None: zeros.
        memory: [S, B, U, H] states of the RNN before in the cascade, and [S, B, U], True where
            that is a real step; one at least in each clip.
    """
    kind = x.device.type
    full = weights.hidden.dtype
    product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else full
    if first is None:
        n_runs, _, size = weights.hidden.shape
        zeros = x.new_zeros(n_runs, size, x.shape[-1], dtype=full)
        first = (zeros, zeros)
    told = (*first, *(memory if memory is not None else (None, None)))
    with torch.autocast(kind, enabled=False):
        return Steps(*_Layer.apply(x, n_steps, *weights, *told, product, torch.is_grad_enabled()))


class _Layer(torch.autograd.Function):
    """Steps that touch little memory: what a step writes is still in the cache when it is read.

    Clips that have ended take no further part, as far as they stand behind those that go on.

    tanh(x) = 2 sigmoid(2x) - 1: with the cell gate's weights doubled one sigmoid serves all four
    gates, and so does its derivative; on a CPU this is several times faster than torch.tanh.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        n_steps: Tensor,
        w_input: Tensor,
        w_hidden: Tensor,
        b_input: Tensor,
        b_hidden: Tensor,
        first_hidden: Tensor,
        first_cell: Tensor,
        memory: Tensor | None,
        memory_mask: Tensor | None,
        product_dtype: torch.dtype,
        keeps_steps: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n_runs, n_in, n_padded, n_clips = x.shape
        size, full = w_hidden.shape[-1], w_hidden.dtype
        n_read = w_input.shape[-1] - n_in + size
        x = x.to(product_dtype).contiguous()
        w_x = w_hidden.new_empty(n_runs, 4 * size, n_in, dtype=product_dtype)
        w_read = w_hidden.new_empty(n_runs, 4 * size, n_read, dtype=product_dtype)
        w_x.copy_(w_input[:, :, :n_in])
        w_read[:, :, : n_read - size] = w_input[:, :, n_in:]
        w_read[:, :, n_read - size :] = w_hidden
        bias = (b_input + b_hidden).unsqueeze(2).to(product_dtype)
        for doubled in (w_x, w_read, bias):
            doubled[:, 2 * size : 3 * size] *= 2
        of_input = torch.baddbmm(bias, w_x, x.flatten(2)).view(n_runs, 4 * size, n_padded, n_clips)

        widths, has_end = _plan_steps(n_steps, n_padded)
        ends = _find_ends(n_steps, n_padded)
        last_hidden = first_cell.new_zeros(n_runs, size, n_clips)
        last_cell = torch.empty_like(last_hidden)
        n_memory = memory.shape[2] if memory is not None else 0
        attention = first_cell.new_zeros(n_runs, n_clips, n_padded, n_memory)
        asking = torch.empty(0)
        if memory is not None and memory_mask is not None:
            asked = memory.to(full).contiguous()
            asking = first_cell.new_zeros(n_runs, n_clips, n_padded if keeps_steps else 1, size)
            # 0 for a real step, minus infinity for another
            blocked = torch.zeros_like(memory_mask, dtype=full)
            blocked.masked_fill_(~memory_mask, -torch.inf)

        kept = widths if keeps_steps else widths[:1]
        # With attention: its vector, then the hidden state before.
        read = _Blocks(kept if memory is not None else [], n_runs, n_read, w_read)
        acts = _Blocks(kept, n_runs, 4 * size, first_cell)
        cell, cell_tanh = (_Blocks(kept, n_runs, size, first_cell) for _ in range(2))
        outputs = _Blocks(widths, n_runs, size, w_read)
        gates = w_read.new_empty(n_runs * 4 * size * n_clips)
        h, c, before = first_hidden, first_cell, first_hidden.to(product_dtype)
        for t, n in enumerate(widths):
            c, r = c[..., :n].contiguous(), before[..., :n].contiguous()
            if memory is not None:
                asked, blocked = asked[:, :n].contiguous(), blocked[:, :n]
                query = h[..., :n].transpose(1, 2).contiguous()  # [S, B, H]
                scores = _multiply_rows(query, asked.transpose(2, 3)).add_(blocked)
                a = torch.softmax(scores, -1)  # [S, B, U]
                attention[:, :n, t], asking[:, :n, t if keeps_steps else 0] = a, query
                both = read.see(t, n)
                both[:, : n_read - size] = _multiply_rows(a, asked).transpose(1, 2)
                both[:, n_read - size :] = r
                r = both
            gates_t = gates[: n_runs * 4 * size * n].view(n_runs, 4 * size, n)
            torch.baddbmm(of_input[:, :, t, :n], w_read, r, out=gates_t)
            act = acts.see(t, n).copy_(gates_t).sigmoid_()
            i, f, g, o = act.chunk(4, 1)  # g is (cell gate + 1) / 2
            c = torch.mul(f, c, out=cell.see(t, n)).addcmul_(i, g, value=2).sub_(i)
            u = torch.mul(c, 2, out=cell_tanh.see(t, n)).sigmoid_().mul_(2).sub_(1)
            h = torch.mul(o, u)
            before = outputs.see(t, n).copy_(h)
            if has_end[t]:
                last_hidden[..., :n] = torch.where(ends[t, ..., :n], h, last_hidden[..., :n])
                last_cell[..., :n] = torch.where(ends[t, ..., :n], c, last_cell[..., :n])

        hidden = outputs.join(n_padded, n_clips)
        ctx.save_for_backward(
            x, hidden, w_x, w_read, first_hidden, first_cell, attention, asking, memory, ends
        )
        ctx.blocks, ctx.has_end = (read, acts, cell, cell_tanh), has_end
        ctx.mark_non_differentiable(attention)
        ctx.set_materialize_grads(False)
        return hidden, last_hidden, last_cell, attention

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        d_hidden: Tensor | None,
        d_last_hidden: Tensor | None,
        d_last_cell: Tensor | None,
        _: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x, hidden, w_x, w_read, first_hidden, first_cell, *rest = ctx.saved_tensors
        attention, asking, memory, ends = rest
        read, acts, cell, cell_tanh = ctx.blocks
        widths = acts.widths
        n_runs, size, n_padded, n_clips = hidden.shape
        n_read = w_read.shape[2]
        w_t = w_read.new_empty(n_runs, n_read, 4 * size)
        for of_run, w in zip(w_t, w_read, strict=True):  # several times faster than all at once
            of_run.copy_(w.t())

        d_gates = _Blocks(widths, n_runs, 4 * size, w_read)
        d = torch.empty_like(acts.see(len(widths) - 1, widths[-1]))
        dh, dc = (first_cell.new_zeros(n_runs, size, widths[-1]) for _ in range(2))
        if d_hidden is not None:
            d_hidden = d_hidden.contiguous()
        if memory is not None:
            memory = memory.to(first_cell.dtype)
            d_vector = torch.zeros_like(asking)  # of the attention vector
            d_scores = torch.zeros_like(attention)
            asked = memory[:, : dh.shape[2]].contiguous()
        for t in range(len(widths) - 1, -1, -1):
            n = widths[t]
            act, u = acts.see(t, n), cell_tanh.see(t, n)
            if n > dh.shape[2]:
                wider = (0, n - dh.shape[2])
                dh, dc = nn.functional.pad(dh, wider), nn.functional.pad(dc, wider)
                d = torch.empty_like(act)
                asked = memory[:, :n].contiguous() if memory is not None else None
            if d_hidden is not None:
                dh.add_(d_hidden[:, :, t, :n])
            if ctx.has_end[t] and d_last_hidden is not None:
                dh.addcmul_(d_last_hidden[..., :n], ends[t, ..., :n])
            if ctx.has_end[t] and d_last_cell is not None:
                dc.addcmul_(d_last_cell[..., :n], ends[t, ..., :n])
            i, f, g, o = act.chunk(4, 1)
            d_i, d_f, d_g, d_o = d.chunk(4, 1)
            torch.mul(dh, u, out=d_o)
            dc.add_(tanh_backward(dh.mul_(o), u))
            torch.mul(dc, g, out=d_i).mul_(2).sub_(dc)
            c = cell.see(t - 1, widths[t - 1])[..., :n] if t else first_cell
            torch.mul(dc, c, out=d_f)
            torch.mul(dc, i, out=d_g).mul_(2)
            dc.mul_(f)
            d_step = d_gates.see(t, n).copy_(sigmoid_backward(d, act, grad_input=d))
            dr = torch.bmm(w_t, d_step)  # [S, R, B]
            dh.copy_(dr[:, n_read - size :])
            if memory is not None:
                dv = dr[:, : n_read - size].transpose(1, 2).to(dh.dtype)
                a = attention[:, :n, t]
                da = _multiply_rows(dv, asked.transpose(2, 3))  # [S, B, U]
                ds = a * (da - (a * da).sum(-1, keepdim=True))
                d_vector[:, :n, t], d_scores[:, :n, t] = dv, ds
                dh.add_(_multiply_rows(ds, asked).transpose(1, 2))

        d_memory = None
        if memory is not None:
            # Outer products [U, H], summed over the steps.
            d_memory = torch.matmul(attention.transpose(2, 3), d_vector)
            d_memory += torch.matmul(d_scores.transpose(2, 3), asking)
            all_read = read.join(n_padded, n_clips)
        else:
            first = first_hidden.to(hidden.dtype).unsqueeze(2)
            all_read = torch.cat([first, hidden[:, :, :-1]], 2)
        all_d = d_gates.join(n_padded, n_clips).flatten(2)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = torch.bmm(w_x.transpose(1, 2), all_d).view_as(x)
        by_x, by_read = (
            torch.bmm(all_d, part.flatten(2).transpose(1, 2)) for part in (x, all_read)
        )
        d_bias = torch.bmm(all_d, all_d.new_ones(n_runs, all_d.shape[2], 1)).squeeze(2)
        by_vector, by_hidden = by_read.split_with_sizes([n_read - size, size], 2)
        d_input = torch.cat([by_x, by_vector], 2)
        d_weights = [part.to(first_cell.dtype) for part in (d_input, by_hidden, d_bias)]
        for doubled in d_weights:  # as the weights of the cell gate were
            doubled[:, 2 * size : 3 * size] *= 2
        return d_x, None, *d_weights, d_weights[-1], dh, dc, d_memory, None, None, None


class _Blocks:
    """Values of all steps, those of a step in one piece: [S, N, B], B counts the clips that go on.

    Made for a single step, it is the same piece for every step.
    """

    def __init__(self, widths: Sequence[int], n_runs: int, n_values: int, like: Tensor) -> None:
        """widths: [T] each step's B; n_values: N; like: gives type and device."""
        self.widths, self._shape = widths, (n_runs, n_values)
        self._begin = [0, *accumulate(n_runs * n_values * n for n in widths)]
        self._flat = like.new_empty(self._begin[-1])

    def see(self, step: int, n: int) -> Tensor:
        """A step's [S, N, B]; n: its B."""
        begin = self._begin[step] if len(self.widths) > 1 else 0
        n_runs, n_values = self._shape
        return self._flat[begin : begin + n_runs * n_values * n].view(n_runs, n_values, n)

    def join(self, n_padded: int, n_clips: int) -> Tensor:
        """[S, N, n_padded, n_clips] Zero where a clip or step is left out."""
        n_runs, n_values = self._shape
        is_whole = self.widths == [n_clips] * n_padded
        make = self._flat.new_empty if is_whole else self._flat.new_zeros
        joined, step = make(n_runs, n_values, n_padded, n_clips), 0
        for n, like in groupby(self.widths):
            end = step + len(list(like))
            part = self._flat[self._begin[step] : self._begin[end]].view(-1, *self._shape, n)
            joined[:, :, step:end, :n] = part.permute(1, 2, 0, 3)
            step = end
        return joined


def _plan_steps(n_steps: Tensor, n_padded: int) -> tuple[list[int], list[bool]]:
    """For each step, how many of the first clips hold all that go on, and whether any ends there.

    Where clips stand longest first, little is wasted on padding; ``BLOCK`` clips take as long as
    fewer. On a GPU every step takes all clips: to learn the lengths is to wait for it.
    """
    n_clips = n_steps.shape[1]
    if n_steps.device.type != "cpu":
        return [n_clips] * n_padded, [True] * n_padded
    goes_on = n_steps.amax(0) > torch.arange(n_padded).unsqueeze(1)  # [T, B] in any run
    widths = (goes_on * torch.arange(1, n_clips + 1)).amax(1)
    ends = torch.bincount(n_steps.flatten() - 1, minlength=n_padded)
    blocks = (-(-widths // BLOCK) * BLOCK).clamp(max=n_clips)
    # Steps behind the end of all clips have none.
    return [n for n in blocks.tolist() if n], [n > 0 for n in ends.tolist()]


def _find_ends(n_steps: Tensor, n_padded: int) -> Tensor:
    """[S, B] lengths to [T, S, 1, B]: True at each clip's last real step."""
    step = torch.arange(1, n_padded + 1, device=n_steps.device)
    return (n_steps == step.view(-1, 1, 1)).unsqueeze(2)


def _multiply_rows(rows: Tensor, matrices: Tensor) -> Tensor:
    """[S, B, N] rows times [S, B, N, M] matrices: [S, B, M].

    As a row on the left: MKL takes several times longer for the same as a column on the right.
    """
    *many, n, m = matrices.shape
    return torch.bmm(rows.reshape(-1, 1, n), matrices.reshape(-1, n, m)).view(*many, m)
