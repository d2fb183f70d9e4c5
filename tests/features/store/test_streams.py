"""Extra streams: others' features of each frame, kept by the store, carried and checked."""

from __future__ import annotations

import lzma
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features.contracts import MEC_CLASSES, ClipFeatures
from features.errors import ConfigError, ShardError
from features.store.bundle import pack_bundle, unpack_bundle
from features.store.reader import open_store, verify_store
from features.store.shard_reader import check_shard
from features.store.writer import write_store
from tests.archived import archived_clips
from tests.builders import clip_features
from tests.fits import fit_runs
from train.config import FitConfig
from train.data.store_streams import choose_matrices
from train.runs.folder import read_run

ARCHIVES = Path(__file__).parents[2] / "archives"
CLASSES = ("happy", "sad")


def clip_with_audio(clip_id: str, *, size: int = 4, **changed: Any) -> ClipFeatures:
    clip = clip_features(clip_id, **changed)
    audio = np.arange(clip.n_frames * size).reshape(clip.n_frames, size)
    return replace(clip, streams={"audio": audio.astype(np.float16)})


def write_audio_store(path: Path, n_clips: int = 3, *, size: int = 4) -> Path:
    splits = ("train", "train", "train", "val", "val", "test")
    clips = [
        clip_with_audio(
            f"c{i}", n_frames=2 + i % 2, size=size, label=CLASSES[i % 2], split=splits[i % 6]
        )
        for i in range(n_clips)
    ]
    return write_store(path, clips, classes=CLASSES, fingerprint="x", streams={"audio": size})


def test_a_stream_comes_back_clip_by_clip(tmp_path: Path) -> None:
    store = open_store(write_audio_store(tmp_path / "s"))
    assert dict(store.header.streams) == {"audio": 4}
    for i, clip in enumerate(store):
        assert clip.streams["audio"].dtype == np.float16
        np.testing.assert_array_equal(
            clip.streams["audio"], np.arange(clip.n_frames * 4).reshape(-1, 4), err_msg=f"clip {i}"
        )
    assert verify_store(tmp_path / "s") == []


def test_a_store_without_streams_gives_none(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s", [clip_features()], classes=CLASSES, fingerprint="x")
    assert open_store(path).header.streams == {}
    assert open_store(path).read_clip(0).streams == {}


def test_a_bundle_carries_streams(tmp_path: Path) -> None:
    pack_bundle(write_audio_store(tmp_path / "s"), tmp_path / "b")
    unpack_bundle(tmp_path / "b", tmp_path / "copy")
    assert open_store(tmp_path / "copy").read_clip(2).streams["audio"].shape == (2, 4)


def test_verify_counts_the_rows_of_a_stream(tmp_path: Path) -> None:
    path = write_audio_store(tmp_path / "s")
    shard = path / "shards/0000.h5"
    with h5py.File(shard, "r+") as file:
        file["stream/audio"].resize(5, axis=0)
    problem = re.escape("/stream/audio is float16 (5, 4), expected float16 (7, 'any')")
    with pytest.raises(ShardError, match=problem):
        check_shard(shard)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"streams": {}}, "its streams are {}", id="missing"),
        pytest.param(
            {"streams": {"audio": np.zeros((3, 5), np.float16)}}, "{'audio': 5}", id="other size"
        ),
    ],
)
def test_a_clip_that_does_not_fit_the_stores_streams_is_not_written(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    clip = replace(clip_with_audio("a"), **changed)
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path, [clip], classes=CLASSES, fingerprint="x", streams={"audio": 4})
    assert len(open_store(tmp_path)) == 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        pytest.param("face", np.zeros((3, 4), np.float16), id="a name of the store's own"),
        pytest.param("my audio", np.zeros((3, 4), np.float16), id="a blank in the name"),
        pytest.param("audio", np.zeros((2, 4), np.float16), id="a row too few"),
        pytest.param("audio", np.zeros((3, 4), np.float32), id="float32"),
        pytest.param("audio", np.zeros((3, 4, 2), np.float16), id="not flat"),
    ],
)
def test_a_wrong_stream_cannot_exist(name: str, values: Any) -> None:
    with pytest.raises(ValueError, match="stream"):
        replace(clip_features(), streams={name: values})


def test_a_store_never_gets_streams_in_some_shards_only(tmp_path: Path) -> None:
    write_audio_store(tmp_path)
    with pytest.raises(ConfigError, match=r"the streams audio \[4\]; to be added: .*no extra"):
        write_store(tmp_path, [clip_features("z")], classes=CLASSES, fingerprint="x")


def test_a_cascade_of_three_streams_trains_from_the_store(tmp_path: Path) -> None:
    store = write_audio_store(tmp_path / "s", 12)
    config = FitConfig(epochs=1, min_updates=0, streams="context,audio,face", precision="float32")
    (summary,) = fit_runs([store], tmp_path / "runs", ["cascade"], [0], config)
    run = read_run(tmp_path / "runs" / summary.run)
    assert run.config["streams"] == {
        "context": {"matrix": "context_2x2", "shape": [512, 2, 2]},
        "audio": {"matrix": "audio", "shape": [4]},
        "face": {"matrix": "face", "shape": [512]},
    }
    assert run.config["settings"]["streams"] == "context,audio,face"


def test_stores_share_the_streams_that_are_read_and_may_differ_in_others(tmp_path: Path) -> None:
    with_audio = open_store(write_audio_store(tmp_path / "a"))
    other_size = open_store(write_audio_store(tmp_path / "b", size=5))
    plain = open_store(
        write_store(tmp_path / "c", [clip_features()], classes=CLASSES, fingerprint="x")
    )
    config = FitConfig(streams="audio")
    assert choose_matrices(["face"], config, [with_audio])["audio"].shape == (4,)
    with pytest.raises(ConfigError, match=r"c: head face reads the stream 'audio', which the stor"):
        choose_matrices(["face"], config, [with_audio, plain])
    with pytest.raises(ConfigError, match=r"audio has the shape \(5,\), expected \(4,\)"):
        choose_matrices(["face"], config, [with_audio, other_size])
    assert list(choose_matrices(["face"], FitConfig(), [with_audio, other_size, plain])) == ["face"]


@pytest.mark.parametrize("file", sorted(ARCHIVES.glob("store-v*.bundle.xz")), ids=lambda p: p.stem)
def test_every_archived_version_reads(file: Path, tmp_path: Path) -> None:
    assert file.stat().st_size < 20_000
    (tmp_path / "bundle").write_bytes(lzma.decompress(file.read_bytes()))
    unpack_bundle(tmp_path / "bundle", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.classes == MEC_CLASSES
    has_map = store.header.face_map_shape is not None
    clips = list(store.iter_clips(context_7x7=True, face_map=has_map))
    for found, expected in zip(clips, archived_clips(file.name.split(".")[0]), strict=True):
        for name, value in vars(expected).items():
            if name in ("streams", "face_streams"):
                streams = getattr(found, name)
                assert streams.keys() == value.keys()
                for stream, rows in value.items():
                    np.testing.assert_array_equal(streams[stream], rows, err_msg=stream)
            else:
                np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_there_are_archives_of_the_current_version() -> None:
    found = {file.name for file in ARCHIVES.glob("store-v1*")}
    names = ("store-v1", "store-v1-streams", "store-v1-face", "store-v1-lacking")
    assert found == {f"{name}.bundle.xz" for name in names}
