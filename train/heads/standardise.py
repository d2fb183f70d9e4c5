"""What a head does first where ``standardise`` is on: values on one scale, whatever made them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Takes from each value its mean and divides by its standard deviation.

    Both are those of the train rows. They are no parameters, but are kept among the weights, so
    that a head that is loaded does the same. A row of zeros (no face) stays one: it then stands for
    the mean.
    """

    mean: Tensor
    """[D]"""
    deviation: Tensor
    """[D] Above 0."""

    def __init__(self, n_values: int) -> None:
        """Change nothing until the statistics are known. n_values: D."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_values))
        self.register_buffer("deviation", torch.ones(n_values))

    def forward(self, x: Tensor) -> Tensor:
        """x: [*runs, B, T, D]. Returns the same, float32 where it has fewer bits."""
        if x.dim() == 4 and x.stride(0) == 0:  # the same for all runs, as in scoring: done once
            return cast(Tensor, self(x[0])).expand(x.shape)
        is_real = (x != 0).any(-1, keepdim=True)
        return torch.sub(x, self.mean).div_(self.deviation).mul_(is_real)
