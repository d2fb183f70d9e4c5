"""How much memory there is to take, and how the C library treats what is freed."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEPT_BYTES = 1 << 30
_HEAP_BYTES = 1 << 26
"""What a thread's place for memory grows and shrinks by."""
_ARENAS = 2

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Of versions 2 and 1: limit and use of the container that we run in; ``memory.stat`` beside them
tells how much of the use is files that the system would drop."""


def find_free_bytes() -> int | None:
    """Memory that may still be taken here, page cache included; None where Linux does not tell."""
    found = []
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                found.append(int(value.split()[0]) * 1024)  # told in KiB
    for limit, use in _CGROUPS:
        if limit.is_file() and use.is_file():
            told = limit.read_text(encoding="ascii").strip()
            if told.isdecimal():  # else "max"
                used = int(use.read_text(encoding="ascii")) - _find_cache_bytes(use.parent)
                found.append(max(int(told) - used, 0))
    return min(found, default=None)


def keep_freed_memory(largest: int = _KEPT_BYTES) -> None:
    """Let glibc keep freed buffers instead of returning each to the kernel at once.

    By default every buffer above 32 MB is mapped, faulted in page by page, and unmapped again, and
    so are smaller ones that come and go at the end of a heap: half of the time of stage one on
    large frames, up to a tenth of a step of training. All threads share two places to keep them: by
    default each thread that waits for another makes one of its own, and keeps what it once needed
    there. Does nothing where the C library is another one.

    Args:
        largest: Bytes of a buffer that is kept; larger ones are returned, as by default.
    """
    mallopt = _find_call("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, largest)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TOP_PAD, _HEAP_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


def return_freed_memory() -> None:
    """Give the system back what was freed, where the C library holds on to it, as glibc does.

    Arrays of many sizes leave holes that later ones do not fit: gigabytes while a large store is
    read, hundreds of megabytes for each thread that trains.
    """
    trim = _find_call("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _find_cache_bytes(cgroup: Path) -> int:
    """Files that were read and lie in memory unused; 0 where the system does not tell."""
    stat = cgroup / "memory.stat"
    if not stat.is_file():
        return 0
    told = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(told.get("total_inactive_file", told.get("inactive_file", 0)))


def _find_call(name: str) -> Any:
    """A function of glibc; None where the C library is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
