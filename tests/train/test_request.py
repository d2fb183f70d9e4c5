"""What a fit is asked for can be written down before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from features.errors import ConfigError
from train.config import FitConfig
from train.request import FitRequest


@pytest.mark.parametrize("module", ["train.request", "train.config", "train.streams"])
def test_a_request_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (["cacao"], "found 'cacao', expected face, context"),
        (["face", "face"], "one stands twice"),
        ([], "no head named"),
    ],
    ids=["unknown", "twice", "none"],
)
def test_a_request_for_wrong_heads_is_refused(heads: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FitRequest(stores=[], runs=Path("r"), heads=heads, seeds=[0], config=FitConfig())
