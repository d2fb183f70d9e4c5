"""A worker pool without processes, for tests of what comes before and after them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

import pipeline.workers.extractor
from features.contracts import Clip
from pipeline.embed.encoder import FrameEncoder
from pipeline.workers.budgets import Budgets
from pipeline.workers.messages import Item, Loaded, Machine, Work
from pipeline.workers.plan import plan_works


class LocalPool:
    """Does in this process, one clip after another, what one worker does."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def find_machine(self) -> Machine:
        return pipeline.workers.extractor.Extractor.find_machine(self._device)

    def iter_items(
        self,
        work: Work,
        clips: Sequence[Clip],
        n_workers: int | None,
        budgets: Budgets,
        alone_ids: Collection[str] = (),
    ) -> Iterator[tuple[int, Item]]:
        machine = self.find_machine()
        extractor = pipeline.workers.extractor.Extractor(
            plan_works(work, len(clips), machine, 1)[0]
        )
        yield 0, Loaded()
        for item in extractor.iter_items(clips):
            yield 0, item


load_once = lru_cache(maxsize=1)(FrameEncoder)
"""For ``pipeline.workers.extractor.FrameEncoder``: compiling takes most of a small clip's time."""
