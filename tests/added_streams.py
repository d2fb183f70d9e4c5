"""Streams of encoders for tests: what they hold, and how a store gains one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from features.contracts import MEC_CLASSES, ClipFeatures
from features.store.index import read_store_index
from features.store.shard_format import STREAM_ROWS, Lack, ShardHeader, StreamHeader
from features.store.shard_reader import iter_shard_clips, read_shard_index
from features.store.shard_writer import StreamShardWriter
from features.store.streams.index import iter_clip_parts, read_stream_index
from features.store.writer import StoreWriter

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


def write_stream_file(store: Path, header: StreamHeader, shard: str) -> Path:
    """What a second pass writes for a shard that is there."""
    index = read_shard_index(store / shard)
    writer = StreamShardWriter(store, header, shard)
    for clip in iter_shard_clips(index, range(len(index))):
        writer.add_rows(make_rows(clip, header))
        writer.close_clip(clip.clip_id, clip.sha256)
    writer.finish()
    return writer.path


def take_away(store: Path, name: str, lacks: Mapping[str, Lack]) -> None:
    """Write a stream's files anew, in which these clips lack it, and list them."""
    index = read_store_index(store)
    (stream,) = (stream for stream in index.added_streams if stream.name == name)
    with StoreWriter(store, index.header) as store_writer:
        for file in stream.shards:
            before = read_stream_index(store / file.name)
            writer = StreamShardWriter(store, stream.header, file.shard_name)
            for row, clip_id in enumerate(before.clip_ids):
                values = np.concatenate(
                    [np.zeros((0, stream.size), np.float16), *iter_clip_parts(before, row)]
                )
                lack = lacks.get(clip_id, Lack.NO)
                writer.add_rows(np.zeros_like(values) if lack else values)
                writer.close_clip(clip_id, before.sha256s[row], lack)
            writer.finish()
            store_writer.list_stream_file(writer.path)


def add_stream(store: Path, header: StreamHeader) -> None:
    """Add a stream to a finished store, as a second pass does."""
    with StoreWriter(store, HEADER) as writer:
        for shard in writer.missing_streams(header):
            writer.list_stream_file(write_stream_file(store, header, shard))
