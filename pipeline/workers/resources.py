"""What a pool has to do, how many workers pay, and what each of them, and a clip, may take."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from features.contracts import Clip
from features.errors import ConfigError
from features.machine import bound_cores, find_free_bytes
from pipeline.workers.messages import Machine, Output, StreamOutput, Work

_MEGABYTE = 1_000_000
_READ_BYTES_PER_S = 1_000_000
"""A file is read and decoded at least this fast where no frame of it is asked for."""
_LEAST_START_S = 120.0
"""For loading torch and the networks from a slow disk, beside other work."""
_FREE_SHARE = 0.9
_WORKER_CLIPS = 8
"""A process needs some seconds to start: fewer clips are not worth one."""
LEAST_WORKER_BYTES = 2 << 30
"""What a worker takes at most on frames of 1920x1080, with few threads."""


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Limits that end a worker instead of the whole run. They change no feature."""

    clip_timeout_s: float = 600.0
    """Without another frame for so long, and a second more for each megabyte of its file, a clip
    stands still; it may take so long altogether for each megabyte begun, and twice more."""
    worker_gigabytes: float | None = None
    """Memory of each worker; None: its share of nine tenths of what is free, 2 GiB at least."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if not 0 < self.clip_timeout_s < math.inf:
            raise ConfigError(f"--clip-timeout {self.clip_timeout_s:g}: expected seconds above 0")
        gigabytes = self.worker_gigabytes
        if gigabytes is not None and not 0 < gigabytes < math.inf:
            raise ConfigError(f"--worker-memory {gigabytes:g}: expected gigabytes above 0")

    @property
    def idle_limits(self) -> ClipLimits:
        """Those of a worker that starts, that writes, or that holds no clip and asks for none."""
        return ClipLimits(still_s=max(self.clip_timeout_s, _LEAST_START_S), total_s=math.inf)

    def find_clip_limits(self, path: Path) -> ClipLimits:
        """Those of a clip's file. What is no file has no length that could be believed."""
        try:
            n_bytes = path.stat().st_size if path.is_file() else 0
        except OSError:
            n_bytes = 0
        return ClipLimits(
            still_s=self.clip_timeout_s + n_bytes / _READ_BYTES_PER_S,
            total_s=self.clip_timeout_s * (2 + math.ceil(n_bytes / _MEGABYTE)),
        )

    def find_worker_bytes(self, n_workers: int) -> int | None:
        """Memory that each of so many workers may take; None where the system does not tell."""
        if self.worker_gigabytes is not None:
            return int(self.worker_gigabytes * 1e9)
        free = find_free_bytes()
        share = None if free is None else int(_FREE_SHARE * free / n_workers)
        return None if share is None else max(share, LEAST_WORKER_BYTES)


@dataclass(frozen=True, kw_only=True)
class ClipLimits:
    """How long one clip may take, in seconds."""

    still_s: float
    """Without another frame."""
    total_s: float


DEFAULT_BUDGETS = Budgets()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a pool has to do."""

    work: Work
    """How; device, threads and decoders are chosen by the pool."""
    output: Output | StreamOutput
    """Where to."""
    clips: Sequence[Clip]
    """About in order. In a second pass finished shards, each a clip with its name and file."""
    alone_ids: Collection[str] = ()
    """Clips that ended their worker in an earlier run."""
    n_workers: int | None
    """None: as many as pay, see ``count_workers``."""
    budgets: Budgets
    """Of each clip and worker."""


def count_workers(n_clips: int, machine: Machine, network_bytes: int = 0) -> int:
    """Processes that pay: on a CPU one a core, as far as clips and free memory go, else one.

    network_bytes: Of the files of encoders, each of which every process holds.

    Threads of one process wait for each other's Python: on two cores two processes take a fifth
    less time. Where the system does not tell how much memory is free, it is one.
    """
    if machine.n_gpus:
        return 1
    # Twice: a network is read, then compiled.
    n_fit = (find_free_bytes() or 0) // (LEAST_WORKER_BYTES + 2 * network_bytes)
    return max(1, min(bound_cores(machine.n_cores), n_clips // _WORKER_CLIPS, n_fit))


def plan_works(work: Work, n_clips: int, machine: Machine, n_workers: int) -> list[Work]:
    """What each worker does; with ``cuda`` (no number) each takes the next GPU."""
    on_gpu = machine.n_gpus > 0
    n_cores = bound_cores(machine.n_cores)
    if on_gpu:
        n_threads = 2  # while one waits for the GPU, the other does what is left to the CPU
    elif 2 * n_workers > n_cores:
        n_threads = 1
    else:  # threads that share Python wait for it at times, so there is one more of them
        n_threads = n_cores // n_workers + 1
    # Clips that are decoded at once are taken: no process may take more than its share.
    n_decoders = min(4 if on_gpu else n_threads // 2, n_clips // 2 // n_workers)
    return [
        replace(
            work,
            device=f"cuda:{i % machine.n_gpus}" if machine.device == "cuda" else machine.device,
            n_threads=n_threads,
            n_decoders=max(1, n_decoders),
        )
        for i in range(n_workers)
    ]
