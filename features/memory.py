"""How the C library treats memory that is freed."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEPT_BYTES = 1 << 30
_HEAP_BYTES = 1 << 26
"""What a thread's place for memory grows and shrinks by."""
_ARENAS = 2


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


def _find_call(name: str) -> Any:
    """A function of glibc; None where the C library is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
