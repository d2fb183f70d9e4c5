"""Streams join a finished store: its clips are decoded again, and nothing else in it changes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.extract
import pipeline.workers.stream_extractor
from features.errors import ClipError
from features.networks.encoders import EncoderSpec, read_encoder_spec
from features.store.reader import open_store, verify_store
from features.store.shard_format import Lack
from pipeline.config import ExtractConfig
from pipeline.decode.sampling import Frames, iter_chosen_frames
from pipeline.extract import ExtractProgress, run_extract
from pipeline.sound_pass import add_sound
from pipeline.workers.messages import Output
from tests.builders import write_face_video
from tests.features.networks.encoder_files import write_onnx
from tests.pipeline.test_encoders import write_manifest
from tests.pipeline.workers.local_pool import LocalPool

CONFIG = ExtractConfig(min_face="40", phases=2, precision="float32")
NAMES = {"a": "train", "b": "val", "empty": "test", "d": "val"}
TWO_CLIPS_A_SHARD = partial(Output, shard_frames=5, first_frames=5)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderSpec]:
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "place": read_encoder_spec(
            write_onnx(folder / "place.onnx", name="place", looks_at="frame", crop="centre")
        ),
        "look": read_encoder_spec(write_onnx(folder / "look.onnx", name="look", margin=0.2)),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, EncoderSpec]) -> Path:
    """Films, a store of two shards without streams, and one with streams from the first pass."""
    folder = tmp_path_factory.mktemp("made")
    for number, name in enumerate(NAMES):
        write_face_video(
            folder / f"{name}.mp4", n_frames=10, shift_px=8 * number, face_found=name != "empty"
        )
    write_manifest(folder, NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.extract.WorkerPool", LocalPool)
        patch.setattr("pipeline.second_pass.WorkerPool", LocalPool)
        patch.setattr("pipeline.extract.Output", TWO_CLIPS_A_SHARD)
        run_extract(folder / "m.csv", folder / "s", CONFIG)
        run_extract(folder / "m.csv", folder / "first", CONFIG, encoders=[*encoders.values()])
    assert len(open_store(folder / "s").shards) == 2
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it all to work on."""
    return shutil.copytree(made, tmp_path / "copy")


def hash_files(store: Path) -> dict[str, str]:
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.rglob("*.h5"))
    }


@pytest.mark.usefixtures("local")
def test_the_second_pass_gives_what_the_first_would_have_given(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    told: list[ExtractProgress] = []
    before = hash_files(place / "s")
    summary = run_extract(
        place / "m.csv", place / "s", CONFIG, encoders=[*encoders.values()], progress=told.append
    )
    assert (summary.clips_done, summary.clips_added, summary.clips_failed) == (0, 4, 0)
    assert summary.streams_lacking == {"place": 0, "look": 0}
    assert (told[-1].n_clips, told[-1].n_done) == (4, 4)
    assert verify_store(place / "s") == []
    assert {n: h for n, h in hash_files(place / "s").items() if n in before} == before
    first, second = open_store(place / "first"), open_store(place / "s")
    assert second.fingerprint == first.fingerprint
    assert second.streams == first.streams
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.streams["place"], other.streams["place"])
        np.testing.assert_array_equal(one.face_streams["look"], other.face_streams["look"])


def test_workers_add_streams_as_well(place: Path, encoders: dict[str, EncoderSpec]) -> None:
    specs = [*encoders.values()]
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=specs, workers=2)
    assert (summary.clips_added, summary.clips_failed) == (4, 0)
    assert set(open_store(place / "s").streams) == {"place", "look"}
    assert verify_store(place / "s") == []


@pytest.mark.usefixtures("local")
def test_only_what_is_missing_is_added(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    note_decoded(monkeypatch, decoded)
    run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert sorted(decoded) == sorted(NAMES)
    lost = place / "s" / "streams" / "place" / "0001.h5"
    lost.unlink()
    before = hash_files(place / "s")
    decoded.clear()
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert summary.clips_added == len(decoded) == 2
    assert verify_store(place / "s") == []
    assert {n: h for n, h in hash_files(place / "s").items() if n in before} == before
    decoded.clear()
    assert run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert decoded == []


def note_decoded(monkeypatch: pytest.MonkeyPatch, decoded: list[str]) -> None:
    def decode(clip: Any, *arguments: Any, **more: Any) -> Frames:
        decoded.append(clip.clip_id)
        return (yield from iter_chosen_frames(clip, *arguments, **more))

    monkeypatch.setattr(pipeline.workers.stream_extractor, "iter_chosen_frames", decode)


@pytest.mark.usefixtures("local")
def test_a_clip_without_a_face_is_not_decoded_for_faces(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    note_decoded(monkeypatch, decoded)
    run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["look"]])
    assert sorted(decoded) == ["a", "b", "d"]
    clip = open_store(place / "s").read_clip(2)
    assert clip.face_streams["look"].shape == (0, 6)


@pytest.mark.usefixtures("local")
def test_two_encoders_that_lack_different_shards_get_what_each_lacks(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    specs = [*encoders.values()]
    run_extract(place / "m.csv", place / "s", CONFIG, encoders=specs)
    before = hash_files(place / "s")
    (place / "s" / "streams" / "place" / "0001.h5").unlink()
    (place / "s" / "streams" / "look" / "0000.h5").unlink()
    assert run_extract(place / "m.csv", place / "s", CONFIG, encoders=specs).clips_added == 4
    assert hash_files(place / "s").keys() == before.keys()
    first = open_store(place / "first")
    for one, other in zip(first, open_store(place / "s"), strict=True):
        np.testing.assert_array_equal(one.streams["place"], other.streams["place"])
        np.testing.assert_array_equal(one.face_streams["look"], other.face_streams["look"])


@pytest.mark.usefixtures("local")
def test_a_clip_whose_file_is_lost_lacks_the_stream_and_no_other_does(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    lose(place, "d")
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_added, summary.clips_failed) == (3, 1)
    assert summary.streams_lacking == {"place": 1}
    store, first = open_store(place / "s"), open_store(place / "first")
    assert set(store.streams) == {"place"}
    assert store.find_lacking("place") == {"d": Lack.RETRIED}
    for one, other in zip(store, first, strict=True):
        assert ("place" in one.streams) == (one.clip_id != "d")
        for rows in one.streams.values():
            np.testing.assert_array_equal(rows, other.streams["place"])
    (failure,) = store.failures.to_dict("records")
    assert (failure["clip_id"], failure["step"]) == ("d", "read")
    assert str(failure["reason"]) == (
        "no such file; its other features stand, but it lacks the stream place"
    )
    assert verify_store(place / "s") == []


def lose(place: Path, clip_id: str) -> None:
    (place / f"{clip_id}.mp4").rename(place / f"{clip_id}.lost")


@pytest.mark.usefixtures("local")
def test_a_file_that_is_back_is_all_that_is_decoded(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(place, "b")
    run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    (place / "b.lost").rename(place / "b.mp4")
    lose(place, "a")  # of the same shard: its rows stay all the same
    decoded: list[str] = []
    note_decoded(monkeypatch, decoded)
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert decoded == ["b"]
    assert (summary.clips_added, summary.clips_failed) == (1, 0)
    store = open_store(place / "s")
    assert store.failures.empty
    assert not store.find_lacking("place")
    for one, other in zip(store, open_store(place / "first"), strict=True):
        np.testing.assert_array_equal(one.streams["place"], other.streams["place"])
    assert verify_store(place / "s") == []


@pytest.mark.usefixtures("local")
def test_nothing_is_done_again_while_a_file_is_lost(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(place, "d")
    run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    before, decoded = hash_files(place / "s"), list[str]()
    note_decoded(monkeypatch, decoded)
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert (decoded, hash_files(place / "s")) == ([], before)
    assert (summary.clips_added, summary.clips_failed) == (0, 1)
    assert list(open_store(place / "s").failures["clip_id"]) == ["d"]


@pytest.mark.usefixtures("local")
def test_a_clip_that_cannot_be_decoded_is_not_tried_again_but_told(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        change_frames(patch, "b", break_off)
        run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    run_extract(place / "m.csv", place / "s", CONFIG)
    decoded: list[str] = []
    note_decoded(monkeypatch, decoded)
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert decoded == []
    assert (summary.clips_failed, summary.streams_lacking) == (1, {"place": 1})
    (failure,) = open_store(place / "s").failures.to_dict("records")
    assert str(failure["reason"]).startswith("breaks off; its other features stand")
    (place / "s/streams/place/0000.h5").unlink()
    run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert sorted(decoded) == ["a", "b"]
    assert open_store(place / "s").failures.empty


@pytest.mark.usefixtures("local")
def test_a_clip_whose_file_could_not_be_read_is_tried_again(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        change_frames(patch, "b", fail_to_read)
        run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    (failure,) = open_store(place / "s").failures.to_dict("records")
    assert (failure["clip_id"], failure["step"]) == ("b", "read")
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_added, summary.clips_failed) == (1, 0)


@pytest.mark.usefixtures("local")
def test_a_shard_of_another_name_gets_its_stream(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    (place / "s/shards/0001.h5").rename(place / "s/shards/7.h5")
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_added, summary.clips_failed) == (4, 0)
    assert (place / "s/streams/place/7.h5").is_file()
    assert verify_store(place / "s") == []


@pytest.mark.usefixtures("local")
def test_a_clip_that_the_manifest_no_longer_names_cannot_get_a_stream(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    write_manifest(place, {name: split for name, split in NAMES.items() if name != "a"})
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_added, summary.clips_failed) == (3, 1)
    reasons = open_store(place / "s").failures["reason"]
    assert "it is not in this manifest" in str(reasons[0])


@pytest.mark.usefixtures("local")
def test_a_changed_clip_is_extracted_first_and_its_old_rows_do_not_count(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    write_face_video(place / "a.mp4", n_frames=20, shift_px=3)
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[*encoders.values()])
    assert (summary.clips_done, summary.clips_added, summary.clips_failed) == (1, 3, 0)
    assert verify_store(place / "s") == []
    run_extract(place / "m.csv", place / "new", CONFIG, encoders=[*encoders.values()])
    new = {clip.clip_id: clip for clip in open_store(place / "new")}
    for clip in open_store(place / "s"):
        np.testing.assert_array_equal(clip.streams["place"], new[clip.clip_id].streams["place"])
        for name, rows in clip.face_streams.items():
            np.testing.assert_array_equal(rows, new[clip.clip_id].face_streams[name])


def shift_times(frames: Frames) -> Frames:
    for frame in frames:
        yield replace(frame, record=replace(frame.record, pts_s=frame.record.pts_s + 0.01))
    return {}


def drop_last(frames: Frames) -> Frames:
    first = next(frames)
    for frame in frames:
        yield first
        first = frame
    return {}


def add_one(frames: Frames) -> Frames:
    for frame in frames:
        yield frame
    yield frame
    return {}


def break_off(frames: Frames) -> Frames:
    yield next(frames)
    raise ClipError("breaks off")


def fail_to_read(frames: Frames) -> Frames:
    yield next(frames)
    raise OSError(5, "Input/output error")


def change_frames(
    monkeypatch: pytest.MonkeyPatch, clip_id: str, change: Callable[[Frames], Frames]
) -> None:
    def decode(clip: Any, *arguments: Any, **more: Any) -> Frames:
        frames = iter_chosen_frames(clip, *arguments, **more)
        return (yield from (change(frames) if clip.clip_id == clip_id else frames))

    monkeypatch.setattr(pipeline.workers.stream_extractor, "iter_chosen_frames", decode)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shift_times, "it has a frame at 0.010 s, the store has none"),
        (drop_last, "it has 1 rows, in the store 2"),
        (add_one, "row 2 is at 0.200 s, in the store it is missing"),
        (break_off, "breaks off"),
    ],
    ids=["other times", "a frame fewer", "a frame more", "damage"],
)
@pytest.mark.usefixtures("local")
def test_a_clip_that_decodes_to_other_frames_lacks_the_stream(
    place: Path,
    encoders: dict[str, EncoderSpec],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Frames], Frames],
    reason: str,
) -> None:
    change_frames(monkeypatch, "b", change)
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[*encoders.values()])
    assert (summary.clips_added, summary.clips_failed) == (3, 1)
    assert summary.streams_lacking == {"place": 1, "look": 1}
    assert open_store(place / "s").find_lacking("look") == {"b": Lack.FINAL}
    (failure,) = open_store(place / "s").failures.to_dict("records")
    assert failure["clip_id"] == "b"
    assert reason in str(failure["reason"])
    assert verify_store(place / "s") == []
    assert not list((place / "s").rglob("*partial"))


def test_new_clips_get_the_streams_in_the_pass_that_extracts_them(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.extract.WorkerPool", LocalPool)
    write_face_video(place / "new.mp4", n_frames=5, shift_px=9)
    write_manifest(place, NAMES | {"new": "train"})
    summary = run_extract(place / "m.csv", place / "s", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_done, summary.clips_added, summary.clips_failed) == (1, 4, 0)
    assert set(open_store(place / "s").streams) == {"place"}


@pytest.mark.usefixtures("local")
def test_new_clips_that_lack_a_stream_of_the_store_are_told(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_face_video(place / "new.mp4", n_frames=5, shift_px=9)
    write_manifest(place, NAMES | {"new": "train"})
    run_extract(place / "m.csv", place / "first", CONFIG)
    assert "new clips lack the streams look, place; run the same again with their --encoder" in (
        caplog.text
    )
    assert dict(open_store(place / "first").streams) == {}


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("later", [(), ("audio",)], ids=["no sound to come", "sound to come"])
def test_new_clips_without_the_sound_of_the_store_are_told_unless_it_follows(
    place: Path, caplog: pytest.LogCaptureFixture, later: tuple[str, ...]
) -> None:
    add_sound(place / "m.csv", place / "s")
    write_face_video(place / "new.mp4", n_frames=5, shift_px=9)
    write_manifest(place, NAMES | {"new": "train"})
    run_extract(place / "m.csv", place / "s", CONFIG, later_streams=later)
    assert ("new clips lack the streams audio; run" in caplog.text) == (not later)
    assert ("again with --audio" in caplog.text) == (not later)


def test_a_clip_that_ends_its_worker_lacks_the_stream_and_no_other_does(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"crash-b" if name == "b" else name: split for name, split in NAMES.items()}
    (place / "b.mp4").rename(place / "crash-b.mp4")
    write_manifest(place, names)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.extract.WorkerPool", LocalPool)
        patch.setattr("pipeline.extract.Output", TWO_CLIPS_A_SHARD)
        run_extract(place / "m.csv", place / "new", CONFIG)
    poisoned = "tests.pipeline.workers.poisoned:PoisonedStreams"
    monkeypatch.setattr("pipeline.extract.STREAM_EXTRACTOR", poisoned)
    summary = run_extract(place / "m.csv", place / "new", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_added, summary.clips_failed) == (3, 1)
    assert open_store(place / "new").find_lacking("place") == {"crash-b": Lack.RETRIED}
    (failure,) = open_store(place / "new").failures.to_dict("records")
    assert (failure["clip_id"], failure["step"]) == ("crash-b", "worker")
    assert "crashed (signal 11" in str(failure["reason"])
    assert verify_store(place / "new") == []
    assert not list((place / "new").rglob("*partial"))
    monkeypatch.undo()
    summary = run_extract(place / "m.csv", place / "new", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_added, summary.clips_failed) == (1, 0)
    assert not open_store(place / "new").find_lacking("place")


def test_a_second_pass_that_was_killed_goes_on_where_it_was(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.second_pass.WorkerPool", LocalPool)

    def stop(progress: ExtractProgress) -> None:
        if progress.n_done == 3:  # the first shard is finished
            raise KeyboardInterrupt

    specs = [encoders["place"]]
    with pytest.raises(KeyboardInterrupt):
        run_extract(place / "m.csv", place / "s", CONFIG, encoders=specs, progress=stop)
    assert dict(open_store(place / "s").streams) == {}
    assert not list((place / "s").rglob("*partial"))
    assert run_extract(place / "m.csv", place / "s", CONFIG, encoders=specs).clips_added == 2
    assert set(open_store(place / "s").streams) == {"place"}
