"""A worker pool without processes, for tests of what comes before and after them."""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from pipeline.embed.encoder import FrameEncoder
from pipeline.workers.messages import Item, Loaded, Machine
from pipeline.workers.resources import Job, plan_works
from pipeline.workers.worker import open_output


class LocalPool:
    """Does in this process, one clip after another, what one worker does."""

    def __init__(
        self, device: str, extractor: str = "pipeline.workers.extractor:Extractor"
    ) -> None:
        self._device = device
        self._extractor: Any = pkgutil.resolve_name(extractor)

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def find_machine(self) -> Machine:
        machine: Machine = self._extractor.find_machine(self._device)
        return machine

    def run(self, job: Job, record: Callable[[int, Item], None]) -> None:
        machine = self.find_machine()
        work = plan_works(job.work, len(job.clips), machine, 1)[0]
        extractor = self._extractor(work)
        record(0, Loaded())
        output = open_output(job.output, partial(_pass_on, record))
        try:
            with contextlib.closing(extractor.iter_items(job.clips)) as items:
                for item in items:
                    output.take(item)
        finally:
            output.finish()


def _pass_on(record: Callable[[int, Item], None], message: object) -> None:
    """What the pool tells the record of what a worker says."""
    if isinstance(message, Item):
        record(0, message)


load_once = lru_cache(maxsize=1)(FrameEncoder)
"""For ``pipeline.workers.extractor.FrameEncoder``: compiling takes most of a small clip's time."""
