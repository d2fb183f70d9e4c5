"""Stage two at CHEAVD's size: all heads of Table I by ``fit``, against ordinary PyTorch code.

A store of 4,917 train and 707 val clips is written (kept in --dir and used again); ``run_fit``
trains six heads x 5 seeds x 30 epochs on it, as ``cli.py fit`` does: reading, scoring and writing
count. In the same process, before and after, the heads of ``naive_heads.py`` take --steps steps
each, by turns: one run at a time, float32, features in memory, the faster of one and all threads.
Its reading, scoring and writing are not counted. Two ratios are told: against naive steps on the
very batches that fit makes (clips of like length), and on batches shuffled at random, as ordinary
code draws them, which are padded to longer clips.

    python benchmarks/fit.py --dir /scratch/cheavd-like
    python benchmarks/fit.py --dir /scratch/cheavd-like --epochs 2     # a sample, extrapolated
    python benchmarks/fit.py --dir /scratch/cheavd-like --head caca    # 25,088 context values
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import get_ident

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.naive_heads import NaiveHead
from features.contracts import MEC_CLASSES, ClipFeatures
from features.store import open_store
from features.store_writer import write_store
from train.config import PRESETS, TABLE_1_HEADS, FitConfig
from train.dataset import Batch, draw_phases, gather_batch, order_batches
from train.fit import FitProgress, run_fit
from train.heads import choose_streams, find_matrices
from train.stores import read_tables
from train.training import choose_precision

N_CLIPS = {"train": 4917, "val": 707, "test": 64}
"""CHEAVD 2.0's counts; of test, whose labels are not public, a few to be scored."""
MEAN_TICKS = 16
N_PHASES = 5
N_SEEDS = 5
N_EPOCHS = 30


def iter_clips() -> Iterator[ClipFeatures]:
    """Clips whose faces lean to their class, and whose context does at one tick of them."""
    rng = np.random.default_rng(0)
    n_classes = len(MEC_CLASSES)
    face_means = rng.random((n_classes, 512), np.float32)
    context_means = rng.random((n_classes, 512), np.float32)
    for split, n_clips in N_CLIPS.items():
        for i in range(n_clips):
            label = int(rng.integers(n_classes))
            # 3.3 s in the mean, 1 to 12 s
            n_ticks = int(np.clip(rng.gamma(5, MEAN_TICKS / 5), 5, 60))
            n_phases = N_PHASES if split == "train" else 1
            n = n_ticks * n_phases
            face = rng.random((n, 512), np.float32) + 0.1 * face_means[label]
            context = np.maximum(rng.random((n, 512), np.float32) - 0.8, 0)  # 80% zeros
            telling = slice(n // 2 // n_phases * n_phases, (n // 2 // n_phases + 1) * n_phases)
            context[telling] += 0.2 * context_means[label]
            places = context.astype(np.float16)[:, :, None, None]
            yield ClipFeatures(
                clip_id=f"{split}{i:05}",
                label=MEC_CLASSES[label],
                split=split,
                pts_s=np.arange(n) / (5 * n_phases),
                phase=(np.arange(n) % n_phases).astype(np.int16),
                context_2x2=np.broadcast_to(places, (n, 512, 2, 2)).copy(),
                context_7x7=np.broadcast_to(places, (n, 512, 7, 7)).copy(),
                face_frame=np.arange(n, dtype=np.int32),
                box_px=np.tile(np.float32([0, 0, 128, 128]), (n, 1)),
                score=np.ones(n, np.float32),
                landmarks_px=np.zeros((n, 5, 2), np.float32),
                track=np.zeros(n, np.int32),
                face_vector=face.astype(np.float16),
            )


class Naive:
    """Steps of ordinary training of each head, going on from call to call."""

    def __init__(self, store: Path, heads: Sequence[str], config: FitConfig) -> None:
        self.table = read_tables([open_store(store)], config, find_matrices(heads, config))["train"]
        self.config = config
        self.models = {head: NaiveHead(head, len(MEC_CLASSES)) for head in heads}
        self.adams = {
            head: torch.optim.Adam(model.parameters(), config.lr)
            for head, model in self.models.items()
        }
        self.phases = draw_phases(self.table, 0, 1)
        lengths = np.array(
            [len(p[i].context) for p, i in zip(self.table.phases, self.phases, strict=True)]
        )
        shuffled = np.random.default_rng(0).permutation(len(lengths))
        self.batches = {
            "same": order_batches(lengths, config.batch_size, 0, 1)[:-1],
            "shuffled": np.array_split(shuffled, len(shuffled) // config.batch_size),
        }
        self.seconds: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        """(head, kind of batch, threads) -> of each step."""
        self.n_taken = 0

    def take_steps(self, n_steps: int) -> None:
        """So many steps of every head, on both kinds of batches, with one thread and with all."""
        most = torch.get_num_threads()
        for n_threads, kind, head in product(sorted({1, most}), self.batches, self.models):
            torch.set_num_threads(n_threads)
            for step in range(-1, n_steps):  # the first warms up
                begin = time.perf_counter()
                self._take_step(head, kind)
                if step >= 0:
                    self.seconds[head, kind, n_threads].append(time.perf_counter() - begin)
        torch.set_num_threads(most)

    def find_ms(self, head: str, kind: str) -> float:
        """Of a step with the better number of threads, in the mean."""
        return min(
            1e3 * float(np.mean(seconds))
            for (name, of_kind, _), seconds in self.seconds.items()
            if (name, of_kind) == (head, kind)
        )

    def _take_step(self, head: str, kind: str) -> None:
        # Spread over the epoch: its batches differ in length.
        clips = self.batches[kind][self.n_taken * 37 % len(self.batches[kind])]
        self.n_taken += 1
        batch: Batch = gather_batch(
            self.table, clips, self.phases[clips], choose_streams(head, context=self.config.context)
        )
        streams = {name: x.float() for name, x in batch.streams.items()}
        loss = torch.nn.functional.cross_entropy(
            self.models[head](streams, batch.n_steps), batch.label
        )
        self.adams[head].zero_grad()
        loss.backward()
        self.adams[head].step()
        loss.item()


class Stopwatch:
    """The time that each head's jobs took, summed over the threads that they ran in."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last: dict[int, float] = {}
        self.begin = time.perf_counter()
        self.first_epoch_s = 0.0
        """When the first epoch ended: reading the store is before it, and one epoch."""

    def tell(self, told: FitProgress) -> None:
        now = time.perf_counter()
        if told.state == "training" and told.epoch == 1:
            self.first_epoch_s = self.first_epoch_s or now - self.begin
        if told.epoch != 1:  # the first has the wait for memory and libraries in it
            self.seconds[told.head] += now - self._last.get(get_ident(), now)
        self._last[get_ident()] = now


def main() -> None:
    arguments = read_arguments()
    heads = tuple(arguments.head or TABLE_1_HEADS)
    config = replace(
        PRESETS["table1"].config if "caca" not in heads else PRESETS["submitted"].config,
        epochs=arguments.epochs,
        min_steps=0,
        patience=1.0,
    )
    store = arguments.dir / "store"
    if not (store / "store.json").is_file():
        begin = time.perf_counter()
        write_store(store, iter_clips(), classes=MEC_CLASSES, fingerprint="benchmark")
        print(f"store written in {time.perf_counter() - begin:.0f} s")
    clips = open_store(store).clips
    n_train = int((clips["split"] == "train").sum())
    print(
        f"{n_train} train clips, {clips['n_frames'].sum()} frames, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, {choose_precision('auto', 'cpu')}"
    )
    naive = None
    if arguments.steps:
        naive = Naive(store, heads, config)
        naive.take_steps(arguments.steps)
    with TemporaryDirectory(dir=arguments.dir) as runs:
        watch = Stopwatch()
        run_fit([store], Path(runs), heads, range(N_SEEDS), config, progress=watch.tell)
        fit_s = time.perf_counter() - watch.begin
    if naive is not None:
        naive.take_steps(arguments.steps)
    report(heads, naive, watch, fit_s, n_train, config)


def report(
    heads: Sequence[str],
    naive: Naive | None,
    watch: Stopwatch,
    fit_s: float,
    n_train: int,
    config: FitConfig,
) -> None:
    n_steps = N_SEEDS * -(-n_train // config.batch_size)  # of one epoch of all seeds
    # Jobs run side by side, a thread each: what one takes is shared out by the time it ran.
    share = fit_s / sum(watch.seconds.values()) if watch.seconds else 0.0
    naive_s = {"same": 0.0, "shuffled": 0.0}
    print("ms a step    fit   naive, same batches   naive, shuffled batches")
    for head in heads:
        ours = 1e3 * share * watch.seconds[head] / (n_steps * config.epochs)
        line = f"{head:12}{ours:6.2f}"
        for kind in naive_s if naive is not None and ours else ():
            theirs = naive.find_ms(head, kind)
            naive_s[kind] += theirs / 1e3 * n_steps * N_EPOCHS
            line += f"{theirs:12.2f} ({theirs / ours:.1f} x)"
        print(line)
    whole_s, label = fit_s, "measured"
    if config.epochs < N_EPOCHS:
        epoch_s = (fit_s - watch.first_epoch_s) / max(config.epochs - 1, 1)
        whole_s, label = fit_s + epoch_s * (N_EPOCHS - config.epochs), "EXTRAPOLATED"
        print(f"fit of {config.epochs} epochs: {fit_s / 60:.2f} min measured")
    print(f"fit, {len(heads)} heads x {N_SEEDS} seeds x {N_EPOCHS} epochs: {whole_s / 60:.1f} min")
    print(f"  ({label}; reading, scoring val and writing runs included)")
    if naive is not None:
        for kind, seconds in naive_s.items():
            print(
                f"naive, {kind} batches, its steps alone: {seconds / 60:.1f} min (EXTRAPOLATED "
                f"from the sample), ratio overall {seconds / whole_s:.2f}"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory{' (with naive)' if naive else ''}: {peak / 1e9:.2f} GB")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="keeps the store: 1 to 2 GB")
    parser.add_argument("--head", action="append", help="only this head (repeatable)")
    parser.add_argument("--epochs", type=int, default=N_EPOCHS, help="fewer: a sample")
    parser.add_argument("--steps", type=int, default=20, help="of the naive way, twice; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
