"""The cascade: Eq. (2)-(5) step by step, gradients, states handed over, attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from train.heads.cascade import Cascade, Link, match_layers
from train.heads.layers import Lstm, Memory, State, draw_weights, mask_steps, stack_runs


def make_cascade(*n_layers: int, size: int = 5, seed: int = 0) -> Cascade:
    names = ("context", "face", "audio")
    links = [
        Link(stream=name, n_in=4 + i, n_layers=depth)
        for i, (name, depth) in enumerate(zip(names, n_layers, strict=False))
    ]
    cascade = Cascade(links, size, 3).double()
    draw_weights(cascade, seed)
    return cascade


def make_streams(n_clips: int, n_steps: int, *, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(n_clips, n_steps, 4 + i, generator=rng, dtype=torch.float64)
        for i, name in enumerate(("context", "face", "audio"))
    }


def oracle_logits(cascade: Cascade, context: Tensor, face: Tensor) -> Tensor:
    """Section III-D for one clip [1, T, .] with PyTorch's own cells, 2 layers then 1."""
    size = cascade.classify.weight.shape[1]
    first = nn.LSTM(size, size, 2, batch_first=True).double()
    first.load_state_dict(cascade.rnn["context"].state_dict())
    second = nn.LSTMCell(2 * size, size).double()
    second.load_state_dict(
        {k.removesuffix("_l0"): v for k, v in cascade.rnn["face"].state_dict().items()}
    )
    states, (h_n, c_n) = first(cascade.encode["context"](context))
    h, c = h_n[-1], c_n[-1]
    for x in cascade.encode["face"](face).unbind(1):
        weights = torch.softmax(states[0] @ h[0], 0)  # Eq. (2) with the query h of the step before
        vector = weights @ states[0]  # Eq. (3)
        h, c = second(torch.cat([x, vector[None]], 1), (h, c))  # Eq. (4)
    return cascade.classify(h)


def test_logits_and_gradients_follow_the_equations_step_by_step() -> None:
    cascade = make_cascade(2, 1)
    streams = make_streams(1, 4)
    logits = cascade.score(streams, torch.tensor([4]))
    expected = oracle_logits(cascade, streams["context"], streams["face"])
    torch.testing.assert_close(logits, expected)
    encoders = [cascade.encode[name].weight for name in cascade.streams]
    ours = torch.autograd.grad(logits.square().sum(), encoders)
    torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), encoders))


@pytest.mark.parametrize("n_layers", [(2, 1), (1, 2), (1, 1, 1)], ids=str)
def test_gradients_are_those_of_finite_differences(n_layers: tuple[int, ...]) -> None:
    cascade = make_cascade(*n_layers, size=3)
    streams = make_streams(2, 3)
    names, parameters = zip(*cascade.named_parameters(), strict=True)

    def score(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        n_steps = torch.tensor([3, 2])
        return torch.func.functional_call(_Scored(cascade), _prefix(given), (streams, n_steps))

    assert torch.autograd.gradcheck(score, parameters, fast_mode=True)


class _Scored(nn.Module):
    def __init__(self, cascade: Cascade) -> None:
        super().__init__()
        self.cascade = cascade

    def forward(self, streams: dict[str, Tensor], n_steps: Tensor) -> Tensor:
        return self.cascade.score(streams, n_steps)


def _prefix(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"cascade.{name}": value for name, value in given.items()}


def test_attention_sums_to_one_over_real_steps_only() -> None:
    (weights,) = make_cascade(1, 2).attend(make_streams(2, 5), torch.tensor([5, 2]))
    assert weights.shape == (2, 5, 5)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(
        weights[1].sum(-1), torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64)
    )
    assert torch.all(weights[1, :, 2:] == 0)


def test_attention_finds_the_memory_step_that_resembles_the_query() -> None:
    rnn = Lstm(2, 3, 1, attention_size=3)
    draw_weights(rnn, 0)
    query = torch.tensor([[0.0, 1.0, 0.0]])
    memory = 20 * torch.eye(3)[None]  # step u holds the u-th unit vector
    read = rnn(
        torch.zeros(1, 1, 2),
        torch.tensor([1]),
        first=State((query,), (query,)),
        memory=Memory(memory, mask_steps(torch.tensor([3]), 3)),
    )
    assert read.attention[0, 0].argmax() == 1
    assert read.attention[0, 0, 1] > 0.99


def test_context_reaches_the_logits_of_a_face_cascade_and_order_matters() -> None:
    streams = make_streams(1, 3)
    n_steps = torch.tensor([3])
    cascade = make_cascade(2, 1)
    logits = cascade.score(streams, n_steps)
    changed = cascade.score({**streams, "context": streams["context"].flip(1)}, n_steps)
    assert not torch.allclose(logits, changed)


def test_three_streams_attend_each_to_the_one_before() -> None:
    cascade = make_cascade(1, 1, 1)
    streams, n_steps = make_streams(2, 4), torch.tensor([4, 3])
    assert cascade.score(streams, n_steps).shape == (2, 3)
    assert [tuple(w.shape) for w in cascade.attend(streams, n_steps)] == [(2, 4, 4), (2, 4, 4)]


def test_attention_of_runs_side_by_side_is_that_of_single_runs() -> None:
    cascades = [make_cascade(1, 2, seed=seed) for seed in (0, 1)]
    streams, n_steps = make_streams(2, 4), torch.tensor([4, 3])
    both = {name: torch.stack([x, x]) for name, x in streams.items()}
    (together,) = stack_runs(cascades).attend(both, torch.stack([n_steps, n_steps]))
    for run, cascade in enumerate(cascades):
        torch.testing.assert_close(together[run], cascade.attend(streams, n_steps)[0])


@pytest.mark.parametrize(
    ("n_from", "n_to", "chosen"),
    [(2, 1, [1]), (1, 2, [0, 0]), (2, 2, [0, 1]), (3, 2, [1, 2]), (2, 3, [0, 1, 1])],
)
def test_the_last_state_of_one_rnn_starts_the_next(
    n_from: int, n_to: int, chosen: list[int]
) -> None:
    hidden = tuple(torch.full((1, 2), float(layer)) for layer in range(n_from))
    matched = match_layers(State(hidden, hidden), n_to)
    assert [int(h[0, 0]) for h in matched.hidden] == chosen
    assert [int(c[0, 0]) for c in matched.cell] == chosen
