"""Adam side by side is Adam, however the gradients lie in memory."""

from __future__ import annotations

import torch
from torch import nn

from train.training.adam import RunOptimizer


def test_a_transposed_gradient_moves_the_weights_that_it_is_of() -> None:
    draw = torch.Generator().manual_seed(0)
    stacked = nn.ParameterList([nn.Parameter(torch.randn((2, 3, 4), generator=draw))])
    gradient = torch.randn((2, 4, 3), generator=draw).transpose(1, 2)
    alone = [nn.Parameter(stacked[0].detach()[run].clone()) for run in range(2)]
    RunOptimizer(stacked, [0.1, 0.01]).step([gradient])
    for run, lr in enumerate([0.1, 0.01]):
        alone[run].grad = gradient[run].contiguous()
        torch.optim.Adam([alone[run]], lr=lr).step()
        torch.testing.assert_close(stacked[0].detach()[run], alone[run].detach())
