"""Trains the seeds of one head side by side, as one model with a run dimension.

Each run has its own weights, order of batches and initial frames, all functions of its seed, and
ends by its own patience: the numbers are those of training it alone, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from features.errors import ConfigError, RunError
from train.config import FitConfig
from train.dataset import Batch, ClipTable, draw_phases, gather_batch, order_batches
from train.heads import Shapes, build_head, choose_streams
from train.layers import Head, read_run_state, stack_runs
from train.metrics import Metrics, score_predictions

SCORED_CLIPS = 64
"""Clips scored at a time."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of a run's history."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's clips, in nats, as training went."""
    val: Metrics | None
    """None in an epoch after which val was not scored."""


@dataclass(kw_only=True, eq=False)
class TrainedRun:
    """A run as far as it has come."""

    seed: int
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights after the best epoch so far, on the CPU."""
    best_epoch: int = 0
    best: tuple[float, float, float] = (-math.inf, -math.inf, -math.inf)
    """Chosen metric, accuracy, minus loss, of the best epoch: greater is better, in this order."""
    history: list[Epoch] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, in epochs, for a train split of a given size."""

    n_epochs: int
    scored_every: int
    patience: int

    def is_scored(self, epoch: int) -> bool:
        """epoch: from 1."""
        return epoch % self.scored_every == 0 or epoch == self.n_epochs


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One head to train on one store."""

    head: str
    classes: tuple[str, ...]
    train: ClipTable
    """Features in the type that training multiplies in, or any that casts to it."""
    val: ClipTable
    config: FitConfig
    shapes: Shapes
    """Of the store's feature matrices, as ``train.stores.find_shapes`` gives them."""
    device: str = "cpu"

    def build_head(self, seed: int = 0) -> Head:
        """The head with weights drawn from a seed."""
        return build_head(
            self.head,
            len(self.classes),
            context=self.config.context,
            streams=self.config.streams,
            shapes=self.shapes,
            seed=seed,
        )

    @property
    def streams(self) -> dict[str, str]:
        """The streams that the head reads -> the feature matrix that each comes from."""
        return choose_streams(self.head, context=self.config.context, streams=self.config.streams)


def plan_epochs(n_train: int, config: FitConfig) -> Schedule:
    """Turn the settings into epochs: small stores are passed over until ``min_steps`` are done."""
    n_batches = math.ceil(n_train / config.batch_size)
    n_epochs = max(config.epochs, math.ceil(config.min_steps / n_batches))
    return Schedule(
        n_epochs=n_epochs,
        scored_every=math.ceil(n_epochs / config.scorings),
        patience=math.ceil(config.patience * n_epochs),
    )


def choose_precision(precision: str, device: str) -> str:
    """Resolve ``auto``: bfloat16 where the device multiplies it natively, else float32."""
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    can: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if can.get("avx512_bf16") or can.get("amx_bf16") else "float32"


def train_runs(
    task: Task,
    seeds: Sequence[int],
    on_epoch: Callable[[int, Sequence[TrainedRun]], None],
    stop: Event | None = None,
) -> list[TrainedRun]:
    """Train a head from several seeds; each run keeps the weights of its best epoch on val.

    Adam on the mean cross-entropy of each batch (IV-C); the CNNs are not here at all.

    Args:
        task: What to train on what.
        seeds: One run each.
        on_epoch: Called after each epoch with its number and the runs that trained in it.
        stop: Training ends after the batch at hand once this is set.

    Raises:
        RunError: A run's loss is not a number.
        CancelledError: ``stop`` was set.
        ConfigError: The task's tables lack what the head reads.
    """
    config = task.config
    heads = [task.build_head(seed) for seed in seeds]
    streams = task.streams
    missing = set(streams.values()) - set(task.train.features)
    if missing:
        raise ConfigError(f"head {task.head}: the store gives no {', '.join(sorted(missing))}.")
    stacked = stack_runs(heads).to(task.device)
    optimizer = _make_optimizer(stacked, config.lr)
    schedule = plan_epochs(len(task.train.labelled), config)
    runs = [TrainedRun(seed=seed) for seed in seeds]
    active = list(runs)
    for epoch in range(1, schedule.n_epochs + 1):
        losses = np.zeros(len(active))
        for batch in _iter_batches(task, [run.seed for run in active], streams, epoch):
            if stop is not None and stop.is_set():
                raise CancelledError
            losses += _take_step(task, stacked, optimizer, batch)
        losses /= len(task.train.labelled)
        metrics: list[Metrics | None] = [None] * len(active)
        if schedule.is_scored(epoch):
            metrics = list(_score_val(task, stacked, streams))
        for i, (run, loss, val) in enumerate(zip(active, losses, metrics, strict=True)):
            _check_finite(task, run.seed, epoch, loss)
            run.history.append(Epoch(epoch=epoch, train_loss=float(loss), val=val))
            if val is not None and (key := _rank(val, config.select)) > run.best:
                run.best, run.best_epoch = key, epoch
                state = read_run_state(stacked, i)
                run.state = {name: tensor.cpu() for name, tensor in state.items()}
        on_epoch(epoch, active)
        going = [
            i
            for i, run in enumerate(active)
            if epoch - max(run.best_epoch, 1) < schedule.patience or not run.state
        ]
        if not going:
            break
        if len(going) < len(active):
            _keep_runs(stacked, optimizer, going)
            active = [active[i] for i in going]
    return runs


def score_clips(
    head: Head,
    table: ClipTable,
    streams: Mapping[str, str],
    *,
    n_runs: int = 0,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Class probabilities of all clips at their first phase, computed in float32.

    Args:
        head: With ``n_runs`` runs side by side, or plain where that is 0.
        table: The clips.
        streams: What the head reads, as ``train.heads.choose_streams`` gives it.
        n_runs: S.
        device: Where the head stands.

    Returns:
        [*runs, N, K] Probabilities, in the table's order; N is 0 for a table without clips.
    """
    if len(table) == 0:
        n_classes = head.classify.bias.shape[-1]
        return np.empty((n_runs, 0, n_classes) if n_runs else (0, n_classes))
    by_length = np.argsort([len(phases[0].context) for phases in table.phases], kind="stable")
    parts = []
    with torch.no_grad():
        for begin in range(0, len(by_length), SCORED_CLIPS):
            clips = by_length[begin : begin + SCORED_CLIPS]
            batch = gather_batch(table, clips, np.zeros_like(clips), streams)
            inputs = {name: x.to(device, torch.float32) for name, x in batch.streams.items()}
            n_steps = batch.n_steps.to(device)
            if n_runs:
                inputs = {name: x.expand(n_runs, *x.shape) for name, x in inputs.items()}
                n_steps = n_steps.expand(n_runs, -1)
            parts.append(torch.softmax(head.score(inputs, n_steps).double(), -1).cpu().numpy())
    scores = np.concatenate(parts, axis=-2)
    result = np.empty_like(scores)
    result[..., by_length, :] = scores
    return result


def _make_optimizer(head: Head, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(head.parameters(), lr=lr, fused=True)


def _iter_batches(
    task: Task, seeds: Sequence[int], streams: Mapping[str, str], epoch: int
) -> Iterator[Batch]:
    """One pass over the train clips with a label, every run in its own order: [S, B] at a time."""
    table = task.train
    phases = np.stack([draw_phases(table, seed, epoch) for seed in seeds])
    orders = []
    for seed, own in zip(seeds, phases, strict=True):
        n_steps = [len(table.phases[clip][own[clip]].context) for clip in table.labelled]
        batches = order_batches(np.array(n_steps), task.config.batch_size, seed, epoch)
        orders.append([table.labelled[batch] for batch in batches])
    for of_each_run in zip(*orders, strict=True):
        clips = np.stack(of_each_run)  # [S, B]
        yield gather_batch(table, clips, np.take_along_axis(phases, clips, 1), streams)


def _take_step(
    task: Task, stacked: Head, optimizer: torch.optim.Adam, batch: Batch
) -> NDArray[np.float64]:
    """One step of Adam for every run. Returns [S] each run's loss, summed over its clips."""
    in_bfloat16 = choose_precision(task.config.precision, task.device) == "bfloat16"
    inputs = {name: x.to(task.device) for name, x in batch.streams.items()}
    with torch.autocast(torch.device(task.device).type, torch.bfloat16, enabled=in_bfloat16):
        logits = stacked.score(inputs, batch.n_steps.to(task.device))  # [S, B, K]
    labels = batch.label.to(task.device)
    losses = cross_entropy(logits.float().mT, labels, reduction="none")  # [S, B]
    optimizer.zero_grad()
    # Runs share no weight: each gets the gradient of the mean over its own clips.
    torch.autograd.backward(losses.mean(1).sum())
    optimizer.step()
    summed: NDArray[np.float64] = losses.detach().sum(1).double().cpu().numpy()
    return summed


def _score_val(task: Task, stacked: Head, streams: Mapping[str, str]) -> list[Metrics]:
    n_runs = next(iter(stacked.parameters())).shape[0]
    scores = score_clips(stacked, task.val, streams, n_runs=n_runs, device=task.device)
    known = task.val.labelled
    return [score_predictions(task.val.label[known], of_run[known]) for of_run in scores]


def _rank(val: Metrics, select: str) -> tuple[float, float, float]:
    return (getattr(val, select), val.acc, -val.loss)


def _keep_runs(stacked: Head, optimizer: torch.optim.Adam, kept: Sequence[int]) -> None:
    """Drop the runs that ended, from the weights and from Adam's averages."""
    for parameter in stacked.parameters():
        index = torch.tensor(kept, device=parameter.device)
        parameter.data = parameter.data.index_select(0, index)
        parameter.grad = None
        state = optimizer.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].index_select(0, index)


def _check_finite(task: Task, seed: int, epoch: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"head {task.head}, seed {seed}: the loss is {loss} in epoch {epoch}. Try a smaller "
            f"step, for example --set lr={task.config.lr / 10:g}, or --set precision=float32; "
            "store verify tells whether the features are whole."
        )
