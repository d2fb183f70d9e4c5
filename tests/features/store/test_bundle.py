"""A bundle carries a store whole, and tells when it does not."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import ConfigError, ShardError
from features.store.bundle import pack_bundle, read_bundle_info, unpack_bundle, verify_bundle
from features.store.index import Failure, write_failures
from features.store.reader import open_store, verify_store
from tests.builders import small_store


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    pack_bundle(small_store(folder / "store"), folder / "x.bundle")
    return folder / "x.bundle"


def test_an_unpacked_bundle_is_the_store_again(packed: Path, tmp_path: Path) -> None:
    unpack_bundle(packed, tmp_path / "deep" / "store")
    assert verify_store(tmp_path / "deep" / "store") == []
    original = open_store(packed.parent / "store").iter_clips(context_7x7=True)
    copy = open_store(tmp_path / "deep" / "store").iter_clips(context_7x7=True)
    for a, b in zip(original, copy, strict=True):
        assert (a.clip_id, a.label, a.split) == (b.clip_id, b.label, b.split)
        np.testing.assert_array_equal(a.context_7x7, b.context_7x7)
        np.testing.assert_array_equal(a.face_vector, b.face_vector)


def is_noticed(damaged: Path) -> bool:
    try:
        return verify_bundle(damaged) != []
    except ShardError:
        return True


@given(st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_verify_notices_one_flipped_bit_anywhere(
    packed: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(packed.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path / "damaged.bundle"
    damaged.write_bytes(content)
    assert is_noticed(damaged)
    with pytest.raises(ShardError):
        unpack_bundle(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_a_truncated_bundle_is_noticed(packed: Path, tmp_path: Path, kept: float) -> None:
    content = packed.read_bytes()
    n = int(kept * len(content)) if isinstance(kept, float) else kept
    (tmp_path / "cut.bundle").write_bytes(content[:n])
    assert is_noticed(tmp_path / "cut.bundle")


def test_damage_names_the_file_inside(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as archive:
        place = archive.getmember("shards/0000.h5").offset_data + 1000
    content = bytearray(packed.read_bytes())
    content[place] ^= 255
    (tmp_path / "d.bundle").write_bytes(content)
    assert "shards/0000.h5 is damaged" in verify_bundle(tmp_path / "d.bundle")[0]


def test_the_same_store_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    pack_bundle(packed.parent / "store", tmp_path / "again.bundle")
    assert (tmp_path / "again.bundle").read_bytes() == packed.read_bytes()


def test_paths_of_the_machine_stay_behind(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    write_failures(store, [Failure(clip_id="x", path="/home/me/x.mp4", step="decode", reason="?")])
    pack_bundle(store, tmp_path / "x.bundle")
    assert b"/home/me" not in (tmp_path / "x.bundle").read_bytes()
    unpack_bundle(tmp_path / "x.bundle", tmp_path / "out")
    assert open_store(tmp_path / "out").failures["clip_id"].tolist() == ["x"]


def test_the_listing_tells_config_weights_and_hashes(packed: Path) -> None:
    info = read_bundle_info(packed)
    assert info.n_clips == 6
    assert [f.name for f in info.files] == ["store.json", "failures.csv", "shards/0000.h5"]
    assert all(len(f.sha256) == 64 for f in info.files)


def test_a_damaged_store_is_not_packed(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    shard = store / "shards" / "0000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ShardError, match="not packed"):
        pack_bundle(store, tmp_path / "x.bundle")
    assert not (tmp_path / "x.bundle").exists()


def test_nothing_is_overwritten(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        pack_bundle(packed.parent / "store", packed)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        unpack_bundle(packed, tmp_path)
