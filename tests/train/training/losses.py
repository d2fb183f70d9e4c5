"""Losses that are not a number, on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import train.training.loss
from train.config import FitConfig
from train.training.loss import RunLosses


def spoil_losses(patch: pytest.MonkeyPatch, *, dropout: float) -> None:
    """From now on the loss of every run with this dropout is not a number."""

    def make_losses(configs: Sequence[FitConfig], *args: Any) -> RunLosses:
        losses = train.training.loss.make_losses(configs, *args)
        spoiled = torch.tensor([config.dropout == dropout for config in configs])
        losses.class_weight[spoiled] = torch.nan
        return losses

    patch.setattr("train.training.loop.make_losses", make_losses)
