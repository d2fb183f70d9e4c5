from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from skimage.data import astronaut
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from features.errors import WeightsError
from features.fingerprint import hash_file
from features.networks.face_cnn import (
    FaceCNN,
    read_face_cnn,
    read_face_training,
    write_face_cnn,
)
from features.networks.weights import FACE_WEIGHTS, FERPLUS_FACE_WEIGHTS, SHIPPED_FACE_WEIGHTS


@pytest.fixture(scope="module", params=FACE_WEIGHTS)
def shipped(request: pytest.FixtureRequest) -> FaceCNN:
    return read_face_cnn(FACE_WEIGHTS[request.param])


@pytest.fixture(scope="module")
def smile() -> Tensor:
    """[1, 3, 128, 128] uint8: the astronaut's face, her box made square."""
    crop = torch.from_numpy(astronaut()[64:171, 170:277]).permute(2, 0, 1)
    return resize(crop, [128, 128], antialias=True)[None]


def small_face_cnn() -> FaceCNN:
    return FaceCNN(("happiness", "sadness")).eval()


def some_faces(n: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 128, 128), generator=draw, dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "least", "norm"), [("default", 0.9, 34.553), ("ferplus", 0.99, 107.061)]
)
def test_shipped_weights_see_a_smile(name: str, least: float, norm: float, smile: Tensor) -> None:
    net = read_face_cnn(FACE_WEIGHTS[name])
    probability = net(smile).softmax(1)[0]
    assert net.classes[int(probability.argmax())] == "happiness"
    assert probability.max() > least
    assert float(net.embed(smile).vector.norm()) == pytest.approx(norm, rel=2e-3)


@pytest.mark.parametrize("name", FACE_WEIGHTS)
def test_shipped_weights_are_small_and_the_model_card_is_theirs(name: str) -> None:
    path = FACE_WEIGHTS[name]
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert path.stat().st_size <= 12e6
    assert hash_file(path) in card


def test_model_cards_tell_the_accuracy_that_the_files_hold() -> None:
    card = FERPLUS_FACE_WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    assert (
        f"{read_face_training(FERPLUS_FACE_WEIGHTS)['test_without_twins']['accuracy']:.1%}" in card
    )
    card = SHIPPED_FACE_WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    scores = read_face_training(SHIPPED_FACE_WEIGHTS)["test"]
    assert len(scores) == 6
    for name, score in scores.items():
        assert f"{score['accuracy']:.1%} / {score['uar']:.1%}" in card, name


@torch.no_grad()
def test_first_version_s_vector_is_the_mean_of_the_map(smile: Tensor) -> None:
    net = read_face_cnn(FERPLUS_FACE_WEIGHTS)
    vector, feature_map, _ = net.embed(smile)
    assert feature_map.shape == (1, 512, 7, 7)
    torch.testing.assert_close(vector, feature_map.mean((2, 3)))
    torch.testing.assert_close(net(smile), net.classifier(vector))


@torch.no_grad()
def test_default_vector_has_no_dead_value_and_feeds_all_classifiers(smile: Tensor) -> None:
    net = read_face_cnn(SHIPPED_FACE_WEIGHTS)
    shifted = torch.cat([smile.roll(step, dims=3) for step in range(-12, 13, 4)])
    seen = net.embed(torch.cat([smile, smile.flip(3), shifted]))
    assert seen.map.shape == (9, 512, 7, 7)
    assert (seen.vector.std(0) > 0).all()
    assert seen.vector.min() < 0
    torch.testing.assert_close(net(smile), net.classifier(seen.vector[:1]))
    for name, classes in net.sources.items():
        logits = net.source_classifiers[name](seen.vector[:1])[0]
        assert classes[int(logits.argmax())] == "happiness", name


@torch.no_grad()
def test_faces_of_a_batch_do_not_see_each_other(shipped: FaceCNN, smile: Tensor) -> None:
    alone = shipped.embed(smile).vector
    among = shipped.embed(torch.cat([some_faces(2), smile])).vector[2:]
    torch.testing.assert_close(among, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_colour_exposure_and_number_type_do_not_matter(shipped: FaceCNN, smile: Tensor) -> None:
    logits = shipped(smile)
    grey = (smile * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    darker = smile.float() * 0.8 + 10
    torch.testing.assert_close(shipped(smile.float()), logits)
    torch.testing.assert_close(shipped(grey.expand(-1, 3, -1, -1)), logits, rtol=0.02, atol=0.02)
    torch.testing.assert_close(shipped(darker), logits, rtol=0.02, atol=0.1)


@torch.no_grad()
def test_no_faces_and_a_blank_face_are_embedded(shipped: FaceCNN) -> None:
    assert shipped.embed(some_faces(0)).vector.shape == (0, 512)
    assert shipped(torch.zeros(1, 3, 128, 128)).isfinite().all()


def test_other_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="not \\[B, 3, 128"):
        small_face_cnn()(torch.zeros(1, 3, 64, 64))


@torch.no_grad()
def test_written_weights_read_back_the_same(tmp_path: Path) -> None:
    path, net = tmp_path / "face.safetensors", small_face_cnn()
    write_face_cnn(net, path, {"seed": 3})
    again = read_face_cnn(path)
    assert again.classes == net.classes
    assert not again.training
    assert read_face_training(path) == {"seed": 3}
    torch.testing.assert_close(again(some_faces(2)), net(some_faces(2)))
    assert [p.name for p in tmp_path.iterdir()] == ["face.safetensors"]


def test_failed_write_leaves_no_weights(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_face_cnn(small_face_cnn(), tmp_path / "face.safetensors", {"seed": object()})
    assert not list(tmp_path.iterdir())


METADATA = {
    "format": "caca-rnn face CNN",
    "version": "1",
    "architecture": "squeezenet1_1-bn-grey",
    "classes": '["a", "b"]',
    "training": "{}",
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(
            {"format": "other"}, "format 'other' version 1, but this code reads", id="foreign"
        ),
        pytest.param({"version": "2"}, "Update the code if the file is newer", id="newer"),
        pytest.param(
            {"architecture": "resnet"}, "architecture 'resnet', expected", id="architecture"
        ),
        pytest.param({"classes": '["a", 1]'}, r"classes\[1\] is 1, expected a text", id="a class"),
        pytest.param({"classes": '["a", "b'}, r"safetensors: damaged \(", id="no JSON"),
        pytest.param({}, "its tensors are not those of", id="tensors missing"),
    ],
)
def test_file_that_is_not_a_face_cnn_is_refused(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    path = tmp_path / "face.safetensors"
    save_file({"x": torch.zeros(1)}, path, METADATA | changed)
    with pytest.raises(WeightsError, match=message):
        read_face_cnn(path)


def test_missing_text_and_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "face.safetensors"
    with pytest.raises(WeightsError, match="no such file"):
        read_face_cnn(path)
    path.write_text("not weights")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_face_cnn(path)
    write_face_cnn(small_face_cnn(), path, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_face_cnn(path)
