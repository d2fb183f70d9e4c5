"""The command line: help, exit statuses, JSON, messages; the drivers have tests of their own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cli import cli
from features.store.reader import open_store
from tests.builders import small_store

ROOT = Path(__file__).parent.parent


def verbs(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*above, name)
        if isinstance(command, click.Group):
            yield from verbs(command, (*above, name))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.mark.parametrize("verb", list(verbs(cli)), ids=" ".join)
def test_every_verb_has_help_and_an_example(verb: tuple[str, ...]) -> None:
    result = run(*verb, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"cli.py {' '.join(verb)}" in result.output


@pytest.mark.parametrize("verb", [[], ["fit"], ["sweep"]], ids=["all", "fit", "sweep"])
def test_help_does_not_import_torch(verb: list[str]) -> None:
    code = (
        f"import sys; sys.argv = {['cli.py', *verb, '--help']}\n"
        "from cli import cli\n"
        "try: cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'h5py', 'av', 'optuna', 'sqlalchemy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_manifest_with_problems_exits_1_and_lists_them(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "clip_id,path,label,split\na,a.mp4,joyful,train\na,b.mp4,happy,dev\n"
    )
    result = run("manifest", "check", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert "line 2: label 'joyful'" in result.output
    assert "line 3: clip_id 'a' stands already on line 2" in result.output
    assert "line 3: split 'dev'" in result.output


def test_a_missing_file_is_listed_by_manifest_check(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("clip_id,path,label,split\na,a.mp4,happy,train\n")
    result = run("manifest", "check", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert "line 2: clip 'a': no file" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["extract", "nowhere.csv", "--store", "s"], 1, "no such file"),
        (["extract", "m.csv"], 2, "--store"),
        (["extract", "m.csv", "--store", "s", "--phases", "0"], 2, "phases = 0"),
        (["store", "info", "nowhere"], 1, "no store.json here"),
        (["bundle", "verify", "nowhere"], 1, "no such bundle"),
        (["fit", "--store", "s", "--runs", "r", "--preset", "table9"], 2, "table9"),
    ],
)
def test_wrong_usage_exits_2_and_bad_input_1(
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == status
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "m.csv", "--store", "new"],
        ["fit", "--store", "s", "--runs", "r"],
        ["fit", "--store", "s", "--runs", "r", "--folds", "2"],
        ["sweep", "--store", "s", "--runs", "r", "--head", "face", "--grid", "lr=1e-4"],
        ["fit-face", "faces", "--out", "face.safetensors"],
        ["fit-face", "faces", "--evaluate", "ferplus"],
    ],
    ids=["extract", "fit", "folds", "sweep", "fit-face", "evaluate"],
)
def test_a_device_that_is_not_there_exits_2(
    arguments: list[str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_store(tmp_path / "s")
    (tmp_path / "m.csv").write_text("clip_id,path,label,split\na,m.csv,happy,train\n")
    result = run(*arguments, "--device", device)
    assert (result.exit_code, result.exception.__class__) == (2, SystemExit)
    assert f"--device {device}: " in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "s"]


def test_output_that_nobody_reads_to_its_end_gives_no_message() -> None:
    command = f"{shlex.quote(sys.executable)} cli.py weights | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=True)
    assert done.stderr == b""


def test_store_info_as_json_is_one_object(tmp_path: Path) -> None:
    result = run("store", "info", small_store(tmp_path / "s"), "--json")
    info = json.loads(result.stdout)
    assert (info["clips"], info["frames"], info["clips_by_split"]["train"]) == (6, 18, 2)


def test_damage_exits_1_and_names_the_file(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s")
    assert run("store", "verify", store).exit_code == 0
    shard = store / "shards" / "0000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    result = run("store", "verify", store)
    assert result.exit_code == 1
    assert "0000.h5" in result.output


def test_a_bundle_goes_there_and_back(tmp_path: Path) -> None:
    store, file = small_store(tmp_path / "s"), tmp_path / "x.bundle"
    assert run("bundle", "pack", store, file).exit_code == 0
    assert run("bundle", "verify", file).exit_code == 0
    assert json.loads(run("bundle", "info", file, "--json").stdout)["n_clips"] == 6
    assert run("bundle", "unpack", file, tmp_path / "t").exit_code == 0
    assert len(open_store(tmp_path / "t")) == 6


def test_weights_tells_every_network_with_its_hash() -> None:
    rows = json.loads(run("weights", "--json").stdout)["weights"]
    assert len(rows) == 6  # three of MTCNN, SqueezeNet, two face CNNs
    assert all(len(row["sha256"]) == 64 and row["licence"] for row in rows)


@pytest.mark.parametrize("option", ["--clip-timeout", "--worker-memory"])
def test_a_budget_that_is_none_exits_2(option: str) -> None:
    result = run("extract", "m.csv", "--store", "s", option, "0")
    assert result.exit_code == 2
    assert option in result.output
