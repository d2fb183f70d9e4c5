"""Which processes there are, by /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path


def list_children(parent: int) -> set[int]:
    """Processes that a process has started."""
    return {pid for pid, above in read_parents().items() if above == parent}


def read_parents() -> dict[int, int]:
    """Process -> its parent, of those that have not ended."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    return parents
