"""The face CNN while it learns: its start, its steps, its checkpoints."""

from __future__ import annotations

import io
import logging
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from features.contracts import FACE_CROP_PX, FACE_VECTOR_SIZE
from features.disk import write_atomically
from features.networks.face_cnn import FaceCNN
from features.networks.runtime import choose_precision
from features.networks.weights import find_face_weights
from train.face_cnn.augment import augment_faces
from train.face_cnn.balance import balance_vector
from train.face_cnn.config import FaceFitConfig
from train.face_cnn.evaluate import FaceScores, score_faces
from train.face_cnn.pictures.draws import PictureDraws
from train.face_cnn.pictures.sources import FaceSource, join_classes
from train.face_cnn.start import init_from_imagenet, init_from_weights

_log = logging.getLogger(__name__)

_CALIBRATION_PICTURES = 512
_BALANCE_PICTURES = 4096
_BALANCE_BATCH = 128
_AVERAGED_EVERY = 4
"""Steps from one update of the running mean to the next; each costs a tenth of a step."""
_COVARIANCE_KEPT = 0.98
"""Part of the running covariance of the face vector's values that is kept at each step."""
_RARE = 1e-6
"""Chance that stands for that of a class which a set does not have."""


@dataclass(frozen=True, kw_only=True)
class FaceFitEpoch:
    """One row of the history."""

    epoch: int
    """From 1."""
    train_loss: float
    val_accuracy: float
    """Mean over the sets that have val pictures, each by its own classifier."""
    val_uar: float
    """The same of the mean recall over classes."""
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class FaceFitProgress:
    """Where a training stands, for a progress bar."""

    epoch: int
    """The epoch under way, from 1."""
    n_epochs: int
    batch: int
    """Batches of this epoch that are done."""
    n_batches: int


class FaceTraining:
    """The network under training, its running mean, its optimiser and what they have achieved."""

    def __init__(
        self, sources: Sequence[FaceSource], config: FaceFitConfig, device: torch.device
    ) -> None:
        self.sources, self.config, self.device = sources, config, device
        self.reduced = choose_precision(config.precision, device) == "bfloat16"
        self.history: list[FaceFitEpoch] = []
        self.best: dict[str, Tensor] = {}
        classes = join_classes(sources)
        names = {source.name: source.images.classes for source in sources}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # torch's layers offer no other way to seed them
            self.net, self.mean = FaceCNN(classes, names), FaceCNN(classes, names)
        self.draws = PictureDraws(sources, classes, config.balance)
        self.smoothing = {
            source.name: 0.0 if source.images.is_voted() else config.label_smoothing
            for source in sources
        }
        self._start(self.net.to(device))
        self.net.stem.requires_grad_(False)
        self.net.to(memory_format=torch.channels_last)
        self.mean.to(device).to(memory_format=torch.channels_last)
        self.mean.load_state_dict(self.net.state_dict())
        self.mean.requires_grad_(False).eval()
        self.weights = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.covariance = torch.eye(FACE_VECTOR_SIZE, device=device)

    @property
    def n_batches(self) -> int:
        return max(1, self._n_pictures // self.config.batch)

    @property
    def _n_pictures(self) -> int:
        return min(self.config.epoch_pictures, sum(len(source.rows) for source in self.sources))

    def run_epoch(self, epoch: int, progress: Callable[[FaceFitProgress], None]) -> float:
        """Train for one epoch; all its randomness is a function of (seed, epoch)."""
        config, draw = self.config, self._draw(epoch)
        is_small = epoch <= round(config.small_share * config.epochs)
        side = config.small_px if is_small else FACE_CROP_PX
        self.net.train()
        total = 0.0
        for batch in range(self.n_batches):
            step = (epoch - 1) * self.n_batches + batch
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(step)
            total += self._step(side, draw)
            if (step + 1) % _AVERAGED_EVERY == 0:
                self._average(step)
            progress(
                FaceFitProgress(
                    epoch=epoch,
                    n_epochs=config.epochs,
                    batch=batch + 1,
                    n_batches=self.n_batches,
                )
            )
        return total / self.n_batches

    def score(self, split: str) -> dict[str, FaceScores]:
        """Name of a set -> the scores of its own classifier, for sets that have such pictures."""
        scores = {}
        for source in self.sources:
            rows = source.images.scored_rows(split)
            if len(rows):
                found = score_faces(self.mean, source.images, rows, source=source.name)
                scores[source.name] = replace(found, split=split)
        return scores

    @torch.no_grad()
    def balance(self) -> None:
        """Put the best epoch's weights into ``mean``, and balance its vector."""
        self.mean.load_state_dict(self.best)
        draw = self._draw(self.config.epochs + 1)
        n_pictures = min(_BALANCE_PICTURES, self._n_pictures)
        vectors: list[NDArray[np.float32]] = []
        groups: list[NDArray[np.intp]] = []
        labels: list[NDArray[np.intp]] = []
        for source, rows in zip(self.sources, self.draws.take(n_pictures, draw), strict=True):
            columns = np.array(self.draws.priors[source.name].columns)
            label = columns[source.images.target[rows].argmax(1)]
            labels.append(label)
            groups.append(label + len(groups) * len(self.mean.classes))
            for start in range(0, len(rows), _BALANCE_BATCH):
                crops = self._augment(source, rows[start : start + _BALANCE_BATCH], draw)
                seen = self.mean.embed_normalised(self.mean.normalise(crops))
                vectors.append(seen.vector.cpu().numpy())
        balance_vector(
            self.mean,
            np.concatenate(vectors),
            np.concatenate(groups),
            np.concatenate(labels),
            shrinkage=self.config.within_shrinkage,
            gain=self.config.between_gain,
        )

    def keep(self, done: FaceFitEpoch, checkpoint: Path, identity: str) -> None:
        """Note a finished epoch, here and on disk; the file is whole or the one before."""
        self.history.append(done)
        if done.val_uar >= max(row.val_uar for row in self.history):
            self.best = {name: t.clone() for name, t in self.mean.state_dict().items()}
        state = {
            "identity": identity,
            "history": [asdict(row) for row in self.history],
            "net": self.net.state_dict(),
            "mean": self.mean.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "covariance": self.covariance,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(checkpoint, buffer.getvalue())

    def resume(self, checkpoint: Path, identity: str) -> None:
        """Go on from a checkpoint of the same config and images; ignore any other."""
        if not checkpoint.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(
                checkpoint, map_location=self.device, weights_only=True
            )
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            _log.warning("%s: not readable, training starts anew (%s)", checkpoint, error)
            return
        if state.get("identity") != identity:
            _log.warning("%s: of other settings or images, training starts anew", checkpoint)
            return
        _log.info("%s: going on after epoch %d", checkpoint, len(state["history"]))
        self.history = [FaceFitEpoch(**row) for row in state["history"]]
        self.net.load_state_dict(state["net"])
        self.mean.load_state_dict(state["mean"])
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.covariance = state["covariance"]

    def _draw(self, epoch: int) -> torch.Generator:
        seed = int(np.random.SeedSequence([self.config.seed, epoch]).generate_state(1)[0])
        return torch.Generator(self.device).manual_seed(seed)

    def _learning_rate(self, step: int) -> float:
        config = self.config
        n_steps = config.epochs * self.n_batches
        warm = min(1.0, (step + 1) / config.warmup_steps)
        return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))

    def _start(self, net: FaceCNN) -> None:
        if self.config.start != "imagenet":
            init_from_weights(net, find_face_weights(self.config.start))
            return
        draw = self._draw(0)
        sample = self.draws.take(_CALIBRATION_PICTURES, draw)
        crops = [
            self._augment(source, rows, draw)
            for source, rows in zip(self.sources, sample, strict=True)
        ]
        init_from_imagenet(net, net.normalise(torch.cat(crops)))

    def _augment(
        self,
        source: FaceSource,
        rows: NDArray[np.intp],
        draw: torch.Generator,
        side: int = FACE_CROP_PX,
    ) -> Tensor:
        """[len(rows), 1, side, side] float32, 0..255."""
        pixels = torch.from_numpy(source.images.pixels[rows]).to(self.device)
        return augment_faces(pixels, self.config.augmentation, draw, side)

    def _step(self, side: int, draw: torch.Generator) -> float:
        """One update on one batch, of all sets; returns its loss."""
        config = self.config
        chosen = self.draws.take(config.batch, draw)
        parts = [
            (source, rows) for source, rows in zip(self.sources, chosen, strict=True) if len(rows)
        ]
        crops = torch.cat([self._augment(source, rows, draw, side) for source, rows in parts])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            vector = self.net.embed_normalised(self.net.normalise(crops)).vector.float()
        shown = torch.rand(vector.shape, generator=draw, device=self.device) >= config.dropout
        hidden = vector * shown / (1 - config.dropout)
        losses, start = [], 0
        for source, rows in parts:
            of_source = hidden[start : start + len(rows)]
            start += len(rows)
            losses.append(self._classify(source, rows, of_source))
        loss = torch.cat(losses).mean() + config.decorrelation * self._correlate(vector)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, config.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    def _classify(self, source: FaceSource, rows: NDArray[np.intp], vector: Tensor) -> Tensor:
        """[len(rows)] Negative log-likelihood of the set's classifier plus that of all classes.

        Classes come more or less often than they are (``balance``). The set's classifier learns
        how often they are, that of all classes as if all were equally frequent (logit adjustment,
        Menon et al. 2021).
        """
        prior, smoothing = self.draws.priors[source.name], self.smoothing[source.name]
        target = torch.from_numpy(source.images.target[rows]).to(self.device)
        target = target * (1 - smoothing) + smoothing / target.shape[1]
        own = self.net.source_classifiers[source.name](vector)
        own = own + torch.log((prior.drawn + _RARE) / (prior.natural + _RARE)).to(self.device)
        joined = self.net.classifier(vector) + torch.log(prior.joined + _RARE).to(self.device)
        wanted = target.new_zeros(joined.shape)
        wanted[:, prior.columns] = target
        return F.cross_entropy(own, target, reduction="none") + F.cross_entropy(
            joined, wanted, reduction="none"
        )

    def _correlate(self, vector: Tensor) -> Tensor:
        """Sum of squared covariances between values of the face vector, a value (Barlow Twins)."""
        batch = vector.T @ vector / len(vector)
        with torch.no_grad():
            self.covariance.lerp_(batch.detach(), 1 - _COVARIANCE_KEPT)
            kept = self.covariance - torch.diag(self.covariance.diagonal())
        # Of (kept + its change by this batch) squared, the part that the batch can change: a batch
        # alone is too small to tell a covariance.
        return 2 * (kept * batch).sum() / len(kept)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # At the start the mean must forget the untrained weights sooner.
        part = 1 - min(self.config.averaging, (step + 1) / (step + 10)) ** _AVERAGED_EVERY
        fresh = self.net.state_dict()
        for name, tensor in self.mean.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(fresh[name], part)
