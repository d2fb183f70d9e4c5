"""Streams of encoders: files beside the shards, which a store gains, keeps, checks and may lack."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import features.store.writer
from cli import cli
from features.contracts import MEC_CLASSES
from features.errors import ConfigError, ShardError
from features.store.bundle import pack_bundle, read_bundle_info, unpack_bundle, verify_bundle
from features.store.clip_writer import ClipWriter
from features.store.reader import open_store, verify_store
from features.store.writer import StoreWriter, write_store
from tests.added_streams import (
    DINO,
    HEADER,
    PLACES,
    add_stream,
    make_rows,
    with_streams,
    write_stream_file,
)
from tests.builders import clip_features, small_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six clips in three shards."""
    monkeypatch.setattr(features.store.writer, "SHARD_FRAMES", 6)
    return small_store(tmp_path / "store")


def test_a_stream_added_to_a_finished_store_is_read_with_its_clips(store: Path) -> None:
    add_stream(store, DINO)
    add_stream(store, PLACES)
    opened = open_store(store)
    assert dict(opened.streams) == {"dino": DINO, "places": PLACES}
    for i, clip in enumerate(opened):
        assert clip.streams.keys() == {"places"}
        assert clip.face_streams.keys() == {"dino"}
        np.testing.assert_array_equal(clip.streams["places"], make_rows(clip, PLACES))
        np.testing.assert_array_equal(clip.face_streams["dino"], make_rows(clip, DINO))
        np.testing.assert_array_equal(
            opened.read_clip(i).face_streams["dino"], make_rows(clip, DINO)
        )
    assert len(opened) == 6
    assert verify_store(store) == []


def test_adding_a_stream_touches_no_other_file_but_the_index(store: Path) -> None:
    add_stream(store, PLACES)
    before = {f: f.read_bytes() for f in store.rglob("*.h5")}
    add_stream(store, DINO)
    assert {f: f.read_bytes() for f in before} == before
    assert len(list(store.rglob("*.h5"))) == len(before) + 3


def test_streams_are_written_in_the_same_pass_as_their_clips(tmp_path: Path) -> None:
    clips = [
        with_streams(clip_features(f"c{i}", n_frames=i + 1, n_faces=2 * i), DINO, PLACES)
        for i in range(4)
    ]
    path = write_store(
        tmp_path / "s", clips, classes=MEC_CLASSES, fingerprint="x", added_streams=[DINO, PLACES]
    )
    for found, clip in zip(open_store(path), clips, strict=True):
        np.testing.assert_array_equal(found.streams["places"], clip.streams["places"])
        np.testing.assert_array_equal(found.face_streams["dino"], clip.face_streams["dino"])
    assert verify_store(path) == []


def test_a_reader_gets_only_the_streams_that_it_asks_for(store: Path) -> None:
    add_stream(store, DINO)
    add_stream(store, PLACES)
    opened = open_store(store)
    assert [c.face_streams.keys() | c.streams for c in opened.iter_clips(streams=["dino"])] == [
        {"dino"}
    ] * 6
    assert opened.read_clip(0, streams=()).face_streams == {}
    with pytest.raises(ShardError, match="not all clips have the stream 'clip', but dino, places"):
        next(opened.iter_clips(streams=["clip"]))


def test_a_stream_that_a_shard_lacks_is_work_left_and_not_offered(store: Path) -> None:
    with StoreWriter(store, HEADER) as writer:
        first, *left = writer.missing_streams(DINO)
        writer.list_stream_file(write_stream_file(store, DINO, first))
    with StoreWriter(store, HEADER) as writer:
        assert writer.missing_streams(DINO) == left == ["shards/0001.h5", "shards/0002.h5"]
    opened = open_store(store)
    assert opened.streams == {}
    assert opened.read_clip(0).face_streams == {}
    assert verify_store(store) == []
    (told,) = run_info(store)["added_streams"]
    assert (told["clips_lacking"], told["n_rows"], told["licence"]) == (4, 6, "Apache-2.0")


def run_info(store: Path) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["store", "info", str(store), "--json"])
    return dict(json.loads(result.stdout, parse_constant=pytest.fail))


def test_store_info_tells_of_added_streams(store: Path) -> None:
    add_stream(store, DINO)
    (told,) = run_info(store)["added_streams"]
    n_bytes = sum(file.stat().st_size for file in store.glob("streams/dino/*"))
    assert told == {
        "name": "dino",
        "rows": "face",
        "size": 4,
        "n_rows": 18,
        "bytes": n_bytes,
        "clips_lacking": 0,
        "licence": "Apache-2.0",
        "sha256": "e" * 64,
        "fingerprint": DINO.fingerprint,
        "encoder": dict(DINO.encoder),
    }


def test_a_clip_added_later_without_the_stream_leaves_it_incomplete(store: Path) -> None:
    add_stream(store, DINO)
    write_store(store, [clip_features("new")], classes=MEC_CLASSES, fingerprint="test")
    assert open_store(store).streams == {}
    add_stream(store, DINO)
    assert [c.face_streams["dino"].shape for c in open_store(store)] == [(3, 4)] * 7


def test_a_clip_extracted_again_gives_the_rows_of_its_newest_shard(store: Path) -> None:
    add_stream(store, DINO)
    newer = with_streams(clip_features("c1", n_frames=5), DINO)
    write_store(store, [newer], classes=MEC_CLASSES, fingerprint="test", added_streams=[DINO])
    opened = open_store(store)
    assert len(opened) == 6
    assert opened.streams.keys() == {"dino"}
    (found,) = (c for c in opened if c.clip_id == "c1")
    np.testing.assert_array_equal(found.face_streams["dino"], newer.face_streams["dino"])
    assert verify_store(store) == []


def test_new_labels_leave_streams_as_they_are(store: Path) -> None:
    add_stream(store, DINO)
    with StoreWriter(store, HEADER) as writer:
        writer.relabel({f"c{i}": {"label": "neutral"} for i in range(6)})
    assert {(c.label, c.face_streams["dino"].shape) for c in open_store(store)} == {
        ("neutral", (3, 4))
    }
    assert verify_store(store) == []


def test_a_stream_of_another_encoder_under_the_same_name_is_refused(store: Path) -> None:
    add_stream(store, DINO)
    other = replace(DINO, fingerprint="o" * 64)
    message = "its stream dino has the fingerprint dddd.*another name, or delete the folder"
    with StoreWriter(store, HEADER) as writer, pytest.raises(ConfigError, match=message):
        writer.missing_streams(other)
    with pytest.raises(ConfigError, match=message), StoreWriter(store, HEADER, [other]):
        pass
    shutil.rmtree(store / "streams/dino")
    add_stream(store, other)
    assert open_store(store).streams["dino"] == other


def test_a_stream_in_the_shards_keeps_its_name(tmp_path: Path) -> None:
    header = replace(HEADER, streams={"dino": 4})
    with StoreWriter(tmp_path, header) as writer, pytest.raises(ConfigError, match="in its shards"):
        writer.missing_streams(DINO)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"face_streams": {}}, "no stream dino with a row a face", id="missing"),
        pytest.param(
            {"streams": {"dino": np.zeros((3, 4), np.float16)}, "face_streams": {}},
            "no stream dino with a row a face",
            id="rows of frames",
        ),
        pytest.param(
            {"face_streams": {"dino": np.zeros((3, 5), np.float16)}},
            r"\(3, 5\), expected float16 \(n, 4\)",
            id="another size",
        ),
    ],
)
def test_a_clip_that_does_not_fit_the_stream_is_not_written(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    clips = [with_streams(clip_features("a"), DINO), replace(clip_features("b"), **changed)]
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path, clips, classes=MEC_CLASSES, fingerprint="x", added_streams=[DINO])
    assert [clip.clip_id for clip in open_store(tmp_path)] == ["a"]
    assert verify_store(tmp_path) == []


def test_rows_of_a_dropped_clip_are_in_no_file(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, HEADER) as store_writer:
        writer = ClipWriter(tmp_path, HEADER, 4096, [DINO])
        writer.add_rows(with_streams(clip_features("dropped"), DINO))
        writer.drop_clip()
        clip = with_streams(clip_features("kept", n_faces=1), DINO)
        writer.add_rows(clip)
        writer.close_clip(clip)
        writer.add_rows(with_streams(clip_features("open"), DINO))
        entry = writer.finish()
        assert entry is not None
        store_writer.list_shard(entry)
    (found,) = open_store(tmp_path)
    np.testing.assert_array_equal(found.face_streams["dino"], clip.face_streams["dino"])
    assert verify_store(tmp_path) == []


def test_a_bundle_carries_added_streams(store: Path, tmp_path: Path) -> None:
    add_stream(store, DINO)
    add_stream(store, PLACES)
    pack_bundle(store, tmp_path / "b")
    assert verify_bundle(tmp_path / "b") == []
    assert read_bundle_info(tmp_path / "b").added_streams == (DINO, PLACES)
    unpack_bundle(tmp_path / "b", tmp_path / "copy")
    assert (tmp_path / "copy/store.json").read_bytes() == (store / "store.json").read_bytes()
    for found, clip in zip(open_store(tmp_path / "copy"), open_store(store), strict=True):
        np.testing.assert_array_equal(found.face_streams["dino"], clip.face_streams["dino"])
    assert verify_store(tmp_path / "copy") == []


def test_a_bundle_carries_what_there_is_of_a_stream(store: Path, tmp_path: Path) -> None:
    add_stream(store, DINO)
    (store / "streams/dino/0001.h5").unlink()
    pack_bundle(store, tmp_path / "b")
    unpack_bundle(tmp_path / "b", tmp_path / "copy")
    with StoreWriter(tmp_path / "copy", HEADER) as writer:
        assert writer.missing_streams(DINO) == ["shards/0001.h5"]
