"""The loss of runs side by side: cross-entropy, with weights of classes and smoothing of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.config import FitConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class RunLosses:
    """What the loss of each run does with a class and a label."""

    class_weight: Tensor
    """[S, K]"""
    smoothing: Tensor
    """[S] Share of each label that is spread evenly over all classes."""

    def keep(self, kept: Tensor) -> RunLosses:
        """Those of some runs; kept: their positions."""
        return RunLosses(class_weight=self.class_weight[kept], smoothing=self.smoothing[kept])

    def average(self, logits: Tensor, label: Tensor) -> Tensor:
        """Each run's loss over its batch, as ``torch.nn.functional.cross_entropy`` defines it.

        Args:
            logits: [S, B, K]
            label: [S, B] Class numbers.

        Returns:
            [S] Weighted means: sums over the clips divided by the sums of their weights.
        """
        surprise = -torch.log_softmax(logits, -1)  # [S, B, K]
        weight = self.class_weight.gather(1, label)  # [S, B]
        of_label = weight * surprise.gather(2, label.unsqueeze(2)).squeeze(2)
        of_all = (self.class_weight.unsqueeze(1) * surprise).mean(2)
        smoothing = self.smoothing.unsqueeze(1)
        losses = (1 - smoothing) * of_label + smoothing * of_all  # [S, B]
        return losses.sum(1) / weight.sum(1)


def make_losses(
    configs: Sequence[FitConfig], label: NDArray[np.intp], n_classes: int, device: str
) -> RunLosses:
    """The losses of runs with these settings.

    Args:
        configs: One a run.
        label: [N] Class numbers of the train clips; class weights are found from nothing else.
        n_classes: K
        device: Where the logits will stand.
    """
    balanced = weigh_classes(label, n_classes)
    weights = [
        balanced if config.class_weights == "balanced" else np.ones(n_classes) for config in configs
    ]
    return RunLosses(
        class_weight=torch.tensor(np.stack(weights), dtype=torch.float32, device=device),
        smoothing=torch.tensor([config.label_smoothing for config in configs], device=device),
    )


def weigh_classes(label: NDArray[np.intp], n_classes: int) -> NDArray[np.float64]:
    """[K] Weights that make the classes count alike: clips / (classes present x clips of each).

    Their mean over the clips is 1. A class without a clip weighs nothing.
    """
    counts = np.bincount(label, minlength=n_classes)
    present = counts > 0
    weights = np.zeros(n_classes)
    weights[present] = len(label) / (present.sum() * counts[present])
    return weights
