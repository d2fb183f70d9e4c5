"""The limits of batch systems, services and containers are seen, wherever they are set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from features.machine import find_core_limit, find_free_bytes
from train.training.parallel import count_workers

MIB = 1 << 20
V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
UNLIMITED_V1 = str(2**63 - 4096)
SLURM = "system.slice/slurmstepd.scope/job_7"


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """A file system; what stands under /sys/fs/cgroup is named from there on."""
    for name, text in files.items():
        file = root / (name if name.startswith("proc/") else f"sys/fs/cgroup/{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def process_files(cgroup: str, mountinfo: str, free_mib: int = 64_000) -> dict[str, str]:
    return {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": f"23 1 0:5 / /proc rw - proc proc rw\n{mountinfo}",
        "proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {free_mib * 1024} kB\n",
    }


def group_v2(
    name: str, limit_mib: int | None, usage_mib: int, cache_mib: int = 0
) -> dict[str, str]:
    limit = "max" if limit_mib is None else str(limit_mib * MIB)
    return {
        f"{name}/memory.max": f"{limit}\n",
        f"{name}/memory.high": "max\n",
        f"{name}/memory.current": f"{usage_mib * MIB}\n",
        f"{name}/memory.stat": f"anon 5\ninactive_file {cache_mib * MIB}\nactive_file 7\n",
    }


def group_v1(
    name: str, limit_mib: int | None, usage_mib: int, cache_mib: int = 0
) -> dict[str, str]:
    limit = UNLIMITED_V1 if limit_mib is None else str(limit_mib * MIB)
    return {
        f"{name}/memory.limit_in_bytes": f"{limit}\n",
        f"{name}/memory.usage_in_bytes": f"{usage_mib * MIB}\n",
        f"{name}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache_mib * MIB}\n",
    }


MEMORY_TREES: dict[str, tuple[dict[str, str], int | None]] = {
    "no control groups": ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 3072 kB\n"}, 3),
    "a system that does not tell": ({}, None),
    "no limit": (process_files("0::/user.slice\n", V2, 900) | group_v2("user.slice", None, 5), 900),
    "SLURM, version 2, limit of the job": (
        process_files(f"0::/{SLURM}/step_0/user/task_0\n", V2)
        | group_v2(SLURM, 8000, 3000, cache_mib=1000)
        | group_v2(f"{SLURM}/step_0", None, 2500)
        | group_v2(f"{SLURM}/step_0/user/task_0", None, 2000),
        6000,
    ),
    "systemd, the fuller of two slices": (
        process_files("0::/big.slice/big-a.slice/fit.service\n", V2)
        | group_v2("big.slice", 16_000, 15_500)
        | group_v2("big.slice/big-a.slice", None, 700)
        | group_v2("big.slice/big-a.slice/fit.service", 4000, 700),
        500,
    ),
    "more used than allowed": (
        process_files("0::/a\n", V2) | group_v2("a", 1000, 1001),
        0,
    ),
    "systemd, MemoryHigh": (
        process_files("0::/a\n", V2)
        | group_v2("a", 4000, 500)
        | {"a/memory.high": f"{3000 * MIB}\n"},
        2500,
    ),
    "the machine has less than the limit": (
        process_files("0::/a\n", V2, 100) | group_v2("a", 4000, 500),
        100,
    ),
    "SLURM, version 1": (
        process_files("4:memory:/slurm/uid_1/job_7/step_0\n1:name=systemd:/a:b\n", MEMORY)
        | group_v1("memory", None, 50_000)
        | group_v1("memory/slurm", None, 20_000)
        | group_v1("memory/slurm/uid_1/job_7", 8000, 3000, cache_mib=500)
        | group_v1("memory/slurm/uid_1/job_7/step_0", None, 2000),
        5500,
    ),
    "versions 1 and 2, memory in 1": (
        process_files("9:memory:/a\n0::/b\n", MEMORY + UNIFIED)
        | group_v1("memory/a", 3000, 1000)
        | {"unified/b/cgroup.procs": ""},
        2000,
    ),
    "versions 1 and 2, memory in 2": (
        process_files("9:cpu,cpuacct:/\n0::/b\n", CPU + UNIFIED)
        | group_v2("unified/b", 3000, 1000),
        2000,
    ),
    "container, version 2": (process_files("0::/\n", V2) | group_v2(".", 2000, 500), 1500),
    "container, version 1, with the machine's path": (
        process_files("4:memory:/docker/af\n", MEMORY.replace(" / ", " /docker/af ", 1))
        | group_v1("memory", 2000, 500),
        1500,
    ),
    "group within such a container": (
        process_files("4:memory:/docker/af/job\n", MEMORY.replace(" / ", " /docker/af ", 1))
        | group_v1("memory", 2000, 500)
        | group_v1("memory/job", 1000, 100),
        900,
    ),
    "container, a path that is not to be seen": (
        process_files("0::/../../elsewhere\n", V2) | group_v2(".", 2000, 500),
        1500,
    ),
    "container, version 1, another's path": (
        process_files("4:memory:/kubepods/pod1\n", MEMORY.replace(" / ", " /docker/af ", 1))
        | group_v1("memory", 2000, 500),
        1500,
    ),
}


@pytest.mark.parametrize(("files", "expected_mib"), MEMORY_TREES.values(), ids=MEMORY_TREES)
def test_free_memory_of(tmp_path: Path, files: dict[str, str], expected_mib: int | None) -> None:
    expected = None if expected_mib is None else expected_mib * MIB
    assert find_free_bytes(write_tree(tmp_path, files)) == expected


CORE_TREES: dict[str, tuple[dict[str, str], int]] = {
    "no control groups": ({}, 16),
    "version 2": (process_files("0::/a\n", V2) | {"a/cpu.max": "150000 100000\n"}, 2),
    "version 2, no quota": (process_files("0::/a\n", V2) | {"a/cpu.max": "max 100000\n"}, 16),
    "version 2, quota of an outer group": (
        process_files(f"0::/{SLURM}/step_0\n", V2)
        | {f"{SLURM}/cpu.max": "400000 100000\n", f"{SLURM}/step_0/cpu.max": "max 100000\n"},
        4,
    ),
    "version 2, the least of two": (
        process_files("0::/a/b\n", V2)
        | {"a/cpu.max": "800000 100000\n", "a/b/cpu.max": "20000 100000\n"},
        1,
    ),
    "version 1": (
        process_files("3:cpuset:/\n2:cpu,cpuacct:/slurm/job_7\n", CPU)
        | {
            "cpu,cpuacct/slurm/cpu.cfs_quota_us": "400000\n",
            "cpu,cpuacct/slurm/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "container, version 2": (process_files("0::/\n", V2) | {"cpu.max": "300000 100000\n"}, 3),
    "more than the cores it may run on": (
        process_files("0::/a\n", V2) | {"a/cpu.max": "6400000 100000\n"},
        16,
    ),
}


@pytest.mark.parametrize(("files", "expected"), CORE_TREES.values(), ids=CORE_TREES)
def test_cores_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert find_core_limit(write_tree(tmp_path, files)) == expected


def test_where_the_system_tells_no_cores_there_is_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert find_core_limit(tmp_path) is None


@pytest.mark.parametrize(("limit", "expected"), [(3, 3), (64, 8), (None, 8)])
def test_training_takes_no_more_cores_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: int
) -> None:
    monkeypatch.setattr("features.machine.find_core_limit", lambda: limit)
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    assert count_workers("cpu") == expected
    assert count_workers("cuda") == 1


def test_files_that_may_not_be_read_are_passed_over(tmp_path: Path) -> None:
    write_tree(tmp_path, process_files("0::/a\n", V2, 7) | group_v2("a", 4, 0))
    (tmp_path / "sys/fs/cgroup/a/memory.max").unlink()
    (tmp_path / "sys/fs/cgroup/a/memory.max").mkdir()
    assert find_free_bytes(tmp_path) == 7 * MIB


def test_a_mount_point_of_any_bytes_hides_no_limit(tmp_path: Path) -> None:
    write_tree(tmp_path, process_files("0::/a\n", V2, 7) | group_v2("a", 4, 0))
    with (tmp_path / "proc/self/mountinfo").open("ab") as file:
        file.write(b"50 23 0:9 / /mnt/caf\xe9 rw - ext4 /dev/sda rw\n")
    assert find_free_bytes(tmp_path) == 4 * MIB
