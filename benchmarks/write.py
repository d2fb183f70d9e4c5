"""What writing costs: workers that write made-up features and compute nothing, and their parent.

    python benchmarks/write.py [--frames N] [--workers N --workers M ...] [--folder DIR]

Each worker gives its frames in clips of 512, with one face a frame; four fifths of the context's
values are 0, as in real frames, so they pack about as well. Printed are frames a second of all
workers together, megabytes of shards a second, and CPU seconds of the parent. Times are from the
moment the first worker is ready; every shard is durable and listed in store.json at the end.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import click
import numpy as np

from features.contracts import MEC_CLASSES, Clip, ClipFeatures
from features.store.shard_reader import ShardHeader
from features.store.writer import StoreWriter
from pipeline.config import ExtractConfig
from pipeline.inputs import InputFile, Inputs
from pipeline.record import FailureLog, RunRecord
from pipeline.workers.messages import (
    Begun,
    ClipEnd,
    Extracted,
    Item,
    Loaded,
    Machine,
    Output,
    Progressed,
    Timing,
    Work,
)
from pipeline.workers.pool import WorkerPool
from pipeline.workers.resources import Budgets, Job

CLIP_FRAMES = 512
PART_FRAMES = 256


@cache
def make_part() -> ClipFeatures:
    """Rows like real ones, always the same."""
    rng = np.random.default_rng(0)
    context = rng.random((PART_FRAMES, 512, 7, 7)).astype(np.float16)
    context[rng.random(context.shape) < 0.8] = 0
    n = PART_FRAMES
    return ClipFeatures(
        clip_id="any",
        label="",
        split="test",
        pts_s=np.arange(n) / 5,
        phase=np.zeros(n, dtype=np.int16),
        context_7x7=context,
        context_2x2=context[:, :, :2, :2].copy(),
        face_frame=np.arange(n, dtype=np.int32),
        box_px=rng.random((n, 4)).astype(np.float32),
        score=rng.random(n).astype(np.float32),
        landmarks_px=rng.random((n, 5, 2)).astype(np.float32),
        track=np.zeros(n, dtype=np.int32),
        face_vector=rng.random((n, 512)).astype(np.float16),
    )


class SyntheticExtractor:
    """Takes the place of the one with networks."""

    @staticmethod
    def find_machine(device: str) -> Machine:
        return Machine(device="cpu", n_gpus=0, n_cores=1, precision="float32")

    def __init__(self, work: Work) -> None:
        make_part()

    def iter_items(
        self, clips: Iterable[Clip], tell: Callable[[Begun | Progressed], None]
    ) -> Iterator[Extracted]:
        for clip in clips:
            tell(Begun(clip_id=clip.clip_id))
            for _ in range(CLIP_FRAMES // PART_FRAMES):
                yield replace(make_part(), clip_id=clip.clip_id)
            yield ClipEnd(clip=clip, file=InputFile(n_bytes=1, mtime_ns=1, sha256="0" * 64))
        yield Timing(step_s={})


def write(store: Path, n_frames: int, n_workers: int) -> tuple[float, float, int]:
    """Returns wall seconds, CPU seconds of this process, and bytes of the shards."""
    header = ShardHeader(fingerprint="x", classes=MEC_CLASSES, config={}, weights={}, versions={})
    clips = [
        Clip(clip_id=f"c{i}", path=Path("none"), label="", split="test")
        for i in range(math.ceil(n_frames / CLIP_FRAMES))
    ]
    ready_s: list[tuple[float, float]] = []
    with (
        WorkerPool("cpu", extractor=f"{Path(__file__).stem}:SyntheticExtractor") as pool,
        StoreWriter(store, header) as writer,
    ):
        failures = FailureLog(store)
        failures.write()
        inputs = Inputs(store / "inputs.jsonl")
        record = RunRecord(writer, failures, inputs, time.perf_counter())

        def take(number: int, item: Item) -> None:
            if isinstance(item, Loaded):
                ready_s.append((time.perf_counter(), time.process_time()))
            record.take(number, item)

        job = Job(
            work=Work(config=ExtractConfig(), face_weights=Path(), inputs=inputs.path, device=""),
            output=Output(store=store, header=header),
            clips=clips,
            n_workers=n_workers,
            budgets=Budgets(),
        )
        pool.run(job, take)
        wall_s = time.perf_counter() - ready_s[0][0]
        cpu_s = time.process_time() - ready_s[0][1]
        if record.n_done != len(clips):
            raise SystemExit(f"{record.n_failed} clips failed")
        return wall_s, cpu_s, sum(shard.n_bytes for shard in writer.open().shards)


@click.command()
@click.option("--frames", "n_frames", default=8192, show_default=True, help="Of each worker.")
@click.option("--workers", multiple=True, type=click.IntRange(1), default=(1, 2, 4))
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write.  [default: /tmp]")
def main(n_frames: int, workers: tuple[int, ...], folder: Path | None) -> None:
    """What writing costs."""
    print("workers    frames  frames/s    MB/s  parent CPU s")
    for n_workers in workers:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            wall_s, cpu_s, n_bytes = write(Path(name), n_workers * n_frames, n_workers)
        n_all = n_workers * n_frames
        rates = f"{n_all / wall_s:9.0f} {n_bytes / 1e6 / wall_s:7.1f}"
        print(f"{n_workers:7d} {n_all:9d} {rates} {cpu_s:13.2f}", flush=True)


if __name__ == "__main__":
    main()
