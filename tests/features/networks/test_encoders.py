"""Encoders of a user's own: what a sidecar must say, what they give, what is refused and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from cli import cli
from features.errors import ClipError, ConfigError, WeightsError
from features.networks.encoder_network import draw_rows, read_encoder
from features.networks.encoders import read_encoder_spec
from features.networks.onnx_network import OnnxRuntimeNetwork
from tests.features.networks.encoder_files import (
    PICTURE,
    Small,
    write_onnx,
    write_program,
    write_sidecar,
)

MEAN = torch.tensor(PICTURE["mean"]).view(3, 1, 1)
DEVIATION = torch.tensor(PICTURE["deviation"]).view(3, 1, 1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One ONNX file of any batch; tests that write beside it take a copy."""
    return write_onnx(tmp_path_factory.mktemp("onnx") / "small.onnx")


@pytest.fixture
def onnx(shared: Path, tmp_path: Path) -> Path:
    shutil.copy(shared, tmp_path / "small.onnx")
    return write_sidecar(tmp_path / "small.onnx")


def expected(rows: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = Small()((rows.float() / 255 - MEAN) / DEVIATION)[0]
    return found


@pytest.mark.parametrize("n", [0, 1, 4, 7])
def test_an_onnx_file_gives_what_the_network_gave(onnx: Path, n: int) -> None:
    encoder = read_encoder(read_encoder_spec(onnx))
    rows = draw_rows(encoder.spec, 7)[:n]
    torch.testing.assert_close(encoder.embed(rows), expected(rows), rtol=1e-4, atol=1e-5)


def test_what_a_row_gives_does_not_depend_on_the_rows_beside_it(onnx: Path) -> None:
    encoder = read_encoder(read_encoder_spec(onnx))
    rows = draw_rows(encoder.spec, 7)
    one_by_one = torch.cat([encoder.embed(row[None]) for row in rows])
    assert torch.equal(encoder.embed(rows), one_by_one)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_file_of_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path, batch: int) -> None:
    spec = read_encoder_spec(write_onnx(tmp_path / "fixed.onnx", batch=batch))
    encoder = read_encoder(spec)
    rows = draw_rows(spec, 5)
    assert encoder.batch == batch
    torch.testing.assert_close(encoder.embed(rows), expected(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "prepare"),
    [
        ({"colours": "bgr"}, lambda rgb: (rgb.flip(1) / 255 - MEAN) / DEVIATION),
        ({"scale": 255}, lambda rgb: (rgb - MEAN) / DEVIATION),
        ({"output": "vector"}, lambda rgb: (rgb / 255 - MEAN) / DEVIATION),
    ],
    ids=["bgr", "0..255", "an output by name"],
)
def test_pictures_are_prepared_as_the_sidecar_says(
    onnx: Path, changed: dict[str, Any], prepare: Any
) -> None:
    encoder = read_encoder(read_encoder_spec(write_sidecar(onnx, **changed)))
    rows = draw_rows(encoder.spec, 3)
    with torch.inference_mode():
        wanted = Small()(prepare(rows.float()))[0]
    torch.testing.assert_close(encoder.embed(rows), wanted, rtol=1e-4, atol=1e-5)


def test_a_grey_network_gets_one_channel_of_luminance(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "grey.onnx", Small(n_channels=1), shape=(1, 32, 32),
        colours="grey", mean=[0.5], deviation=[0.25],
    )  # fmt: skip
    encoder = read_encoder(read_encoder_spec(path))
    rows = draw_rows(encoder.spec, 3)
    luma = (rows.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    with torch.inference_mode():
        wanted = Small(n_channels=1)((luma / 255 - 0.5) / 0.25)[0]
    torch.testing.assert_close(encoder.embed(rows), wanted, rtol=1e-4, atol=1e-5)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.net(x.permute(0, 3, 1, 2))[0]
        return seen[:, :, None, None]


def test_a_network_of_another_library_may_want_channels_last(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "last.onnx", ChannelsLast(), shape=(32, 32, 3))
    encoder = read_encoder(read_encoder_spec(path))
    rows = draw_rows(encoder.spec, 3)
    torch.testing.assert_close(encoder.embed(rows), expected(rows), rtol=1e-4, atol=1e-5)


def test_sound_goes_through_as_it_is(tmp_path: Path) -> None:
    net = nn.Linear(1600, 6)
    path = write_onnx(tmp_path / "ear.onnx", net, shape=(1600,), looks_at="audio", window_s=0.1)
    encoder = read_encoder(read_encoder_spec(path))
    assert encoder.spec.rows == "frame"
    rows = draw_rows(encoder.spec, 5)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.embed(rows), net(rows), rtol=1e-4, atol=1e-5)


def test_onnxruntime_gives_what_openvino_gives(onnx: Path) -> None:
    encoder = read_encoder(read_encoder_spec(onnx))
    other = OnnxRuntimeNetwork(onnx, 0, ("CPUExecutionProvider", {}))
    x = torch.rand((encoder.batch, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(other(x), encoder.network(x), rtol=1e-4, atol=1e-5)


def test_onnx_on_a_gpu_asks_for_onnxruntime_gpu(onnx: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install onnxruntime-gpu; or .* --device cpu"):
        read_encoder(read_encoder_spec(onnx), "cuda:0")


class OnlyVector(Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Named(Small):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        vector, feature_map = super().forward(x)
        return {"map": feature_map, "vector": vector}


@pytest.mark.parametrize(
    ("net", "output"), [(Small(), 0), (OnlyVector(), 0), (Named(), "vector")],
    ids=["tuple", "tensor", "dict"],
)  # fmt: skip
def test_a_trusted_program_gives_what_the_network_gave(
    tmp_path: Path, net: nn.Module, output: str | int
) -> None:
    path = write_program(tmp_path / "net.pt2", net, output=output)
    encoder = read_encoder(read_encoder_spec(path, trust=True))
    rows = draw_rows(encoder.spec, 5)
    torch.testing.assert_close(encoder.embed(rows), expected(rows), rtol=1e-4, atol=1e-5)


def test_a_program_of_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path) -> None:
    path = write_program(tmp_path / "net.pt2", Small(), batch=3)
    encoder = read_encoder(read_encoder_spec(path, trust=True))
    rows = draw_rows(encoder.spec, 5)
    assert encoder.batch == 3
    torch.testing.assert_close(encoder.embed(rows), expected(rows), rtol=1e-4, atol=1e-5)


def test_a_program_is_refused_without_trust_whatever_its_name(tmp_path: Path) -> None:
    path = write_program(tmp_path / "net.onnx", Small())
    with pytest.raises(WeightsError, match=r"can run any code .* give --trust"):
        read_encoder_spec(path)


class Overflowing(Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0] * 1e6


class Undefined(Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return torch.log(-x.square().mean((1, 2, 3)) - 1)[:, None].expand(-1, 6)


class OverTheBatch(Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        vector = super().forward(x)[0]
        return vector - vector.mean(0)


class Map(Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[1]


class TwoInputs(Small):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0] + y


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Overflowing(), r"not finite, or above 65504"),
        (Undefined(), r"not finite, or above 65504"),
        (OverTheBatch(), r"changes with the rows beside it. Call eval"),
        (Map(), r"\[4, 6, 10, 10\], expected \[4, 6\] .* pooled inside the network"),
    ],
    ids=["too large for float16", "not a number", "normalised over the batch", "a map"],
)  # fmt: skip
def test_a_network_that_breaks_a_rule_is_refused(
    tmp_path: Path, net: nn.Module, reason: str
) -> None:
    spec = read_encoder_spec(write_onnx(tmp_path / "net.onnx", net))
    with pytest.raises(WeightsError, match=rf"net\.onnx: .*{reason}"):
        read_encoder(spec)


class OverflowingOnWhite(Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        white = (x.amin((1, 2, 3), keepdim=True).flatten(1) > 0.99).float()
        return super().forward(x)[0] + white * 1e6


def test_a_wrong_value_of_one_clip_is_an_error_of_that_clip(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "net.onnx", OverflowingOnWhite(), mean=[0.0] * 3, deviation=[1.0] * 3
    )
    encoder = read_encoder(read_encoder_spec(path))
    with pytest.raises(ClipError, match=r"encoder small: .* float16 cannot keep"):
        encoder.embed(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"mean": None}, "mean is missing"),
        ({"size": 7}, r"is \[4, 6\], expected \[4, 7\] by its sidecar"),
        ({"size": "6"}, "size is '6', expected a whole number"),
        ({"output": "vektor"}, "no output 'vektor', only vector, map"),
        ({"output": 2}, "no output 2"),
        ({"output": -1}, "output is -1"),
        ({"width": 64, "height": 64}, r"it takes f32 \[None, 3, 32, 32\], expected .* 3, 64, 64"),
        ({"width": 48}, "48 x 32 pixels, but a face is a square"),
        ({"colours": "gray"}, "colours is 'gray', expected rgb or bgr or grey"),
        ({"colours": "grey"}, "mean has 3 values, expected 1"),
        ({"scale": 100}, "scale is 100, expected 1 or 255"),
        ({"deviation": [1, 0, 1]}, r"deviation is \[1, 0, 1\], expected numbers above 0"),
        ({"margin": 5}, "margin is 5, expected 0 to 2"),
        ({"crop": "centre"}, "crop is no field of an encoder of face"),
        ({"looks_at": "body"}, "looks_at is 'body'"),
        ({"looks_at": "frame", "crop": None}, "crop is missing"),
        ({"looks_at": "frame", "crop": "left"}, "crop is 'left', expected centre or whole"),
        ({"looks_at": "audio"}, "window_s is missing"),
        ({"name": "face_map"}, "stream 'face_map'"),
        ({"name": "context"}, "in the place of the context CNN, which looks at frames"),
        ({"name": "face", "looks_at": "frame"}, "place of the face CNN, which looks at faces"),
        ({"name": "My net"}, "stream 'My net'"),
        ({"licence": " "}, "licence is empty"),
        ({"licence": None}, "licence is missing"),
        ({"deviatoin": [1, 1, 1]}, "deviatoin is not a known field"),
        ({"path": "x"}, "path is not a known field"),
        ({"sha256": "ab" * 32}, "a file with SHA-256 abababababab.*, but small.onnx has"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_sidecar_is_one_clear_message(
    onnx: Path, changed: dict[str, Any], reason: str
) -> None:
    write_sidecar(onnx, **changed)
    with pytest.raises(WeightsError, match=rf"small\.(json|onnx): .*{reason}"):
        read_encoder(read_encoder_spec(onnx))


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    path = write_sidecar(tmp_path / "net.onnx")
    path.write_bytes(b"\x08\x07not ONNX")
    with pytest.raises(WeightsError, match=r"net\.onnx: not an ONNX file"):
        read_encoder(read_encoder_spec(path))


def test_a_file_without_sidecar_says_which_is_missing(onnx: Path) -> None:
    onnx.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"small\.json: missing.*docs/encoders\.md"):
        read_encoder_spec(onnx)


def test_values_in_a_second_file_are_read_and_enter_the_hash(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", external_data=True)
    data = tmp_path / "net.onnx.data"
    spec = read_encoder_spec(path)
    rows = draw_rows(spec, 2)
    torch.testing.assert_close(read_encoder(spec).embed(rows), expected(rows), rtol=1e-4, atol=1e-5)
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert read_encoder_spec(path).sha256 != spec.sha256
    with pytest.raises(WeightsError, match=r"net\.onnx: changed since it was first read"):
        read_encoder(spec)
    data.unlink()
    with pytest.raises(WeightsError, match=r"its values lie in net\.onnx\.data"):
        read_encoder_spec(path)


def test_values_in_a_file_of_another_folder_are_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", external_data=True)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"net.onnx.data", b"../onnx.data."))
    (tmp_path.parent / "onnx.data.").write_bytes((tmp_path / "net.onnx.data").read_bytes())
    with pytest.raises(WeightsError, match=r"'\.\./onnx\.data\.', expected a file beside it"):
        read_encoder_spec(path)


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({"licence": "Apache-2.0"}, True),
        ({"name": "other"}, True),
        ({"scale": 1.0, "margin": 0}, True),
        ({"mean": [0.5, 0.4, 0.31]}, False),
        ({"margin": 0.5}, False),
        ({"output": 1}, False),
    ],
    ids=str,
)  # fmt: skip
def test_the_fingerprint_is_that_of_what_decides_the_values(
    onnx: Path, changed: dict[str, Any], is_same: bool
) -> None:
    before = read_encoder_spec(onnx).fingerprint("base", 1)
    after = read_encoder_spec(write_sidecar(onnx, **changed)).fingerprint("base", 1)
    assert (before == after) == is_same
    assert before != read_encoder_spec(onnx).fingerprint("another base", 1)


def test_the_check_command_tells_what_would_be_written(onnx: Path) -> None:
    write_sidecar(onnx, looks_at="frame", licence="CC BY-NC 4.0")
    result = CliRunner().invoke(cli, ["encoder", "check", str(onnx), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["ms_a_row"] > 0
    assert told["sha256"] == read_encoder_spec(onnx).sha256
    assert {told[n] for n in ("stream", "rows", "licence")} == {"small", "frame", "CC BY-NC 4.0"}
    assert (told["size"], told["bytes_a_row"]) == (6, 12)


def test_the_check_command_refuses_in_one_line(onnx: Path) -> None:
    write_sidecar(onnx, size=7)
    result = CliRunner().invoke(cli, ["encoder", "check", str(onnx), "--device", "cpu"])
    assert result.exit_code == 1
    assert "expected [4, 7] by its sidecar" in result.stderr
    assert "Traceback" not in result.stderr
