"""How much memory the features may take, and which of them that leaves on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from features.machine import find_free_bytes

K = TypeVar("K")

_SHARE = 0.75
"""Of the free memory that features take at most: the heads and their batches need some too."""


def choose_limit(memory_gb: float | None) -> int | None:
    """Bytes that features may take: as told, or three quarters of what is free; None: any."""
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    free = find_free_bytes()
    return None if free is None else int(free * _SHARE)


def choose_on_disk(n_bytes: Mapping[K, int], limit: int | None) -> set[K]:
    """Which things stay on disk: memory takes the smallest first, as many as the limit allows."""
    on_disk, taken = set(), 0
    for key, size in sorted(n_bytes.items(), key=lambda item: item[1]):
        if limit is not None and taken + size > limit:
            on_disk.add(key)
        else:
            taken += size
    return on_disk
