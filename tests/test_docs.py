"""The documentation's code runs, and its links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.builders import small_store
from train.config import FitConfig
from train.fit import run_fit

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    small_store(tmp_path / "store", n_clips=24)
    config = FitConfig(epochs=1, min_steps=0)
    run_fit([tmp_path / "store"], tmp_path / "runs", ["caca-a"], [0], config)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    run_fit(
        [tmp_path / "with-audio"], tmp_path / "more", ["cascade"], [0],
        replace(config, streams="context,face,audio"),
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
