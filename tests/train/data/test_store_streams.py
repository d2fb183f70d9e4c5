"""What heads read of stores: every store has it, and has it the same; all else may differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.errors import ConfigError
from features.store.reader import open_store
from features.store.shard_format import StreamHeader
from tests.train.streams import (
    AUDIO,
    DINO,
    make_clip,
    write_neither,
    write_other_context,
    write_streams,
)
from train.config import FitConfig
from train.data.batches import gather_batch
from train.data.matrices import DiskMatrix
from train.data.store_streams import choose_matrices, list_matrices
from train.data.stores import read_tables
from train.streams import MatrixSpec

OTHER = replace(AUDIO, fingerprint="o" * 64)
READS_AUDIO = FitConfig(streams="audio")


def write_other(path: Path, *headers: StreamHeader, **told: object) -> Path:
    """A store of other clips."""
    clips = [make_clip(number, *headers, prefix="d") for number in range(6)]
    return write_streams(path, *headers, clips=clips, **told)


def test_sizes_and_rows_come_from_the_store(tmp_path: Path) -> None:
    face = np.zeros((0, 7), np.float16)
    clip = replace(
        make_clip(3, AUDIO, DINO), face_vector=face, streams={"audio": np.ones((2, 3), np.float16)}
    )
    path = write_streams(tmp_path / "s", AUDIO, DINO, clips=[clip], face_vector_size=7)
    config = FitConfig(streams="context,audio,dino,face")
    assert choose_matrices(["cascade"], config, [open_store(path)]) == {
        "context_2x2": MatrixSpec(shape=(512, 2, 2)),
        "audio": MatrixSpec(shape=(3,), fingerprint="a" * 64),
        "dino": MatrixSpec(shape=(5,), rows="face", fingerprint="d" * 64),
        "face": MatrixSpec(shape=(7,), rows="face"),
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (OTHER, r"the stream audio has the fingerprint oooooooooooo, expected aaaaaaaaaaaa as in"),
        (replace(AUDIO, size=4), r"the stream audio has the shape \(4,\), expected \(3,\) as in"),
        (replace(AUDIO, rows="face"), r"the stream audio has a row a face, expected a row a frame"),
    ],
    ids=["fingerprint", "size", "rows"],
)
def test_stores_may_differ_in_what_is_not_read_and_only_there(
    header: StreamHeader, message: str, tmp_path: Path
) -> None:
    stores = [
        open_store(write_streams(tmp_path / "a", AUDIO)),
        open_store(write_other(tmp_path / "b", header)),
    ]
    assert list(choose_matrices(["face", "caca-a"], FitConfig(), stores)) == ["face", "context_2x2"]
    with pytest.raises(ConfigError, match=rf"b: {message}"):
        choose_matrices(["face"], READS_AUDIO, stores)


def test_a_stream_that_a_store_lacks_is_named_with_the_store_and_the_remedy(tmp_path: Path) -> None:
    stores = [
        open_store(write_streams(tmp_path / "a", AUDIO, DINO)),
        open_store(write_other(tmp_path / "b", DINO)),
    ]
    message = (
        rf"{tmp_path}/b: head face reads the stream 'audio', which the store does not have\. It "
        rf"has: context, face, dino\. .* extract --store {tmp_path}/b --encoder FILE"
    )
    with pytest.raises(ConfigError, match=message):
        choose_matrices(["face"], READS_AUDIO, stores)
    assert list(choose_matrices(["face"], FitConfig(streams="dino"), stores)) == ["dino"]


def test_a_stream_that_some_clips_lack_is_named_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.store.writer.SHARD_FRAMES", 20)
    path = write_streams(tmp_path / "a", AUDIO)
    assert len(open_store(path).shards) > 2
    (path / "streams/audio/0001.h5").unlink()
    store = open_store(path)
    n_lacking = int((store.clips["shard"] == "shards/0001.h5").sum())
    message = rf"'audio', which {n_lacking} of 24 clip\(s\) lack\..* Go on with the stream's encod"
    with pytest.raises(ConfigError, match=message):
        choose_matrices(["face"], READS_AUDIO, [store])
    choose_matrices(["face"], FitConfig(), [store])


def test_conv2d3d_reads_maps_only(tmp_path: Path) -> None:
    stores = [open_store(write_streams(tmp_path / "a", AUDIO))]
    with pytest.raises(ConfigError, match=r"head conv2d3d reads maps .* 'audio' has 3 values with"):
        choose_matrices(["conv2d3d"], READS_AUDIO, stores)
    config = FitConfig(streams="context", context="7x7")
    assert list(choose_matrices(["conv2d3d"], config, stores)) == ["context_7x7"]


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["in memory", "on disk"])
def test_each_step_has_a_face_and_the_frame_it_stands_in(memory_gb: float, tmp_path: Path) -> None:
    store = open_store(write_streams(tmp_path / "s", AUDIO, DINO))
    streams = {"audio": "audio", "dino": "dino"}
    matrices = choose_matrices(["parallel"], FitConfig(streams="audio,dino"), [store])
    config = FitConfig(precision="float32", max_time_steps=0)
    tables = read_tables([store], config, matrices, memory_gb=memory_gb)
    by_id = {clip.clip_id: clip for clip in store}
    n_without = 0
    for table in tables.values():
        assert isinstance(table.features["dino"], DiskMatrix) == (memory_gb == 0)
        n_clips = len(table)
        batch = gather_batch(table, np.arange(n_clips), np.zeros(n_clips, np.intp), streams)
        for i, clip_id in enumerate(table.clip_id):
            clip, n_steps = by_id[clip_id], int(batch.n_steps[i])
            at_phase = clip.phase[clip.face_frame] == 0
            audio, dino = (batch.streams[name][i] for name in streams)
            if at_phase.any():
                expected = clip.streams["audio"][clip.face_frame[at_phase]]
                assert np.array_equal(dino[:n_steps], clip.face_streams["dino"][at_phase])
            else:
                n_without += 1
                expected = clip.streams["audio"][clip.phase == 0]
                assert torch.all(dino[:n_steps] == 0)
            assert np.array_equal(audio[:n_steps], expected)
            assert torch.all(audio[n_steps:] == 0)
            assert torch.all(dino[n_steps:] == 0)
    assert n_without >= 6


def test_unread_streams_stay_unread(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "s", AUDIO, DINO)
    (file,) = (path / "streams/dino").iterdir()
    file.write_bytes(bytes(file.stat().st_size))  # whoever reads it fails
    store = open_store(path)
    matrices = choose_matrices(["face"], READS_AUDIO, [store])
    assert read_tables([store], FitConfig(precision="float32"), matrices)[
        "train"
    ].features.keys() == {"audio"}


def test_another_encoders_context_is_read_in_the_place_of_the_stores_own(tmp_path: Path) -> None:
    path = write_other_context(tmp_path / "s", 6)
    store = open_store(path)
    expected = MatrixSpec(shape=(6,), fingerprint="c" * 64)
    for head in ("context", "caca"):
        matrices = choose_matrices([head], FitConfig(), [store])
        assert matrices["context"] == expected
        table = read_tables([store], FitConfig(precision="float32"), matrices)["train"]
        assert table.features["context"].shape == (1 + 12, 6)  # frames of c00, c02, c04
    own = open_store(write_other(tmp_path / "own"))
    message = "own: the stream context has the shape .* expected .6,. as in"
    with pytest.raises(ConfigError, match=message):
        choose_matrices(["context"], FitConfig(), [store, own])
    (path / "streams/context/0000.h5").unlink()
    with pytest.raises(ConfigError, match=r"'context', which 6 of 6 clip\(s\) lack\. It has: face"):
        choose_matrices(["context"], FitConfig(), [open_store(path)])


def test_another_encoders_face_is_read_in_the_place_of_the_stores_own(tmp_path: Path) -> None:
    store = open_store(write_neither(tmp_path / "s", 6))
    assert set(list_matrices(store)) == {"context", "face"}
    for head in ("face", "caca-a", "cascade"):
        matrices = choose_matrices([head], FitConfig(), [store])
        assert matrices["face"] == MatrixSpec(shape=(7,), rows="face", fingerprint="f" * 64)
        table = read_tables([store], FitConfig(precision="float32"), matrices)["train"]
        clips = [clip for clip in store if clip.split == "train"]
        rows = np.concatenate([clip.face_streams["face"] for clip in clips])
        read = table.features["face"][1:].numpy()
        np.testing.assert_array_equal(np.sort(read, axis=0), np.sort(rows, axis=0))


def test_stores_with_the_faces_of_different_encoders_do_not_meet(tmp_path: Path) -> None:
    one = open_store(write_neither(tmp_path / "one", 6))
    other = open_store(write_neither(tmp_path / "other", 6, fingerprint="o" * 64))
    message = "other: the stream face has the fingerprint oooo.* expected ffff.* as in"
    with pytest.raises(ConfigError, match=message):
        choose_matrices(["face"], FitConfig(), [one, other])
    assert choose_matrices(["context"], FitConfig(), [one, other])


def test_a_store_without_a_face_cnn_has_no_maps_to_offer(tmp_path: Path) -> None:
    store = open_store(write_neither(tmp_path, 6))
    message = "reads face maps, .* with --face-map, without an encoder named face, into a new store"
    with pytest.raises(ConfigError, match=message):
        choose_matrices(["conv2d3d"], FitConfig(), [store])
