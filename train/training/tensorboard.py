"""TensorBoard event files: train loss and val metrics of every run, after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.training.loop import Epoch


@contextmanager
def open_event_files(folder: Path | None) -> Iterator[Callable[[str, Epoch], None]]:
    """What adds an epoch of a run to its event file, until the block ends.

    A run is a folder in ``folder``, with ``train/loss``, and ``val/...`` where val was scored;
    TensorBoard reads it while it grows. A run that was complete before has none. Without a folder
    nothing is written.
    """
    writers: dict[str, Any] = {}

    def add_epoch(run: str, epoch: Epoch) -> None:
        if folder is None:
            return
        if run not in writers:
            from tensorboardX import SummaryWriter  # slow to load, and seldom asked for

            writers[run] = SummaryWriter(str(folder / run))
        writers[run].add_scalar("train/loss", epoch.train_loss, epoch.epoch)
        for name, value in (epoch.val.list_scalars() if epoch.val else {}).items():
            writers[run].add_scalar(f"val/{name}", value, epoch.epoch)

    try:
        yield add_epoch
    finally:
        for writer in writers.values():
            writer.close()
