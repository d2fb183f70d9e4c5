"""A file in two splits is said before training, and what the message advises mends it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from features.store.reader import open_store
from pipeline.config import ExtractConfig
from pipeline.extract import run_extract
from tests.builders import write_face_video
from train.data.stores import check_stores

pytestmark = pytest.mark.usefixtures("local")


def test_one_split_for_a_file_under_two_names_ends_the_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    write_face_video(tmp_path / "a.mp4", n_frames=5)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "copy.mp4")

    extract(tmp_path, "a,a.mp4,happy,train", "b,copy.mp4,happy,val")
    assert find_warning(tmp_path, caplog).startswith(
        "2 clips are the same files as clips of another split, under other ids: a (train), b (val)."
    )

    extract(tmp_path, "a,a.mp4,happy,train")
    assert "does not take it from the store" in find_warning(tmp_path, caplog)

    extract(tmp_path, "a,a.mp4,happy,train", "b,copy.mp4,happy,train")
    assert find_warning(tmp_path, caplog) == ""


def extract(folder: Path, *rows: str) -> None:
    (folder / "m.csv").write_text("\n".join(["clip_id,path,label,split", *rows, ""]))
    config = ExtractConfig(min_face="40")
    summary = run_extract(folder / "m.csv", folder / "store", config, workers=1)
    assert summary.clips_failed == 0


def find_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    check_stores([open_store(folder / "store")])
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return "".join(warnings)
