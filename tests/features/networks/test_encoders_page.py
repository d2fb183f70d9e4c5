"""The code of docs/encoders.md runs: a torchvision network as an encoder."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from features.networks.encoder_network import draw_rows, read_encoder
from features.networks.encoders import read_encoder_spec

PAGE = Path(__file__).parents[3] / "docs" / "encoders.md"


def read_block(begin: str) -> str:
    """The page's only block of Python with these words."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (block,) = (block for block in blocks if begin in block)
    return str(block)


def test_the_torchvision_network_of_the_page_becomes_an_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        exec(read_block("mobilenet_v3_small"), names)
    encoder = read_encoder(read_encoder_spec(tmp_path / "scene.onnx"))
    rows = draw_rows(encoder.spec, 3)
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1) for values in (encoder.spec.mean, encoder.spec.deviation)
    )
    net = names["net"]
    assert isinstance(net, nn.Module)
    with torch.inference_mode():
        expected = net((rows.float() / 255 - mean) / deviation)
    assert expected.shape == (3, 576)
    torch.testing.assert_close(encoder.embed(rows), expected, rtol=1e-3, atol=1e-4)
