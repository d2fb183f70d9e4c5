"""The shape of the project: who may import whom, and which libraries have one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for d in ("features", "pipeline", "train") for p in (ROOT / d).rglob("*.py"))
FEATURES_ORDER = (
    "errors", "console", "contracts", "disk", "limits", "memory", "fingerprint", "json_text",
    "weights", "engine", "context_cnn", "face_cnn", "face_network", "weights_table",
    "shard_layout", "shards", "shard_writer", "store_index", "store", "store_writer",
    "bundle_members", "bundle",
)  # fmt: skip
"""A module of features imports only what stands before it."""

AV_DOORS = (
    "decode", "decoder_version", "demo", "demux", "display", "hardware", "opening", "timeline",
)  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pipeline_and_train_meet_only_on_disk(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = {
        "features": {"pipeline", "train", "cli"},
        "pipeline": {"train", "cli"},
        "train": {"pipeline", "cli"},
    }[package]
    assert forbidden.isdisjoint(name.split(".")[0] for name in imports(path))


def test_features_modules_import_upwards_only() -> None:
    found = {p.stem for p in (ROOT / "features").glob("*.py")} - {"__init__"}
    assert found == set(FEATURES_ORDER)
    for path in (ROOT / "features").glob("*.py"):
        for name in imports(path):
            if name.startswith("features."):
                above = FEATURES_ORDER[: FEATURES_ORDER.index(path.stem)]
                assert name.split(".")[1] in above, f"{path.stem} imports {name}"


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("h5py", {f"features/{n}.py" for n in ("shards", "shard_layout", "shard_writer")}),
        ("av", {f"pipeline/{name}.py" for name in AV_DOORS}),
        ("openvino", {"features/networks/runtime.py"}),
        ("rich", {"features/console.py"}),
        ("tensorflow", set()),
        ("mtcnn", set()),
        ("ndf", set()),
    ],
)
def test_each_library_has_its_door(library: str, doors: set[str]) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert found == doors


def test_the_report_reads_run_folders_only() -> None:
    for path in (ROOT / "train" / "report").glob("*.py"):
        assert "torch" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("module", [
    "features.store", "features.store.bundle", "pipeline.decode.decoder_version", "train.metrics",
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
