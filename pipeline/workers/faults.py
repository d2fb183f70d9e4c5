"""Errors that tell of a process or its GPU: they end the worker, not only the clip at hand."""

from __future__ import annotations

import re

from pipeline.workers.messages import Death

_GPU = re.compile(r"CUDA|CUDNN|CUBLAS|NVRTC|device-side assert", re.IGNORECASE)
"""torch says such things in several kinds of RuntimeError, its libraries in plain ones."""
_MEMORY = re.compile(r"can't allocate memory|bad_alloc|not enough memory", re.IGNORECASE)


def is_fault(error: Exception) -> bool:
    """Whether what comes after an error in the same process would fail, too.

    A CUDA context is lost for good with the first illegal access, whichever clip's turn it is.
    Where memory is short, the clip that asks for it last need not be the one that took it.
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and bool(_GPU.search(text) or _MEMORY.search(text))


def describe_fault(error: Exception) -> Death:
    """How a worker ended that raised this."""
    kind, text = type(error).__name__, str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return Death(kind="memory", reason="had no memory left" + (f": {text}" if text else ""))
    if isinstance(error, RuntimeError) and _GPU.search(text):
        return Death(kind="GPU", reason=f"met a GPU error: {text}")
    return Death(kind=kind, reason=f"raised {kind}: {text}")
