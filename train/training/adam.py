"""Adam for runs side by side, each with its own step size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RunOptimizer:
    """Adam (IV-C) over the slices of stacked weights: PyTorch's own, a parameter group a run."""

    def __init__(self, stacked: nn.Module, lrs: Sequence[float]) -> None:
        """stacked: S runs side by side; lrs: each run's step size."""
        self._stacked = list(stacked.parameters())
        self._slices = [self._slice(run) for run in range(len(lrs))]
        self._adam = _make_adam(self._slices, lrs)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step of every run. gradients: of each stacked parameter, in order."""
        for run, parameters in enumerate(self._slices):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                # Fused Adam walks through both as they lie in memory: a transposed gradient would
                # move the wrong weights.
                parameter.grad = gradient[run].contiguous()
        self._adam.step()
        self._adam.zero_grad()

    def keep(self, kept: Sequence[int]) -> None:
        """Go on with some of the runs: shrinks the stacked weights themselves."""
        for parameter in self._stacked:
            index = torch.tensor(kept, device=parameter.device)
            parameter.data = parameter.data.index_select(0, index)
        slices = [self._slice(run) for run in range(len(kept))]
        adam = _make_adam(slices, [self._adam.param_groups[run]["lr"] for run in kept])
        for run, parameters in zip(kept, slices, strict=True):
            for old, new in zip(self._slices[run], parameters, strict=True):
                adam.state[new] = self._adam.state[old]
        self._slices, self._adam = slices, adam

    def _slice(self, run: int) -> list[nn.Parameter]:
        """One run's weights as parameters of their own that share the stacked ones' memory."""
        return [nn.Parameter(parameter.data[run]) for parameter in self._stacked]


def _make_adam(slices: Sequence[Sequence[nn.Parameter]], lrs: Sequence[float]) -> torch.optim.Adam:
    groups = [
        {"params": list(parameters), "lr": lr} for parameters, lr in zip(slices, lrs, strict=True)
    ]
    return torch.optim.Adam(groups, fused=True)
