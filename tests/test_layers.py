"""The shape of the project: who may import whom, as docs/architecture.md says in one table."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("features", "pipeline", "train")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
}
DOORS = {
    "h5py": {"features/store"},
    "hdf5plugin": {"features/store"},
    "av": {"pipeline/decode", "pipeline/demo"},
    "openvino": {"features/networks"},
    "onnxruntime": {"features/networks"},
    "rich": {"features"},
    "optuna": {"train/sweep"},
    "matplotlib": {"train/report"},
    "tensorflow": set(),
    "mtcnn": set(),
    "ndf": set(),
}
"""Library -> the folders that may import it."""
MOST_FILES = 12
MOST_LINES = 350


def read_table() -> list[set[str]]:
    """The rows of the table, top to bottom: the places of each, folders or files."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("<!-- layers -->")[1].split("<!-- /layers -->")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [set(re.findall(r"`([^`]+)`", row)) for row in rows]


def find_row(module: str, rows: list[set[str]]) -> int:
    """The row of the module's own file, else that of its folder."""
    path = MODULES[module].relative_to(ROOT)
    for place in (path.as_posix(), f"{path.parent.as_posix()}/"):
        for number, places in enumerate(rows):
            if place in places:
                return number
    raise AssertionError(f"{path} is in no row of docs/architecture.md")


def imports(path: Path) -> Iterator[str]:
    """What a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_module_imports_only_from_its_own_row_and_from_those_above() -> None:
    rows = read_table()
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if name in MODULES and find_row(name, rows) > find_row(module, rows)
    ]
    assert wrong == []


def test_pipeline_and_train_meet_only_on_disk() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if {module.split(".")[0], name.split(".")[0]} == {"pipeline", "train"}
        or name.split(".")[0] == "cli"
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {m: {n for n in imports(path) if n in MODULES} for m, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_every_place_of_the_table_exists() -> None:
    places = {place for row in read_table() for place in row}
    assert [place for place in sorted(places) if not (ROOT / place).exists()] == []


@pytest.mark.parametrize(("library", "folders"), DOORS.items(), ids=DOORS)
def test_each_library_has_its_door(library: str, folders: set[str]) -> None:
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for path in MODULES.values()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert found == folders


def test_a_folder_is_seen_at_a_glance() -> None:
    """At most 12 modules a folder and 350 lines a module."""
    folders = [path.parent for path in MODULES.values()]
    assert {str(folder) for folder in folders if folders.count(folder) > MOST_FILES} == set()
    assert [m for m, path in MODULES.items() if count_lines(path) > MOST_LINES] == []


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_report_loads_no_network() -> None:
    assert not loads("train.report.report", "torch")


@pytest.mark.parametrize("module", [
    "features.store", "features.store.bundle", "pipeline.manifest.reader", "train.metrics",
])  # fmt: skip
def test_a_store_is_read_without_torch(module: str) -> None:
    assert not loads(module, "torch")


@pytest.mark.parametrize("module", ["train.fit", "train.sweep.sweep", "train.face_cnn.fit"])
def test_training_loads_no_openvino(module: str) -> None:
    assert not loads(module, "openvino")


def loads(module: str, library: str) -> bool:
    code = f"import sys, {module}; print('{library}' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    return told.stdout == b"True\n"
