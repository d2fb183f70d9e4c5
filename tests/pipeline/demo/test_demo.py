"""The demo set: its plan, its pictures, and that the same plan gives the same files."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from features.contracts import MEC_CLASSES, SPLITS, Clip
from features.errors import ConfigError
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.demo import render as demo
from pipeline.demo import scenes as demo_scenes
from pipeline.demo.expressions import EXPRESSIONS
from pipeline.demo.faces import FaceRig
from pipeline.demo.render import DemoClip, demo_clips, manifest_csv, render_clip, render_demo_set
from pipeline.demo.scenes import ANYWHERE
from pipeline.detect.mtcnn import FaceDetector
from train.config import PRESETS, Preset
from train.streams import TABLE_1_HEADS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def rig() -> FaceRig:
    return FaceRig()


@pytest.fixture
def two_clips(monkeypatch: pytest.MonkeyPatch) -> tuple[DemoClip, ...]:
    """The demo set, cut down to two short clips."""
    first, *_, last = demo_clips()
    clips = tuple(dataclasses.replace(c, n_frames=6, still=(0, 0)) for c in (first, last))
    monkeypatch.setattr(demo, "demo_clips", lambda: clips)
    return clips


def test_every_class_has_the_same_share_of_every_split() -> None:
    clips = demo_clips()

    counts = Counter((clip.label, clip.split) for clip in clips)

    assert len({clip.clip_id for clip in clips}) == len(clips) == 104
    for split, expected in zip(SPLITS, (7, 3, 3), strict=True):
        assert [counts[label, split] for label in MEC_CLASSES] == [expected] * 8


def test_the_plan_is_the_same_each_time() -> None:
    assert demo_clips() == demo_clips()


def test_scenes_agree_with_the_label_far_above_chance_but_not_always() -> None:
    clips = demo_clips()
    agreeing = sum(clip.scene.mood == clip.label for clip in clips) / len(clips)
    misleading = sum(clip.scene.mood not in (clip.label, ANYWHERE) for clip in clips) / len(clips)

    assert 0.55 <= agreeing <= 0.65
    assert 0.05 <= misleading <= 0.2


def test_no_two_clips_share_a_view_of_a_scene() -> None:
    assert len({clip.scene for clip in demo_clips()}) == len(demo_clips())


def test_some_clips_stand_still_some_have_two_faces_and_some_none() -> None:
    clips = demo_clips()

    assert Counter(len(clip.actors) for clip in clips) == {0: 2, 1: 100, 2: 2}
    assert sum(clip.still != (0, 0) for clip in clips) == 8


def test_the_manifest_in_the_repository_lists_the_plan() -> None:
    committed = (ROOT / "data_manifest.csv").read_text(encoding="utf-8")

    assert committed == manifest_csv(demo_clips(), clip_folder="demo/clips")


def test_the_eight_expressions_look_different(rig: FaceRig) -> None:
    faces = {name: rig.draw(expression) for name, expression in EXPRESSIONS.items()}

    for one, other in combinations(faces, 2):
        changed = (faces[one] - faces[other]).abs().amax(dim=0) > 0.1
        assert changed.sum() > 400, f"{one} looks like {other}"


def test_the_detector_finds_the_face_in_every_expression(rig: FaceRig) -> None:
    grey = torch.full((3, 1, 1), 0.5)
    faces = [rig.draw(expression) for expression in EXPRESSIONS.values()]
    pictures = torch.stack([grey * (1 - face[3:]) + face[:3] * face[3:] for face in faces])
    frames = (pictures * 255).to(torch.uint8).permute(0, 2, 3, 1)[:, :320]

    found = FaceDetector().find_faces(frames, 60)

    assert found.frame.tolist() == list(range(8))
    assert found.score.min() > 0.95


def test_a_face_starts_near_rest_and_changes(rig: FaceRig) -> None:
    clip = _clip("demo_surprise_01")
    still_head = dataclasses.replace(clip.actors[0], sway=0.0, blink_s=-1.0)
    scene = dataclasses.replace(clip.scene, drift=0.0)
    clip = dataclasses.replace(clip, actors=(still_head,), scene=scene)

    frames = np.stack(list(render_clip(clip, rig))).astype(int)

    from_first = np.abs(frames - frames[0]).sum(axis=(1, 2, 3))
    assert from_first[1] < 0.1 * from_first[-1]
    assert from_first[-1] == from_first.max() > 0


def test_nothing_moves_in_a_still_stretch(rig: FaceRig) -> None:
    clip = next(clip for clip in demo_clips() if clip.still != (0, 0))
    first, last = clip.still

    frames = list(render_clip(clip, rig))

    assert all(np.array_equal(frames[first], frame) for frame in frames[first : last + 1])
    assert not np.array_equal(frames[last], frames[last + 1])


def test_rendering_twice_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_clips: tuple[DemoClip, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (render_demo_set(Path(name)).parent for name in ("one", "the:other"))

    for clip in two_clips:
        path = f"clips/{clip.clip_id}.mp4"
        assert (one / path).read_bytes() == (other / path).read_bytes()


def test_a_rendered_clip_decodes_to_what_was_drawn(
    tmp_path: Path, two_clips: tuple[DemoClip, ...], rig: FaceRig
) -> None:
    folder = render_demo_set(tmp_path).parent
    clip = two_clips[0]
    source = Clip(
        clip_id=clip.clip_id,
        path=folder / "clips" / f"{clip.clip_id}.mp4",
        label=clip.label,
        split="train",
    )

    decoded = list(iter_chosen_frames(source, n_phases=5))

    drawn = list(render_clip(clip, rig))
    assert [chosen.record.pts_s for chosen in decoded] == pytest.approx(np.arange(6) / 25)
    for chosen, pixels in zip(decoded, drawn, strict=True):
        assert np.abs(chosen.rgb.numpy().astype(int) - pixels).mean() < 8


def test_only_clips_that_are_missing_cut_short_or_outdated_are_rendered_again(
    tmp_path: Path, two_clips: tuple[DemoClip, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    render_demo_set(tmp_path)
    kept, broken = (tmp_path / "clips" / f"{clip.clip_id}.mp4" for clip in two_clips)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    drawn = _count_drawings(monkeypatch)

    render_demo_set(tmp_path)
    assert (drawn, broken.read_bytes()) == ([two_clips[1].clip_id], whole)

    monkeypatch.setattr(demo, "_RENDERER_VERSION", demo._RENDERER_VERSION + 1)
    render_demo_set(tmp_path)
    assert sorted(drawn[1:]) == [clip.clip_id for clip in two_clips]
    assert kept.read_bytes() != b""


def test_an_interrupted_rendering_leaves_only_whole_clips(
    tmp_path: Path, two_clips: tuple[DemoClip, ...]
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_demo_set(tmp_path, progress=interrupt)

    rendered = {path for path in tmp_path.rglob("*") if path.is_file()}
    first, last = (tmp_path / "clips" / f"{clip.clip_id}.mp4" for clip in two_clips)
    assert first in rendered <= {first, last}
    assert all(demo._is_rendered(path, two_clips[path == last]) for path in rendered)


def test_progress_counts_every_clip(tmp_path: Path, two_clips: tuple[DemoClip, ...]) -> None:
    seen: list[tuple[int, int]] = []

    render_demo_set(tmp_path, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 2), (2, 2)]


def test_the_demo_ends_with_both_tables_of_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [_clip(f"demo_{label}_{n:02}") for label in ("happy", "sad") for n in (1, 2, 8, 11)]
    clips = tuple(dataclasses.replace(c, n_frames=6, still=(0, 0)) for c in chosen)
    quick = {name: _shorten(preset) for name, preset in PRESETS.items()}
    monkeypatch.setattr(demo, "demo_clips", lambda: clips)
    monkeypatch.setattr("train.config.PRESETS", quick)
    monkeypatch.setattr("cli._DEMO_SETTINGS", {"lr": 1e-3})
    command = ["demo", "--dir", str(tmp_path), "--seeds", "2"]

    result = CliRunner().invoke(cli, command)

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "report/report.html")
    tables = [pd.read_csv(tmp_path / f"report/tables/table{n}.csv", dtype=str) for n in (1, 2)]
    heads = [*TABLE_1_HEADS, "caca", "conv2d3d", "cascade", "ensemble"]
    assert dict(zip(tables[0]["Head"], tables[0]["Seeds"], strict=True)) == dict.fromkeys(
        heads, "2"
    )
    assert tables[1]["Method"].tolist()[:2] == ["CACA-RNN", "CACA-RNN + 2D-3D-CNN"]

    result = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert set(result) == {"extract", "runs", "report"}
    assert result["report"] == str(tmp_path / "report/report.html")
    assert result["extract"]["clips_skipped"] == 8
    assert sorted(run["head"] for run in result["runs"][::2]) == sorted(heads)


def test_the_demo_tells_its_progress_where_no_terminal_is(
    tmp_path: Path, two_clips: tuple[DemoClip, ...]
) -> None:
    result = CliRunner().invoke(cli, ["demo", "--dir", str(tmp_path)])

    assert result.exit_code == 1  # two clips are too few to train on
    render, extract = result.stderr.splitlines()[:2]
    assert render.startswith("render: 2 of 2 clips, ")
    assert extract.startswith("extract: 2 of 2 clips, 0 failed, ")


def _shorten(preset: Preset) -> Preset:
    config = dataclasses.replace(preset.config, epochs=1, min_updates=0)
    return dataclasses.replace(preset, config=config)


def test_a_missing_picture_says_which_package_lacks_it() -> None:
    with pytest.raises(ConfigError, match=r"scikit-image/data/nosuch\.png.*Install scikit-image"):
        demo_scenes.read_picture("nosuch.png")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"label": "bored"}, id="an unknown label"),
        pytest.param({"size_px": (321, 240)}, id="an odd side"),
        pytest.param({"still": (3, 999)}, id="a still stretch past the end"),
    ],
)
def test_a_clip_that_cannot_be_drawn_cannot_be_planned(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="demo_happy_01"):
        dataclasses.replace(demo_clips()[0], **changed)


def _clip(clip_id: str) -> DemoClip:
    return next(clip for clip in demo_clips() if clip.clip_id == clip_id)


def _count_drawings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of clips that are drawn from here on."""
    drawn: list[str] = []

    def render(clip: DemoClip, rig: FaceRig) -> object:
        drawn.append(clip.clip_id)
        return render_clip(clip, rig)

    monkeypatch.setattr(demo, "render_clip", render)
    return drawn
