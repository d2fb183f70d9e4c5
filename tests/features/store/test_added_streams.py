"""Streams of encoders: files beside the shards, which a store gains, keeps, checks and may lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import features.store.writer
from features.contracts import MEC_CLASSES, ClipFeatures
from features.errors import ShardError
from features.store.reader import open_store, verify_store
from features.store.shard_format import ShardHeader, StreamHeader
from features.store.shard_reader import iter_shard_clips, read_shard_index
from features.store.shard_writer import StreamShardWriter
from features.store.writer import StoreWriter, write_store
from tests.builders import clip_features, small_store

HEADER = ShardHeader(fingerprint="test", classes=MEC_CLASSES, config={}, weights={}, versions={})
DINO = StreamHeader(
    name="dino", rows="face", size=4, fingerprint="d" * 64,
    encoder={"name": "dino", "licence": "Apache-2.0", "sha256": "e" * 64},
)  # fmt: skip
PLACES = StreamHeader(name="places", rows="frame", size=3, fingerprint="p" * 64, encoder={})


def make_rows(clip: ClipFeatures, header: StreamHeader) -> np.ndarray:
    """What the encoder of a stream gives for a clip: another for each clip, row and stream."""
    n_rows = clip.n_faces if header.rows == "face" else clip.n_frames
    rng = np.random.default_rng(list(f"{header.name} {clip.clip_id}".encode()))
    return rng.random((n_rows, header.size)).astype(np.float16)


def with_streams(clip: ClipFeatures, *headers: StreamHeader) -> ClipFeatures:
    rows = {h: {x.name: make_rows(clip, x) for x in headers if x.rows == h} for h in STREAM_ROWS}
    return replace(clip, streams=rows["frame"], face_streams=rows["face"])


STREAM_ROWS = ("frame", "face")


def write_stream_file(store: Path, header: StreamHeader, shard: str) -> Path:
    """What a second pass writes for a shard that is there."""
    index = read_shard_index(store / shard)
    writer = StreamShardWriter(store, header, int(Path(shard).stem))
    for clip in iter_shard_clips(index, range(len(index))):
        writer.add_rows(make_rows(clip, header))
        writer.close_clip(clip.clip_id, clip.sha256)
    writer.finish()
    return writer.path


def add_stream(store: Path, header: StreamHeader) -> None:
    """Add a stream to a finished store, as a second pass does."""
    with StoreWriter(store, HEADER) as writer:
        for shard in writer.missing_streams(header):
            writer.list_stream_file(write_stream_file(store, header, shard))


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
