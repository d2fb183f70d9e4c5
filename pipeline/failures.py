"""failures.csv while clips are tried."""

from __future__ import annotations

from pathlib import Path

from features.store.index import (
    FAILURE_COLUMNS,
    WORKER_STEP,
    Failure,
    read_failures,
    write_failures,
)


class FailureLog:
    """The rows of failures.csv: one goes when its clip is done, not before."""

    def __init__(self, store: Path) -> None:
        """store: its folder."""
        self._store = store
        rows = read_failures(store)[list(FAILURE_COLUMNS)].itertuples(index=False)
        self._rows = {
            row[0]: Failure(**dict(zip(FAILURE_COLUMNS, row, strict=True))) for row in rows
        }

    @property
    def worker_ids(self) -> set[str]:
        """Clips that ended the worker that extracted them."""
        return {clip_id for clip_id, failure in self._rows.items() if failure.step == WORKER_STEP}

    def add(self, failure: Failure) -> None:
        """Keep a clip's failure, on disk at once: a kill must not lose it."""
        self._rows[failure.clip_id] = failure
        self.write()

    def forget(self, clip_ids: set[str]) -> None:
        """Drop the rows of clips that are done."""
        for clip_id in clip_ids:
            self._rows.pop(clip_id, None)

    def write(self) -> None:
        """Replace failures.csv."""
        write_failures(self._store, list(self._rows.values()))
