"""TensorBoard event files hold what the history of a run holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from tensorboardX.proto.event_pb2 import Event

from cli import cli
from tests.train.test_cross_validate import people_store
from train.runs.folder import read_run


def read_events(file: Path) -> Iterator[Event]:
    """Records of a TensorBoard file: length (8 bytes), its checksum (4), data, checksum (4)."""
    content = file.read_bytes()
    at = 0
    while at < len(content):
        (n_bytes,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + n_bytes])
        at += 12 + n_bytes + 4


def test_event_files_hold_the_history_of_each_run(tmp_path: Path) -> None:
    store = people_store(tmp_path / "store")
    arguments = ["fit", "--store", store, "--runs", tmp_path / "runs", "--head", "face", "--json"]
    arguments += ["--seeds", "2", "--tensorboard", tmp_path / "events"]
    for setting in ("epochs=3", "min_updates=0", "max_scorings=2", "precision=float32"):
        arguments += ["--set", setting]
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    names = [run["run"] for run in json.loads(result.stdout)["runs"]]
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == sorted(names)
    for name in names:
        (file,) = (tmp_path / "events" / name).iterdir()
        told = {
            (value.tag, event.step): value.simple_value
            for event in read_events(file)
            for value in event.summary.value
        }
        expected = {}
        for row in read_run(tmp_path / "runs" / name).history.to_dict("records"):
            epoch = int(row.pop("epoch"))
            for column, value in row.items():
                if not pd.isna(value):
                    expected[(column.replace("_", "/", 1), epoch)] = value
        assert told == pytest.approx(expected, rel=1e-6)


def test_without_the_option_no_event_file_is_written(tmp_path: Path) -> None:
    store = people_store(tmp_path / "store")
    arguments = ["fit", "--store", store, "--runs", tmp_path / "runs", "--head", "face"]
    arguments += ["--seeds", "1", "--set", "epochs=1", "--set", "min_updates=0"]
    assert CliRunner().invoke(cli, [str(a) for a in arguments]).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"store", "runs"}
