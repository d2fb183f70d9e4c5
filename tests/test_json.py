"""``--json``: every verb has it, prints one object and nothing else, as docs/json.md tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from features.store.index import Failure, write_failures
from tests.builders import small_store, write_face_video

ROOT = Path(__file__).parent.parent
CLIPS = "clip_id,path,label,split\n"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a store ``s`` of 24 clips, one of them failed."""
    monkeypatch.chdir(tmp_path)
    small_store(tmp_path / "s", n_clips=24)
    failure = Failure(clip_id="bad", path="bad.mp4", step="read", reason="no such file")
    write_failures(tmp_path / "s", [failure])
    return tmp_path


def run(call: str, *, status: int = 0) -> dict[str, Any]:
    """The object that a call prints."""
    result = CliRunner().invoke(cli, [*call.split(), "--json"])
    assert result.exit_code == status, result.output
    assert result.stdout.count("\n") == 1
    told = json.loads(result.stdout, parse_constant=pytest.fail)
    assert isinstance(told, dict)
    return told


def list_verbs(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_verbs(command, f"{above}{name} ")
        else:
            yield above + name, command


VERBS = dict(list_verbs(cli))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_json_and_an_example(verb: str) -> None:
    assert any("--json" in parameter.opts for parameter in VERBS[verb].params)
    shown = CliRunner().invoke(cli, [*verb.split(), "--help"]).output
    assert re.search(rf"Example:\n +cli\.py {verb}\b", shown)


def read_page() -> dict[str, set[str]]:
    """Verb -> the fields that docs/json.md lists for it."""
    page = (ROOT / "docs/json.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", page, re.M)
    return {
        verb: set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", told))) for verb, told in rows
    }


def test_the_page_tells_of_every_verb() -> None:
    assert set(read_page()) == set(VERBS)


CALLS = {
    "store info": ("store info s", 0),
    "store verify": ("store verify s", 0),
    "store failures": ("store failures s", 0),
    "bundle pack": ("bundle pack s b.bundle", 0),
    "weights": ("weights", 0),
    "fit": ("fit --store s --runs r --head face --seeds 1 --set epochs=1 --set min_updates=0", 0),
    "sweep": (
        "sweep --store s --runs r --head face --grid lr=1e-4 --seeds 1 --set epochs=1 "
        "--set min_updates=0",
        0,
    ),
}


@pytest.mark.parametrize("verb", CALLS)
def test_a_verb_prints_the_fields_of_the_page(verb: str, place: Path) -> None:
    call, status = CALLS[verb]
    assert set(run(call, status=status)) == read_page()[verb]


def test_manifest_check_tells_counts_and_classes(place: Path) -> None:
    (place / "m.csv").write_text(CLIPS + "a,m.csv,sad,train\nb,m.csv,,val\n")
    told = run("manifest check m.csv")
    assert set(told) == read_page()["manifest check"]
    assert (told["n_clips"], told["clips_by_split"]) == (2, {"train": 1, "val": 1, "test": 0})
    assert told["classes"][:2] == ["happy", "sad"]
    assert [warning["line"] for warning in told["warnings"]] == [3]  # one file in two splits


def test_manifest_check_tells_problems_with_their_lines(place: Path) -> None:
    (place / "m.csv").write_text(CLIPS + "a,m.csv,Sad,train\na,nowhere,hapy,dev\n")
    told = run("manifest check m.csv", status=1)
    assert set(told) == read_page()["manifest check"]
    assert [problem["line"] for problem in told["problems"]] == [2, 3, 3, 3]
    assert "'hapy' is not one of" in json.dumps(told["problems"])
    assert told["advice"].endswith("--map-label Sad=sad")
    assert told["n_clips"] is None


def test_extract_tells_what_failed(place: Path) -> None:
    write_face_video(place / "a.mp4", n_frames=5)
    (place / "m.csv").write_text(CLIPS + "a,a.mp4,sad,train\nb,nowhere.mp4,sad,train\n")
    told = run("extract m.csv --store new --min-face 40 --phases 1 --workers 1", status=1)
    assert set(told) == read_page()["extract"]
    assert (told["clips_done"], told["clips_failed"], told["frames"]) == (1, 1, 1)
    failures = run("store failures new")["failures"]
    assert [(row["clip_id"], row["reason"]) for row in failures] == [("b", "no such file")]


def test_store_failures_tells_every_row(place: Path) -> None:
    row = {"clip_id": "bad", "path": "bad.mp4", "step": "read", "reason": "no such file"}
    assert run("store failures s") == {"store": "s", "failures": [row]}


def test_damage_is_listed(place: Path) -> None:
    assert run("store verify s") == {"store": "s", "n_clips": 24, "problems": []}
    shard = place / "s/shards/0000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    told = run("store verify s", status=1)
    assert told["n_clips"] is None
    assert "0000.h5" in told["problems"][0]


def test_bundle_verbs_tell_what_they_print_for_people(place: Path) -> None:
    packed = run("bundle pack s b.bundle")
    assert packed["n_clips"] == 24
    assert packed["n_bytes"] == (place / "b.bundle").stat().st_size
    assert run("bundle verify b.bundle") == {"bundle": "b.bundle", "problems": []}
    told = run("bundle info b.bundle")
    assert set(told) == read_page()["bundle info"]
    assert told["fingerprint"] == packed["fingerprint"]
    unpacked = run("bundle unpack b.bundle t")
    assert unpacked == {"store": "t", "n_clips": 24, "fingerprint": packed["fingerprint"]}
    content = bytearray((place / "b.bundle").read_bytes())
    content[len(content) // 2] ^= 1
    (place / "b.bundle").write_bytes(content)
    assert run("bundle verify b.bundle", status=1)["problems"]
    assert "damaged" in run("bundle unpack b.bundle u", status=1)["error"]


def test_report_tells_its_page(place: Path) -> None:
    run(CALLS["fit"][0])
    told = run("report --runs r --out o")
    assert set(told) == read_page()["report"]
    assert Path(told["report"]).read_text().startswith("<!")


def test_fit_tells_each_run(place: Path) -> None:
    (one,) = run(CALLS["fit"][0])["runs"]
    assert (place / "r" / one["run"] / "config.json").is_file()
    assert (one["head"], one["seed"]) == ("face", 0)
    assert 0 <= one["test"]["acc"] <= 1


@pytest.mark.parametrize("evaluated", [True, False], ids=["evaluate", "train"])
def test_fit_face_tells_scores(place: Path, evaluated: bool) -> None:
    blotches = np.random.default_rng(0).integers(0, 256, (12, 6, 6), dtype=np.uint8)
    np.savez(
        place / "faces.npz",
        images=blotches.repeat(8, axis=1).repeat(8, axis=2),
        label=np.array(["happiness", "sadness"] * 6),
        split=np.array(["train"] * 6 + ["val"] * 4 + ["test"] * 2),
    )
    call = "--evaluate ferplus" if evaluated else "--out f.safetensors --epochs 1"
    told = run(f"fit-face faces.npz {call}")
    left_out = {"weights", "best_epoch"} if evaluated else set()
    assert set(told) == read_page()["fit-face"] - left_out
    scores = told["sources"]["faces"]
    assert (scores["n"], scores["split"]) == (2, "test")
    assert set(scores) == {
        "accuracy", "uar", "n", "split", "classes", "confusion", "left_out",
    }  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        "manifest check nowhere.csv",
        "extract nowhere.csv --store n",
        "store info nowhere",
        "store verify nowhere",
        "store failures nowhere",
        "bundle pack nowhere b",
        "bundle unpack nowhere b",
        "bundle verify nowhere",
        "bundle info nowhere",
        "fit --store nowhere --runs r",
        "sweep --store nowhere --runs r --head face --grid lr=1e-4",
        "report --runs nowhere --out o",
        "fit-face nowhere --evaluate ferplus",
    ],
)
def test_a_failure_is_one_object_with_the_message(call: str, place: Path) -> None:
    told = run(call, status=1)
    assert set(told) == {"error"}
    assert "nowhere" in told["error"]


def test_wrong_usage_stays_a_message(place: Path) -> None:
    result = CliRunner().invoke(
        cli, ["extract", "m.csv", "--store", "s", "--phases", "0", "--json"]
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert "phases = 0" in result.stderr
