"""TensorBoard event files: train loss and val metrics of every run, after every epoch."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from train.training.loop import Epoch

VAL_METRICS = ("loss", "map_mec", "map_rank", "acc", "uar", "f1_macro")


class EventFiles:
    """The event files of some runs, a folder a run; does nothing without a folder.

    TensorBoard reads them while they grow. A run that was complete before has none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def add_epoch(self, run: str, epoch: Epoch) -> None:
        """Add an epoch of a run: ``train/loss``, and ``val/...`` where val was scored."""
        if self._folder is None:
            return
        if run not in self._writers:
            from tensorboardX import SummaryWriter  # slow to load, and seldom asked for

            self._writers[run] = SummaryWriter(str(self._folder / run))
        writer = self._writers[run]
        writer.add_scalar("train/loss", epoch.train_loss, epoch.epoch)
        if epoch.val is not None:
            for name in VAL_METRICS:
                writer.add_scalar(f"val/{name}", getattr(epoch.val, name), epoch.epoch)
