"""A compiled network gives what its module gives, whatever it is called with and from where."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from features.errors import ConfigError
from features.networks.runtime import (
    Network,
    choose_device,
    choose_precision,
    compile_network,
    run_padded,
)

CPU = torch.device("cpu")


class Small(nn.Module):
    """Two outputs of a small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.dense = nn.Linear(8, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=draw)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, 3, h, w]. Returns [B, 8, h-2, w-2] and [B, 4]."""
        seen = self.conv(x).relu()
        return seen, self.dense(seen.mean((2, 3)))


def draw(n: int, side: int = 9) -> Tensor:
    return torch.randn((n, 3, side, side), generator=torch.Generator().manual_seed(n))


def compiled(precision: str = "float32", n_threads: int = 1) -> Network:
    return compile_network(
        Small().eval(), draw(2), device=CPU, precision=precision, n_threads=n_threads
    )


@torch.inference_mode()
def test_inputs_of_any_size_give_what_the_module_gives() -> None:
    network = compiled()
    for x in (draw(1), draw(5), draw(3, side=20), draw(2).to(memory_format=torch.channels_last)):
        torch.testing.assert_close(network(x), Small()(x), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_threads_do_not_disturb_each_other() -> None:
    network, inputs = compiled(n_threads=2), [draw(n % 4 + 1, side=5 + n) for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(network, inputs))
    for x, outputs in zip(inputs, found, strict=True):
        torch.testing.assert_close(outputs, Small()(x), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_reduced_precision_is_near_and_not_the_same() -> None:
    if choose_precision("auto", CPU) != "bfloat16":
        pytest.skip("this CPU does not multiply bfloat16 natively")
    exact, reduced = (compiled(p)(draw(4))[1] for p in ("float32", "bfloat16"))
    assert not torch.equal(exact, reduced)
    torch.testing.assert_close(exact, reduced, rtol=0.05, atol=0.05)


@torch.inference_mode()
def test_padding_changes_no_row_and_adds_none() -> None:
    network, x = compiled(), draw(11)
    for batch, multiple in ((4, 4), (8, 2), (16, 16)):
        for found, expected in zip(
            run_padded(network, x, batch=batch, multiple=multiple), Small()(x), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    network, x = compiled(), draw(10)
    together = run_padded(network, x, batch=4, multiple=4)[1]
    for i in range(len(x)):
        alone = run_padded(network, x[i : i + 1], batch=4, multiple=4)[1]
        assert torch.equal(alone[0], together[i])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty batch"):
        compiled()(draw(1)[:0])


def test_precisions_and_devices_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="precision 'float16'"):
        compiled("float16")
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device("gpu")


def test_a_given_precision_is_kept() -> None:
    assert choose_precision("float32", CPU) == "float32"
    assert choose_precision("auto", CPU) in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda:0", "float32"), ("cuda:1", "bfloat16"), ("cuda:2", "bfloat16"), ("cuda", "float32")],
)
def test_bfloat16_is_chosen_where_the_given_gpu_multiplies_it_itself(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: str
) -> None:
    """Of three GPUs: Turing, which is the current one and emulates it, Ampere, Hopper."""
    capabilities = [(7, 5), (8, 0), (9, 0)]

    def find_properties(device: torch.device | int | None = None) -> object:
        index = device.index if isinstance(device, torch.device) else device
        major, minor = capabilities[index or 0]
        return SimpleNamespace(major=major, minor=minor)

    monkeypatch.setattr("torch.cuda.get_device_properties", find_properties)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto", torch.device(device)) == expected
    assert choose_precision("float32", torch.device(device)) == "float32"
