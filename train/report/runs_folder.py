"""What stands in a folder of runs: runs, sweeps, folds put together, and things of others."""

from __future__ import annotations

import logging
from pathlib import Path

from train.runs.folder import RUN_FORMAT, find_runs, is_marked, list_missing
from train.runs.pooled import POOLED_FORMAT
from train.sweep.folder import find_sweeps

MOST_NAMED = 20
"""Strange things that are named one by one."""

_log = logging.getLogger(__name__)


def warn_of_strange(runs: Path) -> None:
    """Log a line for each file or folder that is nothing of ours; hidden ones are passed over."""
    if not runs.is_dir():
        return
    known = {*find_runs(runs), *find_sweeps(runs)}
    strange = [
        path
        for path in sorted(runs.iterdir())
        if not path.name.startswith(".")
        and path not in known
        and not is_marked(path / "pooled.json", POOLED_FORMAT)
    ]
    for path in strange[:MOST_NAMED]:
        _log.warning("%s: passed over, %s", path, _describe(path))
    if len(strange) > MOST_NAMED:
        _log.warning("%s: %d more are passed over", runs, len(strange) - MOST_NAMED)


def _describe(path: Path) -> str:
    if not path.is_dir():
        return "a file, not a run folder"
    if is_marked(path / "config.json", RUN_FORMAT):
        return f"a run without {', '.join(list_missing(path))}: copy it again"
    if path.name.startswith("sweep-") and not (path / "sweep.json").exists():
        return "a sweep that is not finished: run the same sweep again"
    return "a folder that neither fit nor sweep wrote"
