"""Stores in which an encoder's stream stands in the place of the face features; licences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from features.contracts import MEC_CLASSES
from features.errors import ConfigError, ShardError
from features.store.bundle import pack_bundle, read_bundle_info, unpack_bundle
from features.store.index import read_store_index
from features.store.reader import open_store, verify_store
from features.store.writer import StoreWriter, write_store
from tests.added_streams import DINO, HEADER, PLACES, make_rows, with_streams
from tests.builders import clip_features, small_store

CONTEXT, FACE = replace(PLACES, name="context"), replace(DINO, name="face")
LICENCES = {"context": "MIT", "face": "research only"}


def write_own_faces(path: Path, *names: str) -> Path:
    """A store whose face features another encoder made."""
    clips = [with_streams(clip_features(name, face_vector=None), FACE) for name in names]
    return write_store(
        path, clips, classes=MEC_CLASSES, fingerprint="test", keeps_face=False,
        added_streams=[FACE],
    )  # fmt: skip


def write_neither(path: Path, *names: str) -> Path:
    """The same of the context features, too."""
    clips = [
        with_streams(
            clip_features(name, face_vector=None, context_2x2=None, context_7x7=None), CONTEXT, FACE
        )
        for name in names
    ]
    return write_store(
        path, clips, classes=MEC_CLASSES, fingerprint="test", keeps_face=False,
        keeps_context=False, added_streams=[CONTEXT, FACE],
    )  # fmt: skip


def test_an_encoder_takes_the_place_of_the_stores_face_features(tmp_path: Path) -> None:
    opened = open_store(write_own_faces(tmp_path / "s", "a", "b"))
    assert (opened.header.keeps_face, opened.header.keeps_context) == (False, True)
    assert opened.streams == {"face": FACE}
    for clip in opened:
        assert clip.face_vector is clip.face_expression is clip.face_map is None
        assert clip.box_px.shape == (3, 4)
        np.testing.assert_array_equal(clip.face_streams["face"], make_rows(clip, FACE))
    with pytest.raises(ShardError, match="keeps no face maps"):
        next(opened.iter_clips(face_map=True))
    assert opened.sum_expressions().shape == (2, 0)
    assert verify_store(tmp_path / "s") == []
    with h5py.File(tmp_path / "s/shards/0000.h5") as file:
        assert set(file["face"]) == {"frame", "box_px", "score", "landmarks_px", "track"}


def test_a_store_may_keep_neither_context_nor_face(tmp_path: Path) -> None:
    path = write_neither(tmp_path / "s", "a", "b")
    pack_bundle(path, tmp_path / "b")
    unpack_bundle(tmp_path / "b", tmp_path / "copy")
    for opened in (open_store(path), open_store(tmp_path / "copy")):
        assert opened.streams == {"context": CONTEXT, "face": FACE}
        for clip in opened:
            np.testing.assert_array_equal(clip.streams["context"], make_rows(clip, CONTEXT))
            np.testing.assert_array_equal(clip.face_streams["face"], make_rows(clip, FACE))
    assert verify_store(tmp_path / "copy") == []


def test_store_info_tells_what_the_shards_do_not_keep(tmp_path: Path) -> None:
    path = write_own_faces(tmp_path / "s", "a")
    told = json.loads(CliRunner().invoke(cli, ["store", "info", str(path), "--json"]).stdout)
    kept = {name: told[name] for name in ("keeps_context", "keeps_face", "face_vector_size")}
    assert kept == {"keeps_context": True, "keeps_face": False, "face_vector_size": None}
    assert [stream["name"] for stream in told["added_streams"]] == ["face"]


def test_a_store_never_keeps_its_face_features_in_some_shards_only(tmp_path: Path) -> None:
    write_own_faces(tmp_path, "a")
    with pytest.raises(ConfigError, match=r"keeps no face vectors, .*; to be added: face vectors"):
        write_store(tmp_path, [clip_features("b")], classes=MEC_CLASSES, fingerprint="test")


def test_a_store_that_keeps_its_face_features_gets_no_others(tmp_path: Path) -> None:
    small_store(tmp_path)
    with StoreWriter(tmp_path, HEADER) as writer, pytest.raises(ConfigError, match="stream face"):
        writer.missing_streams(FACE)
    with pytest.raises(ValueError, match="a stream face beside its own"):
        with_streams(clip_features(), FACE)
    with pytest.raises(ValueError, match="its rows are not those of faces"):
        replace(FACE, rows="frame")


def test_a_clip_without_face_features_is_not_written_to_a_store_that_keeps_them(
    tmp_path: Path,
) -> None:
    clip = clip_features("a", face_vector=None)
    with pytest.raises(ValueError, match="face_vector has None values a face"):
        write_store(tmp_path, [clip], classes=MEC_CLASSES, fingerprint="test")


def test_what_a_store_does_not_keep_of_faces_is_left_out(tmp_path: Path) -> None:
    write_store(
        tmp_path, [clip_features("a")], classes=MEC_CLASSES, fingerprint="x", keeps_face=False
    )
    assert open_store(tmp_path).read_clip(0).face_vector is None
    assert verify_store(tmp_path) == []


@pytest.mark.parametrize(
    "changed",
    [{"face_map_shape": (2, 1, 1)}, {"expressions": ("joy",)}, {"face_vector_size": 4}],
    ids=str,
)
def test_a_header_without_face_vectors_has_nothing_else_of_the_face_network(
    changed: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match="without face vectors"):
        replace(HEADER, keeps_face=False, **changed)  # type: ignore[arg-type]


def lose_vectors(file: h5py.File) -> None:
    del file["face/vector"]


def claim_expressions(file: h5py.File) -> None:
    lose_vectors(file)
    file.attrs["expressions"] = '["joy"]'


def keep_a_map(file: h5py.File) -> None:
    lose_vectors(file)
    file["face/map"] = np.zeros((18, 2, 1, 1), np.float16)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lose_vectors, "its face features: False, expected True"),
        (claim_expressions, "without face vectors"),
        (keep_a_map, r"its face maps: \(2, 1, 1\), expected None"),
    ],
)
def test_a_shard_that_lost_its_face_vectors_is_refused(
    tmp_path: Path, damage: Callable[[h5py.File], None], problem: str
) -> None:
    path = small_store(tmp_path / "s")
    with h5py.File(path / "shards/0000.h5", "r+") as file:
        damage(file)
    with pytest.raises(ShardError, match=problem):
        list(open_store(path, verify=False))


def write_licensed(path: Path, licences: dict[str, str], *names: str) -> Path:
    clips = [clip_features(name) for name in names]
    return write_store(path, clips, classes=MEC_CLASSES, fingerprint="test", licences=licences)


def test_a_store_and_its_bundle_tell_the_licences_of_weights(tmp_path: Path) -> None:
    path = write_licensed(tmp_path / "s", LICENCES, "a")
    shown = CliRunner().invoke(cli, ["store", "info", str(path)]).stdout
    assert re.search(r'^licences +{"context": "MIT", "face": "research only"}$', shown, re.M)
    with h5py.File(path / "shards/0000.h5") as file:
        assert json.loads(file.attrs["licences"]) == LICENCES
    pack_bundle(path, tmp_path / "b")
    assert read_bundle_info(tmp_path / "b").licences == LICENCES
    unpack_bundle(tmp_path / "b", tmp_path / "copy")
    assert open_store(tmp_path / "copy").header.licences == LICENCES


def test_a_store_without_licences_tells_none(tmp_path: Path) -> None:
    assert open_store(small_store(tmp_path)).header.licences == {}
    with h5py.File(tmp_path / "shards/0000.h5") as file:
        assert "licences" not in file.attrs


@pytest.mark.parametrize("before", [{}, {"context": "another text"}], ids=["none", "another"])
def test_another_text_of_a_licence_makes_no_other_store(
    tmp_path: Path, before: dict[str, str]
) -> None:
    write_licensed(tmp_path, before, "a")
    write_licensed(tmp_path, LICENCES, "b")
    assert [clip.clip_id for clip in open_store(tmp_path)] == ["a", "b"]
    assert read_store_index(tmp_path).header.licences == LICENCES
    assert verify_store(tmp_path) == []


@pytest.mark.parametrize("text", ['["MIT"]', '{"face": 1}', "MIT"], ids=str)
def test_a_shard_whose_licences_are_no_texts_is_refused(tmp_path: Path, text: str) -> None:
    path = write_licensed(tmp_path / "s", LICENCES, "a")
    with h5py.File(path / "shards/0000.h5", "r+") as file:
        file.attrs["licences"] = text
    with pytest.raises(ShardError, match=r"shards/0000\.h5"):
        list(open_store(path, verify=False))
