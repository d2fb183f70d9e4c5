"""The wheel holds the whole project, and its command runs from anywhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("features", "pipeline", "train")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tracked files, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", "-q", *options, "-w", str(folder), ".", cwd=source)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


def run(*command: str, cwd: Path) -> str:
    """What a command prints; it must end well."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_data_file(unpacked: Path) -> None:
    names = run("git", "ls-files", "-z", *PACKAGES, "cli.py", cwd=ROOT).split("\0")
    wanted = {name for name in names if name}
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    assert wanted - found == set()


def test_the_wheel_holds_nothing_else(unpacked: Path) -> None:
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {*PACKAGES, "cli.py"}


@pytest.mark.parametrize("start", [
    "import cli; cli.cli()",
    "import runpy; runpy.run_module('cli', run_name='__main__')",
    "from importlib.metadata import distribution as d;"
    " d('caca-rnn').entry_points['caca-rnn'].load()()",
], ids=["imported", "python -m cli", "the console script"])  # fmt: skip
def test_the_command_runs_from_an_empty_folder(start: str, unpacked: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r}); sys.argv = ['x', '--help']; {start}"
    told = run(sys.executable, "-I", "-c", code, cwd=tmp_path)
    assert "extract" in told
