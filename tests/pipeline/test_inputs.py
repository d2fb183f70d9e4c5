"""A hash and the frames it stands for are of one content: a file that changes is a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.inputs
import pipeline.resume
import pipeline.workers.extractor
from features.contracts import Clip
from features.disk import read_state
from features.fingerprint import hash_file
from features.store.reader import open_store
from pipeline.config import ExtractConfig
from pipeline.decode.opening import ChangedError
from pipeline.decode.sampling import Frames
from pipeline.extract import run_extract
from pipeline.inputs import Inputs, ReadTwice
from tests.pipeline.videos import grey_frames, write_video

pytestmark = pytest.mark.usefixtures("local")

ROOT = Path(__file__).parents[2]
CONFIG = ExtractConfig(phases=1, precision="float32")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    write_video(tmp_path / "new.mp4", grey_frames(20, 96, 72))
    (tmp_path / "m.csv").write_text("clip_id,path,label,split\na,a.mp4,happy,test\n")
    return write_video(tmp_path / "a.mp4", grey_frames(20))


def replace_it(path: Path) -> None:
    path.with_name("new.mp4").rename(path)


def write_into_it(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def write_as_many_bytes_into_it(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES = [replace_it, write_into_it, write_as_many_bytes_into_it, Path.unlink]


def extract(film: Path) -> tuple[int, list[str]]:
    """How many clips were done, and why others were not."""
    torch.set_num_threads(1)
    summary = run_extract(film.with_name("m.csv"), film.with_name("s"), CONFIG, device="cpu")
    return summary.clips_done, list(open_store(film.with_name("s")).failures["reason"])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n_frames", [0, 1, 3, 4], ids="after {} frames".format)
def test_a_file_that_changes_while_it_is_decoded_is_a_row(
    film: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], n_frames: int
) -> None:
    decode = pipeline.workers.extractor.iter_chosen_frames

    def decode_and_change(clip: Clip, *how: Any, **more: Any) -> Frames:
        frames = decode(clip, *how, **more)
        for _ in range(n_frames):
            yield next(frames)
        change(clip.path)
        return (yield from frames)

    monkeypatch.setattr(pipeline.workers.extractor, "iter_chosen_frames", decode_and_change)
    n_done, (reason,) = extract(film)
    assert n_done == 0
    missing = change is Path.unlink and n_frames == 0  # it is not there when it is to be opened
    assert reason == ("no such file" if missing else "changed while it was read; run again")


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_hashed_is_a_row(
    film: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    digest = pipeline.inputs.hashlib.file_digest

    def hash_and_change(file: Any, name: str) -> Any:
        if Path(file.name) == film:  # not the weights
            change(film)
        return digest(file, name)

    monkeypatch.setattr(pipeline.inputs.hashlib, "file_digest", hash_and_change)
    assert extract(film) == (0, ["changed while it was read; run again"])


def test_the_next_run_takes_what_is_there_then(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            pipeline.workers.extractor,
            "iter_chosen_frames",
            lambda *_, **__: replace_it(film) or iter(()),
        )
        assert extract(film)[0] == 0
    assert extract(film) == (1, [])
    (clip,) = open_store(film.with_name("s"))
    assert clip.sha256 == hash_file(film)


@pytest.mark.parametrize("hashed_first", [True, False])
def test_both_readings_must_be_of_one_state(film: Path, hashed_first: bool) -> None:
    old, new = read_state(film), read_state(film.with_name("new.mp4"))
    states = (old, new) if hashed_first else (new, old)
    read_twice = ReadTwice()
    for clip_id in ("a", "b"):
        read_twice.check_state(clip_id, states[0])
    read_twice.check_state("a", states[0])
    with pytest.raises(ChangedError):
        read_twice.check_state("b", states[1])


def test_an_unchanged_file_is_hashed_once(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(film.with_name("inputs.jsonl"))
    found, state = inputs.look_up(film)
    assert (found.sha256, state) == (hash_file(film), read_state(film))
    assert inputs.count_new_bytes(film) == film.stat().st_size
    inputs.remember(film, found)
    monkeypatch.delattr(pipeline.inputs.hashlib, "file_digest")
    again = Inputs(inputs.path)
    assert again.look_up(film) == (found, state)
    assert again.count_new_bytes(film) == 0


def test_what_an_older_release_remembered_is_read_and_replaced(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, state = Inputs(film.with_name("inputs.jsonl")).look_up(film)
    old = film.with_name("inputs.json")
    old.write_text(json.dumps({str(film.resolve()): asdict(found)}))
    monkeypatch.delattr(pipeline.inputs.hashlib, "file_digest")
    inputs = Inputs(film.with_name("inputs.jsonl"))
    assert inputs.look_up(film) == (found, state)
    inputs.tidy()
    assert not old.exists()
    assert Inputs(inputs.path).look_up(film) == (found, state)


def test_the_last_line_of_a_file_counts_and_half_a_line_does_not(film: Path) -> None:
    inputs = Inputs(film.with_name("inputs.jsonl"))
    found, _ = inputs.look_up(film)
    inputs.remember(film, replace(found, sha256="0" * 64))
    inputs.remember(film, found)
    whole = inputs.path.read_bytes()
    inputs.path.write_bytes(whole + whole[:30])
    again = Inputs(inputs.path)
    assert again.look_up(film)[0] == found
    again.tidy()
    assert inputs.path.read_bytes() == whole.splitlines(keepends=True)[1]


def test_a_line_that_does_not_fit_on_the_disk_is_not_there(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from features.disk import append_whole
path = Path(sys.argv[1])
append_whole(path, "first\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    append_whole(path, "second\\n")
except OSError as error:
    sys.exit(error.filename != sys.argv[1])
"""
    path = tmp_path / "lines"
    command = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert path.read_text() == "first\n"


def test_a_long_hashing_is_told_before_it_begins(
    film: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert extract(film) == (1, [])
    os.utime(film)
    monkeypatch.setattr(pipeline.resume, "_LONG_BYTES", 0)
    with caplog.at_level("INFO", "pipeline"):
        assert extract(film) == (0, [])
    assert "hashing 1 files of done clips" in caplog.text
