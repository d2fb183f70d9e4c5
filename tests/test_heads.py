"""Heads: sizes to the digit, padding, runs side by side, and PyTorch's LSTM as the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from train.config import HEAD_NAMES, TABLE_1_HEADS
from train.heads import HEADS, build_head, count_parameters
from train.layers import Linear, Lstm, draw_weights, read_run_state, stack_runs

N_CLASSES = 8
TABLE_1_PARAMETERS = {
    "face": 1_579_528,
    "context": 1_185_928,
    "parallel": 858_376,
    "concatenated": 1_382_664,
    "caca-a": 790_792,
    "caca-b": 790_792,
}


def make_inputs(n_steps: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Context [B, T, 2048] and face [B, T, 512], zero-padded, and lengths [B]."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(n_steps)
    real = (torch.arange(max(n_steps)) < lengths[:, None])[..., None]
    shape = (len(n_steps), max(n_steps))
    context = torch.rand(*shape, 2048, generator=rng) * real
    face = torch.rand(*shape, 512, generator=rng) * real
    return context, face, lengths


def pad(x: Tensor, n_more: int) -> Tensor:
    return torch.cat([x, x.new_full((x.shape[0], n_more, x.shape[2]), 7.0)], 1)


@pytest.mark.parametrize(("name", "expected"), TABLE_1_PARAMETERS.items())
def test_parameter_counts_are_those_of_table_1(name: str, expected: int) -> None:
    assert count_parameters(build_head(name, N_CLASSES, context="2x2")) == expected


def test_the_submitted_head_reads_25088_context_values() -> None:
    head = build_head("caca", N_CLASSES)
    assert dict(head.named_parameters())["encode.context.weight"].shape == (128, 25088)
    assert count_parameters(head) == 3_739_912


def test_every_name_that_can_be_asked_for_can_be_built() -> None:
    assert tuple(HEADS) == HEAD_NAMES
    assert set(TABLE_1_HEADS) == set(TABLE_1_PARAMETERS)
    with pytest.raises(ValueError, match="no head 'cacao'"):
        build_head("cacao", N_CLASSES)


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_more_padding_gives_the_same_logits(name: str) -> None:
    head = build_head(name, N_CLASSES, context="2x2")
    context, face, n_steps = make_inputs([3, 1, 5])
    logits = head(context, face, n_steps)
    padded = head(pad(context, 4), pad(face, 4), n_steps)
    torch.testing.assert_close(padded, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_a_clip_is_scored_the_same_alone_as_in_a_batch(name: str) -> None:
    head = build_head(name, N_CLASSES, context="2x2")
    context, face, n_steps = make_inputs([3, 5])
    alone = head(context[:1, :3], face[:1, :3], n_steps[:1])
    torch.testing.assert_close(alone, head(context, face, n_steps)[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_runs_side_by_side_give_the_logits_and_gradients_of_single_runs(name: str) -> None:
    heads = [build_head(name, N_CLASSES, context="2x2", seed=seed) for seed in (1, 2)]
    stacked = stack_runs(heads)
    inputs = [make_inputs([2, 4], seed=seed) for seed in (5, 6)]
    together = stacked(*(torch.stack(parts) for parts in zip(*inputs, strict=True)))
    together.square().sum().backward()
    for run, (head, own) in enumerate(zip(heads, inputs, strict=True)):
        logits = head(*own)
        torch.testing.assert_close(together[run], logits, rtol=1e-5, atol=1e-6)
        logits.square().sum().backward()
        for name_, parameter in stacked.named_parameters():
            own_grad = head.get_parameter(name_).grad
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad[run], own_grad, rtol=1e-4, atol=1e-6)


def test_a_run_leaves_the_stack_with_the_names_and_values_it_went_in_with() -> None:
    heads = [build_head("caca-a", 3, seed=seed) for seed in (1, 2)]
    state = read_run_state(stack_runs(heads), 1)
    fresh = build_head("caca-a", 3, seed=9)
    fresh.load_state_dict(state)
    assert all(torch.equal(p, heads[1].state_dict()[name]) for name, p in state.items())


def test_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_head("parallel", 3, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.encode["face"].weight, again.encode["face"].weight)
    assert not torch.equal(first.encode["face"].weight, other.encode["face"].weight)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_lstm_is_pytorchs_in_values_and_gradients(n_layers: int) -> None:
    ours = Lstm(6, 5, n_layers).double()
    draw_weights(ours, 0)
    oracle = nn.LSTM(6, 5, n_layers, batch_first=True).double()
    oracle.load_state_dict(ours.state_dict())
    x = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    read = ours(x, torch.tensor([4, 4, 4]))
    expected, (hidden, cell) = oracle(x)
    torch.testing.assert_close(read.hidden, expected)
    torch.testing.assert_close(torch.stack(read.state.hidden), hidden)
    torch.testing.assert_close(torch.stack(read.state.cell), cell)
    (read.hidden.square().sum() + torch.stack(read.state.cell).sum()).backward()
    (expected.square().sum() + cell.sum()).backward()
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad)


def test_the_linear_layer_is_pytorchs() -> None:
    ours = Linear(4, 3)
    draw_weights(ours, 0)
    oracle = nn.Linear(4, 3)
    oracle.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), oracle(x))


def test_bfloat16_products_give_nearly_the_logits_of_float32() -> None:
    head = build_head("caca-a", N_CLASSES)
    inputs = make_inputs([6, 4])
    exact = head(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(*inputs)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.02)
