"""The noise of dropout for runs side by side, each run's a function of its own seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from train.seeds import make_rng

_LEVELS = 1 << 16
"""Noise is drawn in 16 bits: a rate of dropout is exact to 1 / 65,536."""


class Noise:
    """Which values dropout zeroes in one batch.

    A mask is a function of (seed, epoch, batch, how many masks were drawn before it): neither the
    runs beside it nor the padding, which depends on them, changes the mask of a real step.
    """

    def __init__(
        self, rates: Sequence[float], seeds: Sequence[int], epoch: int, batch: int
    ) -> None:
        """rates, seeds: one a run; epoch, batch: which batch this is."""
        self._rates, self._seeds = rates, seeds
        self._place = (epoch, batch)
        self._n_drawn = 0

    def drop(self, x: Tensor) -> Tensor:
        """Zero values at each run's rate and scale the others up.

        Args:
            x: [S, ...] One slice a run. Where slices differ in length with the padding, the padded
                dimension comes first.
        """
        number = self._n_drawn
        self._n_drawn += 1
        scale = torch.ones(x.shape, dtype=x.dtype)
        n_values = x[0].numel()
        for run, (rate, seed) in enumerate(zip(self._rates, self._seeds, strict=True)):
            if rate == 0:
                continue
            rng = make_rng("dropout", seed, *self._place, number)
            drawn = rng.integers(0, _LEVELS, n_values, dtype=np.uint16)
            kept = torch.from_numpy(drawn >= round(rate * _LEVELS))
            scale[run] = kept.view(x.shape[1:]).to(x.dtype) / (1 - rate)
        return x * scale.to(x.device)
