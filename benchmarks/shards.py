"""Times stores of very many small shards: seconds of each call (and of a core), peak memory.

python -m benchmarks.shards --shards 10001 --clips 10
python -m benchmarks.shards --shards 391 --clips 256
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from features.contracts import MEC_CLASSES, ClipFeatures
from features.store.index import ShardEntry, write_store_index
from features.store.reader import open_store
from features.store.shard_format import ShardHeader
from features.store.shard_writer import ShardWriter

N_READ = 1000


def make_clip(clip_id: str) -> ClipFeatures:
    """One frame, one face, all zeros."""
    return ClipFeatures(
        clip_id=clip_id,
        label="happy",
        split="train",
        extra={"scene": "3"},
        pts_s=np.zeros(1),
        phase=np.zeros(1, np.int16),
        context_2x2=np.zeros((1, 512, 2, 2), np.float16),
        context_7x7=np.zeros((1, 512, 7, 7), np.float16),
        face_frame=np.zeros(1, np.int32),
        box_px=np.zeros((1, 4), np.float32),
        score=np.zeros(1, np.float32),
        landmarks_px=np.zeros((1, 5, 2), np.float32),
        track=np.zeros(1, np.int32),
        face_vector=np.zeros((1, 512), np.float16),
    )


def make_store(path: Path, n_shards: int, n_clips: int) -> None:
    """A store whose shards are one shard's bytes with the ids of other clips in them."""
    (path / "shards").mkdir(parents=True)
    header = ShardHeader(
        fingerprint="benchmark", classes=MEC_CLASSES, config={}, weights={}, versions={}
    )
    template = path / "shards" / "template.h5"
    writer = ShardWriter(template, header)
    for row in range(n_clips):
        writer.append(make_clip(f"s00000000-{row:06}"))
    writer.finish()
    content = template.read_bytes()
    template.unlink()
    entries = []
    for number in range(n_shards):
        name = f"shards/{number:04}.h5"
        of_shard = content.replace(b"s00000000-", b"s%08d-" % number)
        (path / name).write_bytes(of_shard)
        entries.append(
            ShardEntry(
                name=name,
                sha256=hashlib.sha256(of_shard).hexdigest(),
                n_bytes=len(of_shard),
                n_clips=n_clips,
                n_frames=n_clips,
                n_faces=n_clips,
            )
        )
    write_store_index(path, header, entries)


@contextmanager
def timed(what: str) -> Iterator[None]:
    start, cpu_start = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(f"{what:28} {seconds:7.2f} s  ({cpu:6.2f} s of one core)", flush=True)


@click.command()
@click.option("--shards", "n_shards", default=10_001, show_default=True)
@click.option("--clips", "n_clips", default=10, show_default=True, help="In each shard.")
@click.option("--verify/--no-verify", default=True, show_default=True)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Keeps the store.")
def main(n_shards: int, n_clips: int, verify: bool, folder: Path | None) -> None:
    path = folder or Path(tempfile.mkdtemp()) / "store"
    try:
        if not path.exists():
            with timed(f"write {n_shards} shards"):
                make_store(path, n_shards, n_clips)
        with timed("open_store"):
            store = open_store(path, verify=verify)
        with timed(f"clips: a table of {n_shards * n_clips}"):
            table = store.clips
        assert table["clip_id"].is_unique
        assert len(table) == n_shards * n_clips
        assert table["shard"].iloc[-1] == f"shards/{n_shards - 1:04}.h5"
        with timed("iter_clips"):
            deque(store.iter_clips(), maxlen=0)
        chosen = np.random.default_rng(0).integers(len(table), size=N_READ)
        with timed(f"read_clip, {N_READ} times"):
            for i in chosen:
                store.read_clip(int(i))
        with timed("write store.json, 10 times"):
            for _ in range(10):
                write_store_index(path, store.header, store.shards)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{'peak memory':28} {peak * (1 if sys.platform == 'darwin' else 1024) / 1e9:7.2f} GB"
        )
    finally:
        if folder is None:
            shutil.rmtree(path.parent)


if __name__ == "__main__":
    main()
