"""Stage two at CHEAVD's size: all heads of Table I by ``fit``, against ordinary PyTorch code.

A store of 4,917 train and 707 val clips is written (kept in --dir and used again); ``run_fit``
trains six heads x 5 seeds x 30 epochs on it, as ``cli.py fit`` does. In the same process, before
and after, the heads of ``naive_heads.py`` take --steps steps each and score val once: one run at a
time, float32, features in memory; each head as a loop of ``nn.LSTMCell``, and those without
attention as one call of ``nn.LSTM`` too.

Compared is the clock. The naive way has the machine to itself, with all threads, a head after the
other. ``fit`` trains a head a core; its epochs are timed from the second on, and heads that train
side by side share the clock. Both sides train an epoch and score val after it: a step's time is
that of an epoch, scoring included, by its steps. Two ratios are told: against naive batches drawn
at random, as ordinary code draws them, which are padded to their longest clips, with val in the
order of the table; and on the batches that fit makes (clips of like length), with val ordered by
length. Minutes are of the whole of ``fit``, with reading and writing.

    python benchmarks/fit.py --dir /scratch/cheavd-like
    python benchmarks/fit.py --dir /scratch/sample --clips 1200 --epochs 2     # extrapolated
    python benchmarks/fit.py --dir /scratch/cheavd-like --head caca --memory 2 --epochs 1 --steps 0
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
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.naive_heads import RNNS, NaiveHead, may_be_made_of
from features.contracts import MEC_CLASSES, ClipFeatures
from features.networks.runtime import choose_precision
from features.store.reader import open_store
from features.store.writer import write_store
from tests.builders import clip_features
from train.config import PRESETS, FitConfig
from train.data.batches import draw_phases, gather_batch, order_batches
from train.data.clips import ClipTable
from train.data.store_streams import choose_matrices
from train.data.stores import read_tables
from train.fit import run_fit
from train.fit_jobs import FitProgress
from train.request import FitRequest
from train.streams import TABLE_1_HEADS
from train.training.parallel import count_workers

N_CLIPS = {"train": 4917, "val": 707, "test": 64}
"""CHEAVD 2.0's counts; of test, whose labels are not public, a few to be scored."""
MEAN_TICKS = 16
N_PHASES = 5
N_SEEDS = 5
N_EPOCHS = 30


def iter_clips(share: float) -> Iterator[ClipFeatures]:
    """That share of the clips: faces lean to the clip's class, and context does at one tick."""
    rng = np.random.default_rng(0)
    n_classes = len(MEC_CLASSES)
    face_means = rng.random((n_classes, 512), np.float32)
    context_means = rng.random((n_classes, 512), np.float32)
    for split, n_clips in N_CLIPS.items():
        for i in range(round(share * n_clips)):
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
            yield clip_features(
                f"{split}{i:05}",
                n_frames=n,
                label=MEC_CLASSES[label],
                split=split,
                pts_s=np.arange(n) / (5 * n_phases),
                phase=(np.arange(n) % n_phases).astype(np.int16),
                n_phases=n_phases,
                context_2x2=np.broadcast_to(places, (n, 512, 2, 2)).copy(),
                context_7x7=np.broadcast_to(places, (n, 512, 7, 7)).copy(),
                face_vector=face.astype(np.float16),
            )


class Naive:
    """Steps of ordinary training of each head, going on from call to call."""

    def __init__(self, store: Path, heads: Sequence[str], config: FitConfig) -> None:
        opened = [open_store(store)]
        tables = read_tables(opened, config, choose_matrices(heads, config, opened))
        self.table, self.val = tables["train"], tables["val"]
        self.config = config
        self.models = {
            (head, rnn): NaiveHead(head, len(MEC_CLASSES), rnn)
            for head, rnn in product(heads, RNNS)
            if may_be_made_of(head, rnn)
        }
        self.adams = {
            key: torch.optim.Adam(model.parameters(), config.lr)
            for key, model in self.models.items()
        }
        self.phases = draw_phases(self.table, 0, 1)
        lengths = np.array(
            [len(p[i].context) for p, i in zip(self.table.phases, self.phases, strict=True)]
        )
        shuffled = np.random.default_rng(0).permutation(len(lengths))
        batches = {
            "same": order_batches(lengths, config.batch_size, 0, 1)[:-1],
            "shuffled": np.array_split(shuffled, len(shuffled) // config.batch_size),
        }
        in_order = np.arange(len(self.val))
        val_lengths = np.array([len(phases[0].context) for phases in self.val.phases])
        self.val_batches = {
            kind: np.array_split(order, -(-len(order) // config.batch_size))
            for kind, order in (("same", np.argsort(-val_lengths)), ("shuffled", in_order))
        }
        self.seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        """(head, module, kind of batch) -> of each step."""
        self.val_seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        """The same, of scoring val."""
        self.by_length = {
            kind: sorted(batches, key=lambda clips: int(lengths[clips].max()))
            for kind, batches in batches.items()
        }

    def take_steps(self, n_steps: int) -> None:
        """So many steps of every head, and val scored, on both kinds of batches."""
        for key, kind in product(self.models, self.by_length):
            # Batches differ in length: from each part of them, short to long, the one in its midst.
            batches = self.by_length[kind]
            places = [int((i + 0.5) * len(batches) / n_steps) for i in range(n_steps)]
            for step, place in enumerate([places[n_steps // 2], *places]):  # the first warms up
                begin = time.perf_counter()
                self._take_step(key, batches[place])
                if step:
                    self.seconds[*key, kind].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            with torch.no_grad():
                for clips in self.val_batches[kind]:
                    logits, _ = self._score(key, self.val, clips, np.zeros_like(clips))
                    torch.softmax(logits, 1).numpy()
            self.val_seconds[*key, kind].append(time.perf_counter() - begin)

    def find_ms(self, head: str, rnn: str, kind: str) -> float:
        """A step in the mean, with its share of scoring val."""
        n_steps = -(-len(self.table) // self.config.batch_size)
        scoring = np.mean(self.val_seconds[head, rnn, kind]) / n_steps
        return 1e3 * float(np.mean(self.seconds[head, rnn, kind]) + scoring)

    def _score(
        self,
        key: tuple[str, str],
        table: ClipTable,
        clips: NDArray[np.intp],
        phases: NDArray[np.intp],
    ) -> tuple[Tensor, Tensor]:
        """Logits and labels."""
        batch = gather_batch(table, clips, phases, self.config.choose_streams(key[0]))
        streams = {name: x.float() for name, x in batch.streams.items()}
        return self.models[key](streams, batch.n_steps), batch.label

    def _take_step(self, key: tuple[str, str], clips: NDArray[np.intp]) -> None:
        loss = cross_entropy(*self._score(key, self.table, clips, self.phases[clips]))
        self.adams[key].zero_grad()
        loss.backward()
        self.adams[key].step()
        loss.item()


class Stopwatch:
    """What each head's jobs took, from the second epoch on."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.job_s: dict[str, float] = defaultdict(float)
        self.n_epochs: dict[str, int] = defaultdict(int)
        """Epochs of single seeds."""
        self._last: dict[int, float] = {}
        """Thread -> its time so far."""

    def tell(self, told: FitProgress) -> None:
        now = time.perf_counter()
        if told.state == "training":
            if told.epoch > 1:  # the first has the search for memory in it
                self.job_s[told.head] += now - self._last[get_ident()]
                self.n_epochs[told.head] += len(told.seeds)
            self._last[get_ident()] = now


def main() -> None:
    arguments = read_arguments()
    heads = tuple(arguments.head or TABLE_1_HEADS)
    config = replace(
        PRESETS["submitted" if "caca" in heads else "table1"].config,
        epochs=arguments.epochs,
        min_updates=0,
        patience=1.0,
    )
    store = arguments.dir / f"store-{arguments.clips}"
    if not (store / "store.json").is_file():
        begin = time.perf_counter()
        share = arguments.clips / N_CLIPS["train"]
        write_store(store, iter_clips(share), classes=MEC_CLASSES, fingerprint="benchmark")
        print(f"store written in {time.perf_counter() - begin:.0f} s")
    clips = open_store(store).clips
    n_train = int((clips["split"] == "train").sum())
    print(
        f"{n_train} train clips, {clips['n_frames'].sum()} frames, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, {choose_precision('auto', torch.device('cpu'))}",
        flush=True,
    )
    naive = None
    if arguments.steps:
        naive = Naive(store, heads, config)
        naive.take_steps(arguments.steps)
    with TemporaryDirectory(dir=arguments.dir) as runs:
        watch = Stopwatch()
        request = FitRequest(
            stores=[store],
            runs=Path(runs),
            heads=heads,
            seeds=range(N_SEEDS),
            config=config,
            memory_gb=arguments.memory,
        )
        run_fit(request, progress=watch.tell)
        fit_s = time.perf_counter() - watch.begin
    if naive is not None:
        naive.take_steps(arguments.steps)
    print(
        f"fit, {len(heads)} heads x {N_SEEDS} seeds x {config.epochs} epochs: {fit_s / 60:.1f} min"
    )
    if config.epochs > 1:
        print_steps(heads, naive, watch, -(-n_train // config.batch_size))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory{' (with the naive way)' if naive else ''}: {peak / 1e9:.2f} GB")


def print_steps(
    heads: Sequence[str], naive: Naive | None, watch: Stopwatch, n_batches: int
) -> None:
    """What a step of one run takes, and what that makes of the whole table."""
    n_side_by_side = min(count_workers("cpu"), len(heads))
    ms = pd.DataFrame(index=list(heads))
    ms["fit"] = [
        1e3 * watch.job_s[head] / (watch.n_epochs[head] * n_batches * n_side_by_side)
        for head in heads
    ]
    for rnn, kind in product(RNNS, naive.by_length) if naive is not None else ():
        ms[f"nn.{rnn}, {kind} batches"] = [
            naive.find_ms(head, rnn, kind) if may_be_made_of(head, rnn) else np.nan
            for head in heads
        ]
    ratios = ms.div(ms["fit"], axis=0)
    n_steps = N_SEEDS * N_EPOCHS * -(-N_CLIPS["train"] // FitConfig().batch_size)
    overall = pd.DataFrame({"heads": ms.count(), "minutes": ms.sum() * n_steps / 6e4})
    overall["ratio"] = ms.sum() / ms.notna().mul(ms["fit"], axis=0).sum()  # on the same heads
    print(f"ms a step\n{ms.to_string(float_format='%.1f', na_rep='-')}")
    print(f"times fit's\n{ratios.to_string(float_format='%.2f', na_rep='-')}")
    print(
        f"EXTRAPOLATED to {N_SEEDS} seeds x {N_EPOCHS} epochs of {N_CLIPS['train']} clips\n"
        f"{overall.to_string(float_format='%.2f')}"
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="keeps the store: 1 to 2 GB")
    parser.add_argument("--clips", type=int, default=N_CLIPS["train"], help="fewer: a sample")
    parser.add_argument("--memory", type=float, help="GB for features, as of fit")
    parser.add_argument("--head", action="append", help="only this head (repeatable)")
    parser.add_argument("--epochs", type=int, default=N_EPOCHS, help="fewer: a sample")
    parser.add_argument("--steps", type=int, default=20, help="of the naive way, twice; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
