"""Expressions of faces, vectors of any width, maps of any depth: kept, checked, optional."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from features.contracts import MEC_CLASSES, ClipFeatures
from features.errors import ConfigError, ShardError
from features.store.bundle import pack_bundle, read_bundle_info, unpack_bundle
from features.store.index import read_store_index
from features.store.reader import open_store, verify_store
from features.store.writer import StoreWriter, write_store
from tests.added_streams import HEADER
from tests.builders import clip_features, small_store
from tests.features.store.test_added_streams import run_info
from tests.features.store.test_lying_shards import Lie, make_hashes_fit, put, set_attribute

ARCHIVES = Path(__file__).parents[2] / "archives"
NAMES = ("joy", "怒り")


def with_expression(clip: ClipFeatures, *, n: int = 2, first: float = 0.25) -> ClipFeatures:
    values = np.full((clip.n_faces, n), (1 - first) / max(n - 1, 1), np.float16)
    values[:, 0] = first
    return replace(clip, face_expression=values)


def write_expressions(path: Path, *clips: ClipFeatures, names: tuple[str, ...] = NAMES) -> Path:
    return write_store(path, clips, classes=MEC_CLASSES, fingerprint="x", expressions=names)


def test_store_info_shows_people_four_digits_and_programs_all(tmp_path: Path) -> None:
    path = write_expressions(tmp_path / "s", with_expression(clip_features(), first=0.123456))
    told = CliRunner().invoke(cli, ["store", "info", str(path)]).stdout
    assert '"joy": 0.1235,' in told
    mean = json.loads(CliRunner().invoke(cli, ["store", "info", str(path), "--json"]).stdout)
    assert mean["expressions"]["joy"] == float(np.float16(0.123456))


def test_expressions_come_back_with_their_names(tmp_path: Path) -> None:
    clips = [
        with_expression(clip_features("a"), first=0.75),
        with_expression(clip_features("b", n_faces=0)),
        with_expression(clip_features("c", n_faces=1), first=0.25),
    ]
    store = open_store(write_expressions(tmp_path / "s", *clips))
    assert store.header.expressions == NAMES
    for found, clip in zip(store, clips, strict=True):
        assert found.face_expression is not None
        assert found.face_expression.dtype == np.float16
        np.testing.assert_array_equal(found.face_expression, clip.face_expression)
    assert verify_store(tmp_path / "s") == []


def test_store_info_tells_the_mean_of_all_faces(tmp_path: Path) -> None:
    clips = [
        with_expression(clip_features("a"), first=0.75),
        with_expression(clip_features("b", n_faces=1), first=0.25),
    ]
    write_expressions(tmp_path / "s", *clips)
    write_expressions(tmp_path / "s", with_expression(clip_features("a"), first=0.25))  # again
    assert run_info(tmp_path / "s")["expressions"] == {"joy": 0.25, "怒り": 0.75}


def test_a_store_without_faces_has_no_mean_expression(tmp_path: Path) -> None:
    write_expressions(tmp_path / "s", with_expression(clip_features(n_faces=0)))
    assert run_info(tmp_path / "s")["expressions"] == {}


def test_the_sum_of_expressions_reads_no_other_column(tmp_path: Path) -> None:
    path = write_expressions(tmp_path / "s", with_expression(clip_features()))
    with h5py.File(path / "shards/0000.h5", "r+") as file:
        del file["face/vector"], file["frame/context_7x7"]
    assert open_store(path, verify=False).sum_expressions().tolist() == [[0.75, 2.25]]


def test_expressions_that_are_no_numbers_have_no_sum(tmp_path: Path) -> None:
    clip = clip_features()
    broken = replace(clip, face_expression=np.full((3, 2), np.nan, np.float16))
    path = write_expressions(tmp_path / "s", broken)
    with pytest.raises(ShardError, match="/face/expression holds values that are no numbers"):
        open_store(path).sum_expressions()


def test_expressions_are_summed_clip_by_clip_in_the_order_of_the_clips(tmp_path: Path) -> None:
    clips = [
        with_expression(clip_features("b"), first=0.75),
        with_expression(clip_features("c", n_faces=0)),
        with_expression(clip_features("a", n_faces=1), first=0.25),
    ]
    opened = open_store(write_expressions(tmp_path / "s", *clips))
    found = dict(zip(opened.clips["clip_id"], opened.sum_expressions().tolist(), strict=True))
    assert found == {"b": [2.25, 0.75], "c": [0, 0], "a": [0.25, 0.75]}


def test_a_bundle_tells_and_carries_expressions(tmp_path: Path) -> None:
    write_expressions(tmp_path / "s", with_expression(clip_features()))
    pack_bundle(tmp_path / "s", tmp_path / "b")
    assert read_bundle_info(tmp_path / "b").expressions == NAMES
    unpack_bundle(tmp_path / "b", tmp_path / "copy")
    assert open_store(tmp_path / "copy").header.expressions == NAMES


@pytest.mark.parametrize("clip", [clip_features("b"), with_expression(clip_features("b"), n=3)])
def test_a_clip_with_other_expressions_than_the_store_is_not_written(
    clip: ClipFeatures, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"values a face, the header names the expressions joy"):
        write_expressions(tmp_path, with_expression(clip_features("a")), clip)
    assert open_store(tmp_path).clips["clip_id"].tolist() == ["a"]


def test_expressions_are_left_out_where_the_store_names_none(tmp_path: Path) -> None:
    path = write_expressions(tmp_path, with_expression(clip_features()), names=())
    assert open_store(path).read_clip(0).face_expression is None
    with h5py.File(path / "shards/0000.h5") as file:
        assert "expression" not in file["face"]
        assert "expressions" not in file.attrs


def test_a_store_never_gets_expressions_in_some_shards_only(tmp_path: Path) -> None:
    write_expressions(tmp_path, clip_features("a"), names=())
    with pytest.raises(ConfigError, match=r"no expressions.*; to be added: .*expressions \(joy"):
        write_expressions(tmp_path, with_expression(clip_features("b")))


@pytest.mark.parametrize("names", [("joy", "joy"), ("joy", "")])
def test_a_header_names_each_expression_once(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected names, each once"):
        replace(HEADER, expressions=names)


LIES: dict[str, Lie] = {
    "no column": lambda file: file.__delitem__("face/expression"),
    "a column too wide": put("face/expression", np.zeros((18, 3), np.float16)),
    "a column too short": put("face/expression", np.zeros((17, 2), np.float16)),
    "a column of float32": put("face/expression", np.zeros((18, 2), np.float32)),
    "no names": set_attribute("expressions", None),
    "names that are numbers": set_attribute("expressions", "[1, 2]"),
    "a name twice": set_attribute("expressions", '["joy", "joy"]'),
    "names in another order": set_attribute("expressions", json.dumps(NAMES[::-1])),
    "names in an object": set_attribute("expressions", '{"joy": 1}'),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_shard_that_lies_about_expressions_is_refused(tmp_path: Path, lie: Lie) -> None:
    clips = [with_expression(clip_features(f"c{i}")) for i in range(6)]
    store = write_expressions(tmp_path / "s", *clips)
    with h5py.File(store / "shards/0000.h5", "r+") as file:
        lie(file)
    make_hashes_fit(store)
    with pytest.raises(ShardError, match=r"0000\.h5"):
        list(open_store(store))
    assert "0000.h5" in verify_store(store)[0]


@pytest.mark.parametrize("size", [1, 384, 768])
def test_a_face_vector_has_the_width_that_the_header_says(tmp_path: Path, size: int) -> None:
    vector = np.arange(3 * size).reshape(3, size).astype(np.float16)
    clips = [clip_features("a", face_vector=vector), clip_features("b", face_vector=vector + 1)]
    store = open_store(
        write_store(tmp_path, clips, classes=MEC_CLASSES, fingerprint="x", face_vector_size=size)
    )
    assert store.header.face_vector_size == size
    np.testing.assert_array_equal(store.read_clip(0).face_vector, vector)
    np.testing.assert_array_equal(store.read_clip(1).face_vector, vector + 1)
    assert verify_store(tmp_path) == []
    with pytest.raises(ConfigError, match=rf"face vectors \[{size}\].*; to be added: .*\[512\]"):
        write_store(tmp_path, [clip_features("c")], classes=MEC_CLASSES, fingerprint="x")


def test_a_clip_with_vectors_of_another_width_is_not_written(tmp_path: Path) -> None:
    clip = clip_features("b", face_vector=np.zeros((3, 384), np.float16))
    with pytest.raises(ValueError, match="face_vector has 384 values a face, the header says 512"):
        write_store(tmp_path, [clip], classes=MEC_CLASSES, fingerprint="x")


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(put("face/vector", np.zeros((18, 384), np.float16)), id="another width"),
        pytest.param(put("face/vector", np.zeros((18, 0), np.float16)), id="no width"),
        pytest.param(put("face/vector", np.zeros(18, np.float16)), id="flat"),
    ],
)
def test_a_shard_of_another_width_than_its_store_is_refused(tmp_path: Path, lie: Lie) -> None:
    store = small_store(tmp_path / "s")
    with h5py.File(store / "shards/0000.h5", "r+") as file:
        lie(file)
    make_hashes_fit(store)
    with pytest.raises(ShardError, match=r"0000\.h5"):
        list(open_store(store))


def test_a_face_map_may_have_fewer_channels(tmp_path: Path) -> None:
    maps = np.ones((3, 64, 2, 3), np.float16)
    path = write_store(
        tmp_path, [clip_features(face_map=maps)], classes=MEC_CLASSES, fingerprint="x",
        face_map_shape=(64, 2, 3),
    )  # fmt: skip
    found = open_store(path).read_clip(0, face_map=True)
    assert found.face_map is not None
    np.testing.assert_array_equal(found.face_map, maps)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param(
            {"face_vector": np.zeros((2, 512), np.float16)}, "face_vector", id="a row few"
        ),
        pytest.param(
            {"face_vector": np.zeros((3, 2, 2), np.float16)}, "face_vector", id="not flat"
        ),
        pytest.param(
            {"face_expression": np.zeros((3, 2), np.float32)}, "face_expression is float32", id="f4"
        ),
        pytest.param(
            {"face_expression": np.zeros((2, 2), np.float16)}, r"not float16 \(3, ", id="rows"
        ),
        pytest.param(
            {"face_streams": {"a": np.zeros((2, 2), np.float16)}}, "values a face", id="face stream"
        ),
        pytest.param({"face_streams": {"A": np.zeros((3, 2), np.float16)}}, "letters", id="name"),
        pytest.param(
            {
                "streams": {"a": np.zeros((3, 2), np.float16)},
                "face_streams": {"a": np.zeros((3, 2), np.float16)},
            },
            "the stream a is of frames and of faces",
            id="a name twice",
        ),
    ],
)
def test_a_wrong_clip_cannot_exist(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(clip_features(), **changed)


def test_an_old_store_reads_and_grows_as_before(tmp_path: Path) -> None:
    """One without expressions, sizes and streams beside its shards."""
    archive = lzma.decompress((ARCHIVES / "store-v1.bundle.xz").read_bytes())
    (tmp_path / "bundle").write_bytes(archive)
    unpack_bundle(tmp_path / "bundle", tmp_path / "store")
    index = read_store_index(tmp_path / "store")
    assert (index.header.expressions, index.header.face_vector_size) == ((), 512)
    assert index.added_streams == ()
    assert open_store(tmp_path / "store").read_clip(0).face_expression is None
    with StoreWriter(tmp_path / "store", index.header) as writer:
        new = open_store(tmp_path / "store").read_clip(0, context_7x7=True, face_map=True)
        writer.add(replace(new, clip_id="new"))
    assert len(open_store(tmp_path / "store")) == 3
    assert verify_store(tmp_path / "store") == []
