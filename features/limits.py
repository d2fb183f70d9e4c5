"""How much of the machine, or of the container that we run in, there is to take."""

from __future__ import annotations

import math
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""Of versions 2 and 1; of version 1 the period is in a file beside it."""
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


def find_core_limit() -> int | None:
    """Cores' worth of time that a container may take, rounded up; None: no limit is told."""
    if _CPU_MAX.is_file():
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
    elif _CPU_QUOTA.is_file():
        quota = _CPU_QUOTA.read_text(encoding="ascii").strip()
        period = _CPU_QUOTA.with_name("cpu.cfs_period_us").read_text(encoding="ascii")
    else:
        return None
    return math.ceil(int(quota) / int(period)) if quota.isdecimal() else None  # max, -1: none


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


def _find_cache_bytes(cgroup: Path) -> int:
    """Files that were read and lie in memory unused; 0 where the system does not tell."""
    stat = cgroup / "memory.stat"
    if not stat.is_file():
        return 0
    told = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(told.get("total_inactive_file", told.get("inactive_file", 0)))
