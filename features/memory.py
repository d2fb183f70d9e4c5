"""How much memory there is to take."""

from __future__ import annotations

from pathlib import Path

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


def _find_cache_bytes(cgroup: Path) -> int:
    """Files that were read and lie in memory unused; 0 where the system does not tell."""
    stat = cgroup / "memory.stat"
    if not stat.is_file():
        return 0
    told = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(told.get("total_inactive_file", told.get("inactive_file", 0)))
