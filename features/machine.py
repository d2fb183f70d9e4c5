"""How much of the machine there is to take: what its processes, batch systems and containers leave.

It exists because ``joblib.cpu_count`` is wrong where quotas of control groups are nested or of both
versions, and psutil knows none of them.

SLURM, systemd and containers set limits by control groups. Groups are nested, a process is in one
of them, and the limit of every group around it holds, too::

    /sys/fs/cgroup                    memory.max  max
      system.slice                    memory.max  max
        slurmstepd.scope/job_7        memory.max  8 GiB      the process may take 8 GiB,
          step_0/user/task_0          memory.max  max        less what job_7 as a whole holds
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
"""Of the file system that tells; tests have one of their own."""


def find_core_limit(root: Path = _ROOT) -> int | None:
    """Cores that this process may use, parts rounded up; None where the system does not tell."""
    found = []
    if hasattr(os, "sched_getaffinity"):  # cpusets, taskset
        found.append(len(os.sched_getaffinity(0)))
    for group in _iter_groups(root, "cpu"):
        if max_file := _read(group / "cpu.max"):
            quota, period = max_file.split()
        else:
            quota = _read(group / "cpu.cfs_quota_us")
            period = _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # else "max", -1, or nothing
            found.append(math.ceil(int(quota) / int(period)))
    return min(found, default=None)


def bound_cores(n_cores: int) -> int:
    """So many cores, or what the system allows if that is fewer. n_cores: torch means to use."""
    limit = find_core_limit()
    return n_cores if limit is None else min(n_cores, limit)


def find_free_bytes(root: Path = _ROOT) -> int | None:
    """Memory that may still be taken, page cache included; None where the system does not tell."""
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(int(value.split()[0]) * 1024)  # in KiB
    for group in _iter_groups(root, "memory"):
        usage = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _read(group / name)
            if limit.isdecimal() and usage.isdecimal():  # else "max", or nothing
                held = int(usage) - _find_cache_bytes(group)
                found.append(max(int(limit) - held, 0))
    return min(found, default=None)


def _find_cache_bytes(group: Path) -> int:
    """Files that were read and lie in memory unused: the system drops them before it refuses."""
    lines = _read(group / "memory.stat").splitlines()
    stat = {name: value for name, _, value in (line.partition(" ") for line in lines)}
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _iter_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, from the innermost out.

    controller: ``cpu`` or ``memory``. Version 1 has a hierarchy of groups for each, version 2 one
    for all; machines may have both.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount_root, mount_point in _iter_mounts(root, controller if controllers else ""):
            group = _find_within(PurePosixPath(path), PurePosixPath(mount_root))
            for part in (group, *group.parents):
                yield root / mount_point.lstrip("/") / part


def _iter_mounts(root: Path, controller: str) -> Iterator[tuple[str, str]]:
    """Which group of a hierarchy is to be seen where: of version 2 where no controller is given."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        mount_root, mount_point = mount.split()[3:5]
        kind, _, options = file_system.split()[:3]
        if (kind, controller) == ("cgroup2", "") or (
            kind == "cgroup" and controller in options.split(",")
        ):
            yield mount_root, mount_point


def _find_within(path: PurePosixPath, mount_root: PurePosixPath) -> PurePosixPath:
    """Where a group lies in what is mounted; ``.``, the outermost there, where it is not in it.

    Containers see only their own part of the hierarchy, and the path may still be that of the
    whole, or lead out of the part (``/../..``).
    """
    if ".." in path.parts or not path.is_relative_to(mount_root):
        return PurePosixPath(".")
    return path.relative_to(mount_root)


def _read(file: Path) -> str:
    """What a file says; nothing where there is none, or none that may be read."""
    try:
        # Mount points have names of any bytes.
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
