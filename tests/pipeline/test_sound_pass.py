"""A stream of sound joins a finished store: which rows it has, and what stands in its way."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import features.store.writer
from cli import cli
from features.contracts import MEC_CLASSES, TICK_RATE_HZ, ClipFeatures
from features.errors import ConfigError, WorkerError
from features.networks.encoders import read_encoder_spec
from features.store.index import read_failures
from features.store.reader import open_store, verify_store
from features.store.shard_format import Lack
from features.store.writer import StoreWriter, write_store
from pipeline import sound_pass
from pipeline.decode.sampling import iter_chosen_frames
from pipeline.extract import ExtractSummary
from pipeline.sound.rows import ROW_SIZE, SoundRows
from pipeline.sound_pass import add_sound
from pipeline.workers.resources import Budgets
from tests.builders import clip_features
from tests.pipeline.sounds import clicks, clip_of, hear, tone, write_film
from tests.pipeline.workers.local_pool import LocalPool

ROOT = Path(__file__).parents[2]
FILMS: dict[str, NDArray[np.float32] | None] = {
    "voice": tone(180, 2, 48_000),
    "silent": None,
    "click": clicks([1.0], 2),
    "late": clicks([0.5], 1),
}
PHASES = 2


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The films, of which "late" is a part of its file."""
    return write_manifest(tmp_path, FILMS)


def write_manifest(folder: Path, films: dict[str, NDArray[np.float32] | None]) -> Path:
    lines = ["clip_id,path,label,split,start_s,end_s"]
    for name, sound in films.items():
        write_film(folder / f"{name}.mp4", sound)
        lines.append(f"{name},{name}.mp4,happy,train,{'0.3,1.5' if name == 'late' else ','}")
    manifest = folder / "data.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def extract(manifest: Path, clip_id: str, **changed: float) -> ClipFeatures:
    """The clip as ``extract`` writes it, but for what networks see."""
    path = manifest.parent / f"{clip_id}.mp4"
    frames = list(iter_chosen_frames(clip_of(path, **changed), PHASES))
    pts_s = [frame.record.pts_s for frame in frames for _ in frame.record.phases]
    return clip_features(
        clip_id,
        n_frames=len(pts_s),
        pts_s=np.array(pts_s),
        phase=np.array([p for f in frames for p in f.record.phases], dtype=np.int16),
        n_phases=PHASES,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        **changed,
    )


@pytest.fixture
def store(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each clip in a shard of its own."""
    return make_store(manifest, list(FILMS), monkeypatch)


def make_store(
    manifest: Path,
    clip_ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    shard_frames: int = 1,
) -> Path:
    monkeypatch.setattr(features.store.writer, "SHARD_FRAMES", shard_frames)
    parts = {"late": {"start_s": 0.3, "end_s": 1.5}}
    clips = [extract(manifest, name, **parts.get(name, {})) for name in clip_ids]
    return write_store(manifest.parent / "store", clips, classes=MEC_CLASSES, fingerprint="x")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is done in this process: starting others takes long."""
    monkeypatch.setattr("pipeline.second_pass.WorkerPool", LocalPool)


def read_audio(store: Path) -> dict[str, NDArray[np.float16]]:
    return {clip.clip_id: clip.streams["audio"] for clip in open_store(store)}


def test_each_row_of_a_clip_is_computed_around_its_tick(manifest: Path, store: Path) -> None:
    summary = add_sound(manifest, store, workers=2)

    rows = read_audio(store)
    assert rows["voice"].shape == (20, ROW_SIZE)
    ticks_s = np.arange(20) / (TICK_RATE_HZ * PHASES)
    for name in ("voice", "click"):
        heard = hear(manifest.parent / f"{name}.mp4")
        assert np.array_equal(rows[name], SoundRows([heard]).compute(ticks_s))
    part = hear(manifest.parent / "late.mp4", start_s=0.3, end_s=1.5)
    assert np.array_equal(rows["late"], SoundRows([part]).compute(ticks_s[:12]))
    assert rows["late"].any()
    assert (summary.clips_done, summary.clips_failed) == (4, 0)
    assert verify_store(store) == []


@pytest.mark.usefixtures("here")
def test_a_clip_without_sound_is_no_failure(manifest: Path, store: Path) -> None:
    summary = add_sound(manifest, store)

    assert not read_audio(store)["silent"].any()
    assert (summary.clips_silent, summary.clips_failed) == (1, 0)


@pytest.mark.usefixtures("here")
def test_what_is_done_is_not_done_again(manifest: Path, store: Path) -> None:
    add_sound(manifest, store)
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in store.rglob("*.h5")}

    summary = add_sound(manifest, store)

    assert summary.clips_done == 0
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in before} == before


@pytest.mark.usefixtures("here")
def test_only_shards_that_lack_the_stream_get_it(manifest: Path, store: Path) -> None:
    add_sound(manifest, store)
    (store / "streams/audio/0002.h5").unlink()

    summary = add_sound(manifest, store)

    assert summary.clips_done == 1
    assert read_audio(store)["click"].any()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("what", ["gone", "another"])
def test_a_clip_whose_file_is_not_the_one_lacks_its_sound_and_no_other_does(
    manifest: Path, store: Path, what: str
) -> None:
    file = manifest.parent / "voice.mp4"
    content = file.read_bytes()
    file.unlink()
    if what == "another":
        write_film(file, None)

    summary = add_sound(manifest, store)

    assert (summary.clips_done, summary.clips_failed) == (3, 1)
    assert open_store(store).find_lacking("audio") == {"voice": Lack.RETRIED}
    failure = read_failures(store).iloc[0]
    assert (failure["clip_id"], failure["step"]) == ("voice", "read")
    assert ("no such file" if what == "gone" else "its file has SHA-256") in failure["reason"]
    assert failure["reason"].endswith("but it lacks the stream audio")

    file.write_bytes(content)
    assert add_sound(manifest, store).clips_done == 1
    assert read_audio(store)["voice"].any()
    assert not open_store(store).find_lacking("audio")


@pytest.mark.usefixtures("here")
def test_a_clip_that_is_not_in_the_manifest_is_told(manifest: Path, store: Path) -> None:
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:-1]) + "\n")

    summary = add_sound(manifest, store)

    assert summary.clips_failed == 1
    assert "it is not in this manifest" in read_failures(store).iloc[0]["reason"]


@pytest.mark.usefixtures("here")
def test_rows_that_a_later_shard_replaces_need_no_file(
    manifest: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_film(manifest.parent / "voice.mp4", clicks([0.5], 2))
    opened = open_store(store)
    with StoreWriter(store, opened.header) as writer:
        writer.add(extract(manifest, "voice"))

    summary = add_sound(manifest, store)

    assert (summary.clips_done, summary.clips_failed) == (4, 0)
    assert verify_store(store) == []
    heard = hear(manifest.parent / "voice.mp4")
    ticks_s = np.arange(20) / (TICK_RATE_HZ * PHASES)
    assert np.array_equal(read_audio(store)["voice"], SoundRows([heard]).compute(ticks_s))


@pytest.mark.parametrize("ending", ["crash", "hang"])
def test_a_clip_whose_sound_ends_its_worker_lacks_it_and_no_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    manifest = write_manifest(tmp_path, {"a": FILMS["voice"], ending: FILMS["voice"], "z": None})
    store = make_store(manifest, ["a", ending, "z"], monkeypatch, shard_frames=99)
    monkeypatch.setattr(sound_pass, "SOUND_EXTRACTOR", "tests.pipeline.bad_sound:BadSound")

    summary = add_sound(manifest, store, workers=1, budgets=Budgets(clip_timeout_s=2))

    opened = open_store(store)
    assert (summary.clips_done, summary.clips_silent, summary.clips_failed) == (2, 1, 1)
    assert opened.find_lacking("audio") == {ending: Lack.RETRIED}
    assert [("audio" in clip.streams) for clip in opened] == [True, False, True]
    failure = read_failures(store).iloc[0]
    assert (failure["clip_id"], failure["step"]) == (ending, "worker")
    assert verify_store(store) == []


def test_a_clip_in_each_shard_whose_sound_ends_its_worker_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{what}{i}" for i in range(4) for what in ("a", "crash")]
    manifest = write_manifest(tmp_path, dict.fromkeys(names, FILMS["voice"]))
    store = make_store(manifest, names, monkeypatch, shard_frames=40)
    assert len(open_store(store).shards) == 4
    monkeypatch.setattr(sound_pass, "SOUND_EXTRACTOR", "tests.pipeline.bad_sound:BadSound")

    summary = add_sound(manifest, store, workers=2)

    assert (summary.clips_done, summary.clips_failed) == (4, 4)
    assert list(open_store(store).find_lacking("audio")) == [f"crash{i}" for i in range(4)]


def test_workers_that_always_die_end_the_run(
    manifest: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_pass, "SOUND_EXTRACTOR", "tests.pipeline.bad_sound:NeverBegins")

    with pytest.raises(WorkerError, match=r"ended while they held no clip.* exit status 3"):
        add_sound(manifest, store, workers=1)

    assert not list(store.glob("streams/*/*"))


@pytest.mark.usefixtures("here")
def test_a_stream_of_other_settings_is_not_mixed(
    manifest: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_sound(manifest, store)
    monkeypatch.setattr("pipeline.sound.stream.WINDOW_S", 3.0)

    with pytest.raises(ConfigError, match="stream audio has the fingerprint"):
        add_sound(manifest, store)


@pytest.mark.usefixtures("here")
def test_clips_are_counted_on_the_way(manifest: Path, store: Path) -> None:
    told: list[tuple[int, int]] = []

    add_sound(manifest, store, progress=lambda *counts: told.append(counts))

    assert [n_done for n_done, _ in told] == sorted(n_done for n_done, _ in told)
    assert told[-1] == (4, 4)


class Loudest(torch.nn.Module):
    """Stands for a learned encoder: where the loudest sample is, and how loud."""

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        loudness, place = sound.abs().max(dim=1)
        return torch.stack([loudness, place / sound.shape[1]], dim=1)


@pytest.mark.usefixtures("here")
def test_a_learned_encoder_gets_windows_around_the_ticks(
    tmp_path: Path, manifest: Path, store: Path
) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Loudest(), (torch.zeros(2, 8000),), dynamic_shapes=[{0: batch}])
    torch.export.save(program, tmp_path / "loudest.pt2")
    (tmp_path / "loudest.json").write_text(
        '{"name": "loudest", "looks_at": "audio", "size": 2, "window_s": 0.5, "licence": "MIT"}'
    )
    spec = read_encoder_spec(tmp_path / "loudest.pt2", trust=True)

    add_sound(manifest, store, encoder=spec)

    rows = {clip.clip_id: clip.streams["loudest"] for clip in open_store(store)}
    loud, place = rows["click"].astype(float).T
    near = np.abs(np.arange(20) / 10 - 1.0) < 0.25
    assert np.array_equal(loud > 0.4, near)
    assert place[near] * 0.5 == pytest.approx(np.array([0.45, 0.35, 0.25, 0.15, 0.05]), abs=0.01)
    assert not rows["silent"][:, 0].any()


@pytest.mark.usefixtures("here")
def test_extract_adds_sound_after_frames(
    manifest: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ExtractSummary(clips_skipped=4, clips_failed=0, fingerprint="x", store=str(store))
    monkeypatch.setattr("pipeline.extract.run_extract", lambda *_, **__: done)
    command = ["extract", str(manifest), "--store", str(store), "--audio"]

    told = CliRunner().invoke(cli, command)
    again = CliRunner().invoke(cli, [*command, "--json"])
    (manifest.parent / "click.mp4").unlink()
    (store / "streams/audio/0002.h5").unlink()
    failed = CliRunner().invoke(cli, command)

    assert told.exit_code == 0, told.output
    assert "stream audio: 4 clips done (1 without sound, 0 with damaged sound)" in told.stdout
    (sound,) = json.loads(again.stdout)["sound"]
    assert (sound["stream"], sound["clips_done"]) == ("audio", 0)
    assert failed.exit_code == 1
    assert "1 lack it" in failed.stdout


@pytest.mark.usefixtures("here")
def test_store_info_tells_the_stream(manifest: Path, store: Path) -> None:
    add_sound(manifest, store)

    told = CliRunner().invoke(cli, ["store", "info", str(store), "--json"])

    (stream,) = json.loads(told.stdout)["added_streams"]
    assert (stream["name"], stream["rows"], stream["size"]) == ("audio", "frame", ROW_SIZE)
    assert stream["licence"] == "none: no weights"
    assert CliRunner().invoke(cli, ["store", "info", str(store)]).exit_code == 0


def test_adding_sound_loads_no_network() -> None:
    code = (
        "import sys, pipeline.sound.extractor, pipeline.workers.worker; "
        "print({'torch', 'openvino'} & {*sys.modules})"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert told.stdout == b"set()\n"
