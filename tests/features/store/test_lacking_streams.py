"""Clips that lack a stream which the other clips of the store have."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import features.store.writer
from cli import cli
from features.errors import ShardError
from features.store.bundle import pack_bundle, unpack_bundle
from features.store.index import read_store_index, write_store_index
from features.store.reader import open_store, verify_store
from features.store.shard_format import Lack
from features.store.streams import index as stream_index
from features.store.writer import StoreWriter
from tests.added_streams import DINO, HEADER, PLACES, add_stream, make_rows, take_away
from tests.builders import clip_features, small_store

LACKS = {"c1": Lack.FINAL, "c4": Lack.RETRIED}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six clips in three shards, of which two lack the faces' stream."""
    monkeypatch.setattr(features.store.writer, "SHARD_FRAMES", 6)
    small_store(tmp_path / "store")
    add_stream(tmp_path / "store", DINO)
    add_stream(tmp_path / "store", PLACES)
    take_away(tmp_path / "store", "dino", LACKS)
    return tmp_path / "store"


def test_a_clip_that_lacks_a_stream_does_not_hold_it(store: Path) -> None:
    opened = open_store(store)
    assert set(opened.streams) == {"dino", "places"}
    for i, clip in enumerate(opened):
        assert clip.streams.keys() == {"places"}
        assert clip.face_streams.keys() == (set() if clip.clip_id in LACKS else {"dino"})
        assert opened.read_clip(i).face_streams.keys() == clip.face_streams.keys()
        for rows in clip.face_streams.values():
            np.testing.assert_array_equal(rows, make_rows(clip, DINO))
    assert verify_store(store) == []


def test_the_store_tells_which_clips_lack_a_stream(store: Path) -> None:
    opened = open_store(store)
    assert opened.find_lacking("dino") == LACKS
    assert opened.find_lacking("places") == {}
    assert opened.with_splits({"c1": "val", "c2": "val"}).find_lacking("dino") == {"c1": Lack.FINAL}
    told = json.loads(CliRunner().invoke(cli, ["store", "info", str(store), "--json"]).stdout)
    dino, places = told["added_streams"]
    assert (dino["clips_lacking"], dino["n_rows"]) == (2, 12)
    assert (places["clips_lacking"], places["n_rows"]) == (0, 18)


def test_of_a_clip_that_was_extracted_again_the_later_shard_counts(store: Path) -> None:
    with StoreWriter(store, HEADER) as writer:
        writer.add(clip_features("c1"))
    add_stream(store, DINO)
    assert open_store(store).find_lacking("dino") == {"c4": Lack.RETRIED}


def test_a_file_in_which_every_clip_has_the_stream_is_as_before(store: Path) -> None:
    with h5py.File(store / "streams/dino/0001.h5") as whole:
        assert whole.attrs["format_version"] == 1
        assert "lacks" not in whole["clip"]
    with h5py.File(store / "streams/dino/0000.h5") as lacking:
        assert lacking.attrs["format_version"] == 2
        assert lacking["clip/lacks"][:].tolist() == [0, 2]
    assert "n_lacking" not in str((store / "store.json").read_text().split("places")[1])


def test_code_that_knows_no_such_clips_refuses_the_file(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(stream_index._VERSIONS, 2)
    with pytest.raises(ShardError, match=r"0000\.h5: stream format 2, but this code reads \[1\]"):
        list(open_store(store))


def test_a_bundle_carries_which_clips_lack_a_stream(store: Path, tmp_path: Path) -> None:
    pack_bundle(store, tmp_path / "b")
    unpack_bundle(tmp_path / "b", tmp_path / "unpacked")
    assert open_store(tmp_path / "unpacked").find_lacking("dino") == LACKS
    assert verify_store(tmp_path / "unpacked") == []


def test_a_file_that_was_written_anew_and_not_listed_is_taken_in(store: Path) -> None:
    """A crash between the two."""
    before = read_store_index(store)
    take_away(store, "dino", {"c4": Lack.RETRIED})
    write_store_index(store, before.header, before.shards, before.added_streams)
    with StoreWriter(store, HEADER) as writer:
        assert writer.missing_streams(DINO) == []
    assert open_store(store).find_lacking("dino") == {"c4": Lack.RETRIED}
    assert verify_store(store) == []


def test_verify_tells_where_the_index_says_otherwise(store: Path) -> None:
    text = (store / "store.json").read_text()
    assert '"n_lacking":1' in text
    index = read_store_index(store)
    dino, places = index.added_streams
    files = [vars(file) | {"n_lacking": 0} for file in dino.shards]
    listed = [
        type(dino.shards[0])(**{k: f[k] for k in ("name", "sha256", "n_bytes")}) for f in files
    ]
    write_store_index(
        store, index.header, index.shards,
        [type(dino)(**vars(dino.header), shards=tuple(listed)), places],
    )  # fmt: skip
    assert "1 clips lack the stream, expected 0 as in store.json" in verify_store(store)[0]
