"""How the C library treats the large buffers that every frame needs anew."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEPT_BYTES = 1 << 30
_ARENAS = 2


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers instead of returning each to the kernel at once.

    By default every buffer above 32 MB is mapped, faulted in page by page, and unmapped again,
    which takes half of the time of stage one on large frames. All threads share two places to keep
    them: by default each thread that waits for another makes one of its own, and keeps what it
    once needed there. Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
