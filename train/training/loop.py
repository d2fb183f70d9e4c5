"""Trains runs of one head side by side, as one model with a run dimension; val chooses epochs.

Each run has its own seed and settings, and from them its own weights, order of batches, initial
frames, noise and end: the numbers are those of training it alone, up to rounding. After an epoch
``train.training.scoring`` scores val; here is decided which epoch a run keeps, and when it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch
from torch import Tensor

from features.errors import ConfigError, RunError
from features.networks.runtime import PRECISIONS
from train.config import FitConfig
from train.data.batches import Batch, draw_clips, draw_phases, gather_batch, order_batches
from train.data.clips import ClipTable
from train.data.scaling import Scale
from train.heads.build import build_head
from train.heads.dropout import Noise
from train.heads.layers import Head, read_run_state, set_noise, stack_runs
from train.metrics import Metrics, score_predictions
from train.streams import Matrices
from train.training.adam import RunOptimizer
from train.training.loss import make_losses
from train.training.scoring import score_clips
from train.training.specs import RunSpec, group_specs

OnEpoch = Callable[[int, Sequence["TrainedRun"]], Collection["TrainedRun"] | None]
"""Told of each epoch and the runs that trained in it; returns those that are to end now, if any."""


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

    spec: RunSpec
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights after the best epoch so far, on the CPU."""
    best_epoch: int = 0
    best: tuple[float, float, float] = (-math.inf, -math.inf, -math.inf)
    """Chosen metric, accuracy, minus loss, of the best epoch: greater is better, in this order."""
    history: list[Epoch] = field(default_factory=list)
    error: RunError | None = None
    """Why the run ended without a result: its loss is not a number."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to train, in epochs, for a train split of a given size."""

    n_epochs: int
    scored_every: int

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
    """What the runs share, ``precision`` resolved; of ``train.training.specs.OWN_SETTINGS`` each
    run has its own."""
    matrices: Matrices
    """What the head reads, as ``train.data.store_streams.choose_matrices`` gives it."""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """Matrix -> the statistics of its train rows, where streams are standardised. Missing where
    only kept weights are scored: those hold them."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.config.precision not in PRECISIONS:
            raise ValueError(f"precision {self.config.precision!r}: expected one of {PRECISIONS}")

    def build_head(self, seed: int = 0) -> Head:
        """The head with weights drawn from a seed, and the scales of its streams."""
        head = build_head(
            self.head,
            len(self.classes),
            context=self.config.context,
            streams=self.config.streams,
            matrices=self.matrices,
            standardise=self.config.standardise == "on",
            seed=seed,
        )
        for stream, matrix in self.streams.items():
            if matrix in self.scales:
                scale = self.scales[matrix]
                head.standardise[stream].load_state_dict(vars(scale))
        return head

    @property
    def streams(self) -> dict[str, str]:
        """The streams that the head reads -> the feature matrix that each comes from."""
        return self.config.choose_streams(self.head, self.matrices)


def plan_epochs(n_train: int, config: FitConfig) -> Schedule:
    """Turn the settings into epochs: a small store is passed over for ``min_updates``."""
    n_batches = math.ceil(n_train / config.batch_size)
    n_epochs = max(config.epochs, math.ceil(config.min_updates / n_batches))
    return Schedule(
        n_epochs=n_epochs,
        scored_every=math.ceil(n_epochs / config.max_scorings),
    )


def train_runs(
    task: Task, specs: Sequence[RunSpec], on_epoch: OnEpoch, stop: Event | None = None
) -> list[TrainedRun]:
    """Train a head once for each spec, all at once; each run keeps its best epoch on val.

    Adam on the cross-entropy of each batch (IV-C); the CNNs are not here at all. A run that ends,
    by patience, by ``on_epoch`` or by a loss that is not a number, leaves the others unchanged.

    Args:
        task: What to train on what.
        specs: The runs; see ``train.training.specs.group_specs`` for which may be trained together.
        on_epoch: Called after each epoch with its number and the runs that trained in it, as far as
            they have come; the runs that it returns end there and keep what they have.
        stop: Training ends after the batch at hand once this is set.

    Returns:
        A run for each spec, in order. Those that have an ``error`` have no weights.

    Raises:
        CancelledError: ``stop`` was set.
        ConfigError: The task's tables lack what the head reads.
        ValueError: Specs that cannot be trained together.
    """
    if len(group_specs([RunSpec(seed=0, config=task.config), *specs])) > 1:
        raise ValueError("runs train together only where they differ in OWN_SETTINGS alone")
    missing = set(task.streams.values()) - set(task.train.features)
    if missing:
        raise ConfigError(f"head {task.head}: the store gives no {', '.join(sorted(missing))}.")
    runs = [TrainedRun(spec=spec) for spec in specs]
    model = _Model(task, runs)
    schedule = plan_epochs(len(task.train.labelled), task.config)
    for epoch in range(1, schedule.n_epochs + 1):
        active = list(model.runs)
        losses = model.train_epoch(epoch, stop)
        metrics: Sequence[Metrics | None] = [None] * len(active)
        if schedule.is_scored(epoch):
            metrics = model.score_val()
        for i, run in enumerate(active):
            _note_epoch(task, run, Epoch(epoch=epoch, train_loss=losses[i], val=metrics[i]))
            if run.best_epoch == epoch:
                run.state = model.read_state(i)
        dropped = set(on_epoch(epoch, active) or ())
        going = [
            i
            for i, run in enumerate(active)
            if run.error is None and run not in dropped and not _has_ended(run, epoch, schedule)
        ]
        if not going:
            break
        if len(going) < len(active):
            model.keep(going)
    return runs


class _Model:
    """The runs that still train: their weights side by side, and what trains them."""

    def __init__(self, task: Task, runs: Sequence[TrainedRun]) -> None:
        self.task, self.runs = task, list(runs)
        configs = [run.spec.config for run in runs]
        heads = [task.build_head(run.spec.seed) for run in runs]
        self._stacked = stack_runs(heads).to(task.device)
        self._optimizer = RunOptimizer(self._stacked, [config.lr for config in configs])
        label = task.train.label[task.train.labelled]
        self._losses = make_losses(configs, label, len(task.classes), task.device)

    def train_epoch(self, epoch: int, stop: Event | None) -> list[float]:
        """One pass over the train clips. Returns each run's mean loss."""
        losses = torch.zeros(len(self.runs), dtype=torch.float64, device=self.task.device)
        specs = [run.spec for run in self.runs]
        rates = [spec.config.dropout for spec in specs]
        for number, batch in enumerate(_iter_batches(self.task, specs, epoch)):
            if stop is not None and stop.is_set():
                raise CancelledError
            if any(rates):
                noise = Noise(rates, [spec.seed for spec in specs], epoch, number)
                set_noise(self._stacked, noise)
            losses += self._take_step(batch) * batch.label.shape[1]
        set_noise(self._stacked, None)
        mean: list[float] = (losses / len(self.task.train.labelled)).tolist()
        return mean

    def score_val(self) -> list[Metrics]:
        """In the precision of training: what a run is reported with is scored anew."""
        task, known = self.task, self.task.val.labelled
        scores = score_clips(
            self._stacked,
            task.val,
            task.streams,
            n_runs=len(self.runs),
            device=task.device,
            precision=task.config.precision,
        )
        return [score_predictions(task.val.label[known], of_run[known]) for of_run in scores]

    def read_state(self, i: int) -> dict[str, Tensor]:
        """A copy of one run's weights, on the CPU."""
        state = read_run_state(self._stacked, i)
        return {name: tensor.cpu() for name, tensor in state.items()}

    def keep(self, kept: Sequence[int]) -> None:
        """Go on with some of the runs."""
        self.runs = [self.runs[i] for i in kept]
        self._optimizer.keep(kept)
        self._losses = self._losses.keep(torch.tensor(kept, device=self.task.device))

    def _take_step(self, batch: Batch) -> Tensor:
        """One step of Adam for every run. Returns [S] each run's loss."""
        device = self.task.device
        in_bfloat16 = self.task.config.precision == "bfloat16"
        inputs = {name: x.to(device) for name, x in batch.streams.items()}
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=in_bfloat16):
            logits = self._stacked.score(inputs, batch.n_steps.to(device))  # [S, B, K]
        losses = self._losses.average(logits.float(), batch.label.to(device))
        # Runs share no weight: each gets the gradient of its own loss.
        parameters = list(self._stacked.parameters())
        self._optimizer.step(torch.autograd.grad(losses.sum(), parameters))
        return losses.detach()


def _iter_batches(task: Task, specs: Sequence[RunSpec], epoch: int) -> Iterator[Batch]:
    """One pass over the train clips with a label, every run in its own order: [S, B] at a time."""
    table = task.train
    phases = np.stack([draw_phases(table, spec.seed, epoch) for spec in specs])
    orders = []
    for spec, own in zip(specs, phases, strict=True):
        drawn = draw_clips(table.label, spec.config.sampling, spec.seed, epoch)
        n_steps = np.array([len(table.phases[clip][own[clip]].context) for clip in drawn])
        batches = order_batches(n_steps, task.config.batch_size, spec.seed, epoch)
        orders.append([drawn[batch] for batch in batches])
    for of_each_run in zip(*orders, strict=True):
        clips = np.stack(of_each_run)  # [S, B]
        yield gather_batch(table, clips, np.take_along_axis(phases, clips, 1), task.streams)


def _note_epoch(task: Task, run: TrainedRun, epoch: Epoch) -> None:
    """Add to a run's history; say if this epoch is its best, or if it went wrong."""
    run.history.append(epoch)
    loss = epoch.train_loss if epoch.val is None else epoch.train_loss + epoch.val.loss
    if not math.isfinite(loss):
        run.error = RunError(
            f"head {task.head}, seed {run.spec.seed}: the loss is {loss} in epoch {epoch.epoch}. "
            f"Try a smaller step, for example --set lr={run.spec.config.lr / 10:g}, or --set "
            "precision=float32; store verify tells whether the features are whole."
        )
        run.state = {}
    elif (val := epoch.val) is not None:
        key = (getattr(val, run.spec.config.select), val.acc, -val.loss)
        if key > run.best:
            run.best, run.best_epoch = key, epoch.epoch


def _has_ended(run: TrainedRun, epoch: int, schedule: Schedule) -> bool:
    """Whether a run's best epoch lies so far back that it ends."""
    patience = math.ceil(run.spec.config.patience * schedule.n_epochs)
    return bool(run.state) and epoch - max(run.best_epoch, 1) >= patience
