"""Counts what ``extract`` tells of its clips, for ``features.console``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.console import Show
    from pipeline.extract import ExtractProgress


def count_clips(
    show: Show, *, clock: Callable[[], float] = time.monotonic
) -> Callable[[ExtractProgress], None]:
    """What ``run_extract`` is to tell. clock: seconds, from any start."""
    started_s = clock()

    def count(progress: ExtractProgress) -> None:
        rate = progress.n_frames / max(clock() - started_s, 1e-3)
        n_ended = progress.n_done + progress.n_failed
        show(n_ended, progress.n_clips, n_failed=progress.n_failed, note=f"{rate:.1f} frames/s")

    return count
