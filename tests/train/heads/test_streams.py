"""Heads on any streams: how many each reads, of any size, with padding, gradients and scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from features.errors import ConfigError
from train.config import FitConfig, check_head_streams
from train.heads.build import build_head, count_parameters
from train.heads.layers import Head, Lstm, read_run_state, stack_runs
from train.heads.standardise import Standardise
from train.streams import HEADS, MATRICES, NETWORKS, MatrixSpec, choose_streams

SIZES = {"audio": 3, "dino": 5, "pose": 384, "values": 1}
"""Streams of odd sizes, one under the name of a method of torch's containers."""
MATRICES_HERE = {
    **{name: MatrixSpec(shape=(size,)) for name, size in SIZES.items()},
    "places": MatrixSpec(shape=(6, 5, 3)),
    "context_2x2": MatrixSpec(shape=(512, 2, 2)),
}
READ = {
    "face": ["audio", "pose", "values"],
    "context": ["audio", "pose", "values"],
    "conv2d3d": ["places", "context"],
}
CASES = [
    pytest.param(name, streams, id=f"{name} {streams}")
    for name in NETWORKS
    for streams in READ.get(name, ["audio,dino", "pose,audio,dino", "values,context"])
]


def build(name: str, streams: str, *, seed: int = 0, standardise: bool = False) -> Head:
    return build_head(
        name,
        3,
        context="2x2",
        streams=streams,
        matrices=MATRICES_HERE,
        standardise=standardise,
        seed=seed,
    )


def make_inputs(n_steps: list[int], *, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Every stream [B, T, D], zero-padded, and lengths [B]."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(n_steps)
    real = (torch.arange(max(n_steps)) < lengths[:, None])[..., None]
    sizes = SIZES | {"places": 90, "context": 2048}
    shape = (len(n_steps), max(n_steps))
    return {n: torch.rand(*shape, d, generator=rng) * real for n, d in sizes.items()}, lengths


@pytest.mark.parametrize(("name", "streams"), CASES)
def test_a_head_reads_what_it_is_told_and_nothing_else(name: str, streams: str) -> None:
    head = build(name, streams)
    read = tuple(streams.split(","))
    assert head.streams == read
    inputs, n_steps = make_inputs([3, 1, 5])
    logits = head.score({stream: inputs[stream] for stream in read}, n_steps)
    assert logits.shape == (3, 3)
    for stream in read:
        assert not torch.allclose(
            head.score(inputs | {stream: inputs[stream] + 1}, n_steps), logits
        )


@pytest.mark.parametrize("standardise", [False, True], ids=["as they are", "standardised"])
@pytest.mark.parametrize(("name", "streams"), CASES)
def test_more_padding_gives_the_same_logits(name: str, streams: str, standardise: bool) -> None:
    head = build(name, streams, standardise=standardise)
    inputs, n_steps = make_inputs([3, 1, 5])
    padded = {
        stream: torch.cat([x, x.new_full((3, 4, x.shape[2]), 7.0)], 1)
        for stream, x in inputs.items()
    }
    torch.testing.assert_close(
        head.score(padded, n_steps), head.score(inputs, n_steps), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("standardise", [False, True], ids=["as they are", "standardised"])
@pytest.mark.parametrize(("name", "streams"), CASES)
def test_runs_side_by_side_give_the_logits_and_gradients_of_single_runs(
    name: str, streams: str, standardise: bool
) -> None:
    heads = [build(name, streams, seed=seed, standardise=standardise) for seed in (1, 2)]
    for head in heads:
        give_scales(head)
    stacked = stack_runs(heads)
    inputs = [make_inputs([4, 2], seed=seed) for seed in (5, 6)]
    together = stacked.score(
        {n: torch.stack([own[n] for own, _ in inputs]) for n in inputs[0][0]},
        torch.stack([n_steps for _, n_steps in inputs]),
    )
    together.square().sum().backward()
    for run, (head, own) in enumerate(zip(heads, inputs, strict=True)):
        logits = head.score(*own)
        torch.testing.assert_close(together[run], logits, rtol=1e-5, atol=1e-6)
        logits.square().sum().backward()
        for name_, parameter in stacked.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(
                parameter.grad[run], head.get_parameter(name_).grad, rtol=1e-4, atol=1e-6
            )
        state = read_run_state(stacked, run)
        fresh = build(name, streams, seed=9, standardise=standardise)
        fresh.load_state_dict(state)
        torch.testing.assert_close(fresh.score(*own), logits)


def give_scales(head: Head) -> None:
    """A mean and a deviation for each value of what a head standardises."""
    rng = torch.Generator().manual_seed(0)
    for scale in head.standardise.values():
        assert isinstance(scale, Standardise)
        scale.mean.uniform_(0.2, 0.8, generator=rng)
        scale.deviation.uniform_(0.2, 0.8, generator=rng)


def test_the_first_layers_are_as_wide_as_the_streams() -> None:
    """Whatever the head, the rest is that of the paper."""
    assert shapes(build("face", "audio"), "encode.") == [(3, 3)]
    assert shapes(build("face", "context"), "encode.") == [(512, 2048)]  # as wide as 512 at most
    assert shapes(build("context", "audio"), "encode.") == [(128, 3)]
    three = build("parallel", "pose,audio,dino")
    assert shapes(three, "encode.") == [(128, 384), (128, 3), (128, 5)]
    assert shapes(three, "classify.") == [(3, 3 * 128)]
    assert len([part for part in three.modules() if isinstance(part, Lstm)]) == 3
    joined = build("concatenated", "pose,audio,dino")
    assert shapes(joined, "rnn.")[0] == (4 * 256, 3 * 128)
    assert shapes(joined, "classify.") == [(3, 256)]


def shapes(head: Head, prefix: str) -> list[tuple[int, ...]]:
    return [
        tuple(p.shape)
        for name, p in head.named_parameters()
        if name.startswith(prefix) and "weight" in name
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_its_own_streams_by_name_are_the_head_as_published(name: str) -> None:
    own = ",".join(HEADS[name].streams)
    named = build_head(name, 8, streams=own, matrices=MATRICES)
    published = build_head(name, 8)
    assert {n: p.shape for n, p in named.named_parameters()} == {
        n: p.shape for n, p in published.named_parameters()
    }
    assert all(torch.equal(p, published.get_parameter(n)) for n, p in named.named_parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_scales_are_no_parameters_and_change_no_drawn_weight(name: str) -> None:
    plain, scaled = build_head(name, 8), build_head(name, 8, standardise=True)
    assert count_parameters(plain) == count_parameters(scaled)
    inputs, n_steps = make_inputs([2, 1])
    inputs |= {"face": torch.rand(2, 2, 512), "face_map": torch.rand(2, 2, 25088)}
    inputs["context"] = torch.rand(2, 2, 25088 if name == "caca" else 2048)
    torch.testing.assert_close(plain.score(inputs, n_steps), scaled.score(inputs, n_steps))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_standardising_takes_the_mean_and_divides_by_the_deviation(dtype: torch.dtype) -> None:
    scale = Standardise(3)
    scale.load_state_dict(
        {"mean": torch.tensor([1.0, 2, 3]), "deviation": torch.tensor([2.0, 4, 1])}
    )
    x = torch.tensor([[[3.0, 6, 3], [0, 0, 0], [0, 2, 4]]], dtype=dtype)
    expected = torch.tensor([[[1.0, 1, 0], [0, 0, 0], [-0.5, 0, 1]]])  # zeros: no face
    assert scale(x).dtype == torch.float32
    assert torch.equal(scale(x), expected)
    runs = x.expand(4, *x.shape)
    assert torch.equal(scale(runs), expected.expand(4, *x.shape))
    assert scale(runs).stride(0) == 0  # done once for all runs
    assert torch.equal(x[0, 1], torch.zeros(3, dtype=dtype)), "the input was changed"


@pytest.mark.parametrize(
    ("heads", "streams", "message"),
    [
        (["face"], "context,audio", "expected one stream, for face"),
        (["face", "conv2d3d"], "context,audio", "expected one stream, for face, conv2d3d"),
        (["parallel"], "audio", "expected two streams or more, for parallel"),
        (["cascade"], "audio", "expected two streams or more, for cascade"),
    ],
)
def test_streams_that_no_head_can_read_are_refused(
    heads: list[str], streams: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_head_streams(heads, FitConfig(streams=streams))


def test_a_head_beside_others_that_cannot_read_so_many_reads_its_own_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = FitConfig(streams="audio,face")
    check_head_streams(["face", "parallel", "ensemble"], config)
    assert [record.getMessage() for record in caplog.records] == [
        "streams audio,face: not read by face (expected one stream), which read their own"
    ]
    assert choose_streams("face", streams=config.streams) == {"face": "face"}
    assert list(choose_streams("parallel", streams=config.streams)) == ["audio", "face"]


@pytest.mark.parametrize("text", ["", "a,,b", "a,a", ","])
def test_lists_of_streams_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"setting streams: found .* one or more names"):
        FitConfig(streams=text)


def test_a_cascade_of_four_streams_hands_its_state_from_each_to_the_next() -> None:
    head = build("cascade", "pose,audio,dino,values")
    inputs, n_steps = make_inputs([4, 3])
    attention = head.attend(inputs, n_steps)
    assert len(attention) == 3
    for weights in attention:
        np.testing.assert_allclose(weights.sum(-1)[1].detach(), [1, 1, 1, 0], atol=1e-6)
