"""Other face networks: what is accepted, what is refused and why, and the page that tells so."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from features.errors import WeightsError
from features.networks.face_cnn import SHIPPED_FACE_WEIGHTS, read_face_cnn
from features.networks.face_network import read_face_network
from tests.features.networks.test_face_cnn import some_faces

PAGE = Path(__file__).parents[3] / "docs" / "face_network.md"


class Tiny(nn.Module):
    """The mean of each colour of each quarter, and so on up to 512 channels."""

    def __init__(self, n_out: int = 512, scale: float = 1 / 255) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, n_out, kernel_size=1)
        self.dropout = nn.Dropout(0.5)
        self.scale = scale

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        places = nn.functional.avg_pool2d(rgb * self.scale, 64)
        feature_map = self.dropout(self.expand(places))
        return feature_map.mean((2, 3)), feature_map


class OnlyVector(Tiny):
    def forward(self, rgb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(rgb)[0]


class FlatMap(Tiny):
    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        vector, feature_map = super().forward(rgb)
        return vector, feature_map.flatten(2)


def export(net: nn.Module, path: Path, *, most: int = 4096) -> Path:
    """Write a program for 1 to ``most`` faces, or for 2 only."""
    sizes = ({0: torch.export.Dim("batch", min=1, max=most)},) if most > 2 else None
    faces = torch.zeros(2, 3, 128, 128)
    torch.export.save(torch.export.export(net, (faces,), dynamic_shapes=sizes), path)
    return path


def seeded(net: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -1, 1, generator=draw)
    return net.eval()


def test_exported_program_gives_what_the_network_gave(tmp_path: Path) -> None:
    net = seeded(Tiny())
    network = read_face_network(export(net, tmp_path / "net.pt2", most=32))
    assert network.map_shape == (512, 2, 2)
    for n in (1, 5, 70):
        vector, feature_map, expression = network.embed(some_faces(n))
        assert expression is None
        assert not vector.requires_grad
        with torch.inference_mode():
            expected = net(some_faces(n).float())
        torch.testing.assert_close((vector, feature_map), expected)


def test_a_program_may_have_any_number_of_values_and_channels(tmp_path: Path) -> None:
    network = read_face_network(export(seeded(Tiny(n_out=256)), tmp_path / "net.pt2", most=32))
    assert (network.vector_size, network.map_shape) == (256, (256, 2, 2))
    assert network.embed(some_faces(0)).vector.shape == (0, 256)


def test_torchscript_gives_what_the_network_gave(tmp_path: Path) -> None:
    net, path = seeded(Tiny()), tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # writing TorchScript is deprecated
        torch.jit.script(net).save(str(path))
    network = read_face_network(path)
    with torch.inference_mode():
        torch.testing.assert_close(network.embed(some_faces(3))[:2], net(some_faces(3).float()))


@torch.no_grad()
def test_file_of_fit_face_is_a_face_network_too() -> None:
    network, net = read_face_network(), read_face_cnn(SHIPPED_FACE_WEIGHTS)
    seen = network.embed(some_faces(2))
    expected = net.embed(some_faces(2))
    torch.testing.assert_close(seen[:2], expected[:2], rtol=1e-3, atol=1e-3)
    assert network.expressions == net.classes
    assert seen.expression is not None
    shown = net(some_faces(2)).softmax(1)
    torch.testing.assert_close(seen.expression, shown, rtol=1e-3, atol=1e-3)
    assert seen.map.shape[1:] == network.map_shape


def test_no_faces_give_no_rows(tmp_path: Path) -> None:
    network = read_face_network(export(seeded(Tiny()), tmp_path / "net.pt2"))
    vector, feature_map, _ = network.embed(some_faces(0))
    assert (vector.shape, feature_map.shape) == ((0, 512), (0, 512, 2, 2))
    with pytest.raises(ValueError, match=r"not \[B, 3, 128"):
        network.embed(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        pytest.param(OnlyVector(), "it gives Tensor, expected two tensors", id="one output"),
        pytest.param(FlatMap(), r"\(32, 512, 4\)\], expected two", id="map without places"),
        pytest.param(Tiny(scale=1e9), "which float16 cannot keep", id="too large"),
        pytest.param(Tiny(scale=float("nan")), "not finite", id="not a number"),
    ],
)
def test_program_with_other_outputs_is_refused(
    tmp_path: Path, net: nn.Module, message: str
) -> None:
    path = export(seeded(net), tmp_path / "net.pt2")
    with pytest.raises(WeightsError, match=message):
        read_face_network(path)


def test_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    path = export(seeded(Tiny()).train(), tmp_path / "net.pt2")
    with pytest.raises(WeightsError, match=r"Call eval\(\)"):
        read_face_network(path)


def test_program_of_one_batch_size_is_refused(tmp_path: Path) -> None:
    path = export(seeded(Tiny()), tmp_path / "net.pt2", most=2)
    with pytest.raises(WeightsError, match="with a batch of any size"):
        read_face_network(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with pytest.raises(WeightsError, match="no such file"):
        read_face_network(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"torch\.save writes no program"):
        read_face_network(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", "pt2")
    with pytest.raises(WeightsError, match="cannot be loaded here"):
        read_face_network(path)
    path.write_text("neither")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_face_network(path)


def test_the_page_about_face_networks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["seen"].map.shape == (5, 512, 4, 4)  # type: ignore[attr-defined]
