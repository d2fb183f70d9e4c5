"""The documentation's code runs, its commands parse, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from optuna.distributions import FloatDistribution

from cli import cli
from pipeline.decode.notes import NOTES
from tests.builders import small_store
from tests.fits import fit_runs
from train.config import FitConfig, parse_settings
from train.sweep.space import DEFAULT_SPACE, parse_grid, parse_space

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    small_store(tmp_path / "store", n_clips=24)
    config = FitConfig(epochs=1, min_updates=0)
    fit_runs([tmp_path / "store"], tmp_path / "runs", ["caca-a"], [0], config)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    fit_runs(
        [tmp_path / "with-audio"], tmp_path / "more", ["cascade"], [0],
        replace(config, streams="context,face,audio"),
    )  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def list_commands() -> Iterator[tuple[str, str]]:
    """Where it stands, and each line of the pages and of ``--help`` that calls a verb."""
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.S | re.M):
            for line in block.splitlines():
                if call := re.search(r"(?<=python cli\.py ).+", line):
                    yield page.name, call[0]
    for verb in list_verbs(cli):
        for example in re.findall(r"^ +cli\.py (.+)", verb.help or "", re.M):
            yield f"--help of {verb.name}", example


def list_verbs(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from list_verbs(command)


@pytest.mark.parametrize(
    ("place", "call"), [pytest.param(*c, id=f"{c[0]}: {c[1][:60]}") for c in list_commands()]
)
def test_commands_of_the_pages_are_such_as_the_verbs_take(place: str, call: str) -> None:
    words = shlex.split(call, comments=True)
    command: click.Command = cli
    name = "cli.py"
    while isinstance(command, click.Group):
        name = words.pop(0)
        command = command.commands[name]
    given = command.make_context(name, words).params
    config = parse_settings(given.get("settings", ()), FitConfig())
    parse_grid(given.get("grid", ()), config)
    parse_space(given.get("search", ()), config)


def test_the_space_that_the_page_tells_is_the_one_that_is_drawn_from() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "docs/sweeps.md").read_text(), re.M)
    assert dict(rows) == {
        name: f"{of_key.low:g} to {of_key.high:g}" + ", on a log scale" * of_key.log
        if isinstance(of_key, FloatDistribution)
        else ", ".join(f"`{value}`" for value in of_key.choices)
        for name, of_key in DEFAULT_SPACE.items()
    }


def test_the_notes_of_the_format_are_those_that_are_taken() -> None:
    text = (ROOT / "features/store/FORMAT.md").read_text()
    section = text.split("### Notes")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(NOTES)
