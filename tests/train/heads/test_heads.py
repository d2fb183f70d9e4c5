"""Heads: sizes to the digit, padding, runs side by side, and PyTorch's LSTM as the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from train.heads.build import build_head, count_parameters
from train.heads.cascade import Cascade
from train.heads.layers import Conv, Linear, Lstm, draw_weights, read_run_state, stack_runs
from train.streams import NETWORKS, TABLE_1_HEADS, MatrixSpec, choose_streams

N_CLASSES = 8
TABLE_1_PARAMETERS = {
    "face": 1_579_528,
    "context": 1_185_928,
    "parallel": 858_376,
    "concatenated": 1_382_664,
    "caca-a": 790_792,
    "caca-b": 790_792,
}


SIZES = {"context": 2048, "face": 512, "face_map": 512 * 7 * 7}


def make_inputs(n_steps: list[int], *, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Every stream [B, T, .], zero-padded, and lengths [B]."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(n_steps)
    real = (torch.arange(max(n_steps)) < lengths[:, None])[..., None]
    shape = (len(n_steps), max(n_steps))
    streams = {name: torch.rand(*shape, n, generator=rng) * real for name, n in SIZES.items()}
    return streams, lengths


def pad(streams: dict[str, Tensor], n_more: int) -> dict[str, Tensor]:
    """The same with more steps behind, which hold anything but zeros."""
    return {
        name: torch.cat([x, x.new_full((x.shape[0], n_more, x.shape[2]), 7.0)], 1)
        for name, x in streams.items()
    }


def stack_inputs(
    inputs: list[tuple[dict[str, Tensor], Tensor]],
) -> tuple[dict[str, Tensor], Tensor]:
    streams = {name: torch.stack([own[name] for own, _ in inputs]) for name in SIZES}
    return streams, torch.stack([n_steps for _, n_steps in inputs])


@pytest.mark.parametrize(("name", "expected"), TABLE_1_PARAMETERS.items())
def test_parameter_counts_are_those_of_table_1(name: str, expected: int) -> None:
    assert count_parameters(build_head(name, N_CLASSES, context="2x2")) == expected


def test_the_submitted_head_reads_25088_context_values() -> None:
    head = build_head("caca", N_CLASSES)
    assert dict(head.named_parameters())["encode.context.weight"].shape == (128, 25088)
    assert count_parameters(head) == 3_739_912


def test_the_counts_of_the_other_heads_are_those_of_the_documentation() -> None:
    assert count_parameters(build_head("conv2d3d", N_CLASSES)) == 99_976
    for streams, same in (("context,face", "caca-a"), ("face,context", "caca-b")):
        cascade = build_head("cascade", N_CLASSES, streams=streams)
        twin = build_head(same, N_CLASSES)
        assert count_parameters(cascade) == TABLE_1_PARAMETERS[same]
        assert {n: p.shape for n, p in cascade.named_parameters()} == {
            n: p.shape for n, p in twin.named_parameters()
        }


def test_sizes_come_from_the_store() -> None:
    shapes = {"context_2x2": (512, 2, 2), "face": (96,), "audio": (40,), "face_map": (64, 5, 3)}
    matrices = {name: MatrixSpec(shape=shape) for name, shape in shapes.items()}
    cascade = build_head("cascade", 3, streams="audio,face,context", matrices=matrices)
    assert isinstance(cascade, Cascade)
    assert cascade.encode["audio"].weight.shape == (128, 40)
    assert cascade.rnn["audio"].n_layers == 2
    conv = build_head("conv2d3d", 3, matrices=matrices)
    logits = conv.score({"face_map": torch.rand(2, 4, 64 * 5 * 3)}, torch.tensor([4, 1]))
    assert logits.shape == (2, 3)
    with pytest.raises(ValueError, match="no pose; there are: context_2x2, face, audio, face_map"):
        build_head("cascade", 3, streams="pose,face", matrices=matrices)


def test_every_head_of_the_table_reads_the_streams_it_names() -> None:
    for name in NETWORKS:
        assert build_head(name, N_CLASSES).streams == tuple(choose_streams(name))
    assert set(TABLE_1_HEADS) == set(TABLE_1_PARAMETERS)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match="no head 'cacao'"):
        build_head("cacao", N_CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_more_padding_gives_the_same_logits(name: str) -> None:
    head = build_head(name, N_CLASSES, context="2x2")
    streams, n_steps = make_inputs([3, 1, 5])
    logits = head.score(streams, n_steps)
    padded = head.score(pad(streams, 4), n_steps)
    torch.testing.assert_close(padded, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_clip_is_scored_the_same_alone_as_in_a_batch(name: str) -> None:
    head = build_head(name, N_CLASSES, context="2x2")
    streams, n_steps = make_inputs([3, 5])
    alone = head.score({name: x[:1, :3] for name, x in streams.items()}, n_steps[:1])
    torch.testing.assert_close(alone, head.score(streams, n_steps)[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_side_by_side_give_the_logits_and_gradients_of_single_runs(name: str) -> None:
    heads = [build_head(name, N_CLASSES, context="2x2", seed=seed) for seed in (1, 2)]
    stacked = stack_runs(heads)
    inputs = [make_inputs([2, 4], seed=seed) for seed in (5, 6)]
    together = stacked.score(*stack_inputs(inputs))
    together.square().sum().backward()
    for run, (head, own) in enumerate(zip(heads, inputs, strict=True)):
        logits = head.score(*own)
        torch.testing.assert_close(together[run], logits, rtol=1e-5, atol=1e-6)
        logits.square().sum().backward()
        for name_, parameter in stacked.named_parameters():
            own_grad = head.get_parameter(name_).grad
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad[run], own_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["context", "caca-a", "caca"])
def test_the_order_of_clips_in_a_batch_changes_neither_logits_nor_gradients(name: str) -> None:
    head = build_head(name, N_CLASSES, context="2x2", seed=0)
    longest_first = sorted([*range(1, 10)] * 4, reverse=True)  # the recurrence drops ended ones
    streams, n_steps = make_inputs(longest_first)
    logits = head.score(streams, n_steps)
    backwards = head.score({n: x.flip(0) for n, x in streams.items()}, n_steps.flip(0)).flip(0)
    torch.testing.assert_close(logits, backwards, atol=1e-5, rtol=1e-4)
    parameters = list(head.parameters())
    found, expected = (
        torch.autograd.grad(result.pow(2).sum(), parameters) for result in (logits, backwards)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


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


@pytest.mark.parametrize("n_axes", [2, 3])
def test_the_convolution_is_pytorchs(n_axes: int) -> None:
    ours = Conv(4, 3, (3,) * n_axes, stride=(1, 2, 2)[-n_axes:])
    draw_weights(ours, 0)
    kind = nn.Conv2d if n_axes == 2 else nn.Conv3d
    oracle = kind(4, 3, 3, stride=(1, 2, 2)[-n_axes:], padding=1)
    oracle.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, *(5, 6, 7)[:n_axes], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), oracle(x))


def test_a_3d_convolution_reads_movement_and_not_only_pictures() -> None:
    head = build_head("conv2d3d", N_CLASSES)
    streams, n_steps = make_inputs([6])
    shuffled = {"face_map": streams["face_map"][:, [3, 0, 5, 1, 4, 2]]}
    assert not torch.allclose(head.score(streams, n_steps), head.score(shuffled, n_steps))


def test_the_linear_layer_is_pytorchs() -> None:
    ours = Linear(4, 3)
    draw_weights(ours, 0)
    oracle = nn.Linear(4, 3)
    oracle.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), oracle(x))


def test_bfloat16_products_give_nearly_the_logits_of_float32() -> None:
    head = build_head("caca-a", N_CLASSES)
    streams, n_steps = make_inputs([6, 4])
    exact = head.score(streams, n_steps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(streams["context"], streams["face"], n_steps)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
def test_bfloat16_gradients_of_conv2d3d_hold_no_memory_that_nothing_was_written_to(
    n_steps: int,
) -> None:
    matrices = {"face_map": MatrixSpec(shape=(8, 7, 7))}
    head = build_head("conv2d3d", 3, matrices=matrices)
    maps = torch.rand(2, n_steps, 8 * 49, generator=torch.Generator().manual_seed(0))
    parameters = list(head.parameters())

    def differentiate(*, in_bfloat16: bool) -> list[Tensor]:
        for exponent in range(10, 24):  # memory that is given out again is now full of NaN
            torch.full((2**exponent,), torch.nan)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            logits = head.score({"face_map": maps}, torch.tensor([n_steps, 1]))
        return list(torch.autograd.grad(logits.float().square().sum(), parameters))

    expected = differentiate(in_bfloat16=False)
    for _ in range(4):
        for rough, exact in zip(differentiate(in_bfloat16=True), expected, strict=True):
            assert (rough - exact).norm() <= 0.3 * exact.norm()
