"""Shards stand in the order of their numbers, which their names as text do not tell."""

from __future__ import annotations

from pathlib import Path

from features.contracts import MEC_CLASSES, ClipFeatures
from features.store.index import find_shard_files, read_store_index, write_store_index
from features.store.reader import open_store
from features.store.writer import write_store
from tests.builders import clip_features


def write(path: Path, clip: ClipFeatures) -> Path:
    return write_store(path, [clip], classes=MEC_CLASSES, fingerprint="test")


def test_the_shard_after_9999_comes_after_it(tmp_path: Path) -> None:
    shards = tmp_path / "store" / "shards"
    shards.mkdir(parents=True)
    for number, clip_id in ((10_000, "late"), (9_999, "early")):
        small = write(tmp_path / clip_id, clip_features(clip_id))
        (small / "shards" / "0000.h5").rename(shards / f"{number}.h5")
    store = write(tmp_path / "store", clip_features("last"))  # lists the shards it finds, too
    names = [f"shards/{number}.h5" for number in (9_999, 10_000, 10_001)]
    assert find_shard_files(store) == names
    assert [shard.name for shard in open_store(store).shards] == names
    assert [clip.clip_id for clip in open_store(store)] == ["early", "late", "last"]


def test_of_a_clip_in_two_shards_the_higher_number_counts_however_they_are_listed(
    tmp_path: Path,
) -> None:
    store = write(tmp_path / "store", clip_features("a", label="happy"))
    write(store, clip_features("a", label="sad"))
    index = read_store_index(store)
    write_store_index(store, index.header, index.shards[::-1])
    (clip,) = open_store(store)
    assert clip.label == "sad"
