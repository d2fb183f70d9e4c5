"""One flipped bit in a store is an error when it is read, never another label, face or feature."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import ShardError
from features.store.reader import open_store
from tests.builders import small_store
from tests.fits import fit_folds, fit_runs
from train.config import FitConfig
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep

QUICK = FitConfig(epochs=1, min_updates=0, precision="float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("store"), n_clips=24)


def find_column(shard: Path, name: str) -> tuple[int, int]:
    """Where a column lies in the file: its first byte, and the one behind its last."""
    with h5py.File(shard) as file:
        dataset = file[name]
        if dataset.chunks is None:
            first = dataset.id.get_offset()
            return first, first + dataset.id.get_storage_size()
        chunk = dataset.id.get_chunk_info(0)
        return chunk.byte_offset, chunk.byte_offset + chunk.size


def flip(file: Path, byte: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def read_all(path: Path) -> list[tuple[object, ...]]:
    return [
        (clip.clip_id, clip.label, clip.face_frame.tolist(), clip.box_px.tolist(), clip.start_s)
        for clip in open_store(path)
    ]


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_bit_anywhere_is_refused(store: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from([store / "store.json", store / "shards/0000.h5"]))
    whole = file.read_bytes()
    flip(file, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
    try:
        with pytest.raises(ShardError):
            read_all(store)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "column",
    ["clip/label", "clip/start_s", "clip/n_phases", "clip/face_offset", "clip/frame_offset",
     "face/frame", "face/box_px", "frame/phase", "face/vector"],
)  # fmt: skip
def test_every_bit_of_a_small_column_counts(store: Path, column: str) -> None:
    shard = store / "shards/0000.h5"
    whole = shard.read_bytes()
    first, last = find_column(shard, column)
    try:
        for byte in np.linspace(first, last - 1, 9, dtype=int):
            flip(shard, int(byte), int(byte) % 8)
            with pytest.raises(ShardError, match=r"0000\.h5: damaged: SHA-256 \w+, expected \w+"):
                _ = open_store(store).clips
            shard.write_bytes(whole)
    finally:
        shard.write_bytes(whole)


@pytest.mark.parametrize("verb", ["fit", "folds", "sweep", "test store"])
def test_what_trains_reads_no_damaged_store(store: Path, tmp_path: Path, verb: str) -> None:
    shard = store / "shards/0000.h5"
    whole = shard.read_bytes()
    place = whole.index(b"disgust", whole.index(b"c4"))  # a label, not the list of classes
    flip(shard, place, 0)
    stores, runs = [store], tmp_path / "runs"

    def train() -> None:
        if verb == "folds":
            fit_folds(stores, runs, ["face"], [0], QUICK, folds="3")
        elif verb == "sweep":
            grid = parse_grid(["lr=0.1,0.01"], QUICK)
            run_sweep(stores, runs, Sweep(head="face", config=QUICK, space=grid), [0])
        elif verb == "fit":
            fit_runs(stores, runs, ["face"], [0], QUICK)
        else:
            other = small_store(tmp_path / "other", n_clips=24)
            fit_runs([other], runs, ["face"], [0], QUICK, test_stores=stores)

    try:
        with pytest.raises(ShardError, match="--no-verify"):
            train()
    finally:
        shard.write_bytes(whole)


def test_a_store_is_read_as_it_is_where_asked(store: Path) -> None:
    shard = store / "shards/0000.h5"
    whole = shard.read_bytes()
    shard.write_bytes(whole + b"\0")
    try:
        with pytest.raises(ShardError, match=f"{len(whole) + 1} bytes, expected {len(whole)}"):
            open_store(store)
        assert len(open_store(store, verify=False)) == 24
    finally:
        shard.write_bytes(whole)


def test_a_shard_is_hashed_once_for_all_views_of_a_store(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr("features.store.index.hash_file", lambda file: hashed.append(file) or "")
    monkeypatch.setattr(
        "features.store.reader.find_damage", lambda file, _: hashed.append(file) or ""
    )
    opened = open_store(store)
    for fold in ("train", "test"):
        assert len(list(opened.with_splits(dict.fromkeys(opened.clips["clip_id"], fold)))) == 24
    assert hashed == [store / "shards/0000.h5"]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("in_place", [True, False], ids=["written to", "replaced"])
def test_a_shard_that_changes_after_its_labels_were_read_is_refused(
    in_place: bool, verify: bool, tmp_path: Path
) -> None:
    """Else the labels of one content would be learned with the features of another."""
    opened = open_store(small_store(tmp_path / "store"), verify=verify)
    assert len(opened.clips) == 6
    other = small_store(tmp_path / "other", n_frames=4)
    (shard,) = (tmp_path / "store/shards").iterdir()
    new = (other / "shards" / shard.name).read_bytes()
    if not in_place:
        shard.unlink()
    shard.write_bytes(new)
    with pytest.raises(ShardError, match="changed while it was read"):
        list(opened)


def test_a_shard_that_is_replaced_after_it_was_hashed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_store(tmp_path / "store")
    (shard,) = (path / "shards").iterdir()

    def replace_hashed(file: Path, _: object) -> str:
        shard.with_suffix(".new").write_bytes(file.read_bytes())
        shard.with_suffix(".new").replace(file)
        return ""

    monkeypatch.setattr("features.store.reader.find_damage", replace_hashed)
    with pytest.raises(ShardError, match="changed while it was read"):
        _ = open_store(path).clips
