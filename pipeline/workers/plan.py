"""How many workers pay, and what each of them takes of the machine."""

from __future__ import annotations

from dataclasses import replace

from features.machine import bound_cores, find_free_bytes
from pipeline.workers.budgets import LEAST_WORKER_BYTES
from pipeline.workers.messages import Machine, Work

_WORKER_CLIPS = 8
"""A process needs some seconds to start: fewer clips are not worth one."""


def count_workers(n_clips: int, machine: Machine) -> int:
    """Processes that pay: on a CPU one a core, as far as clips and free memory go, else one.

    Threads of one process wait for each other's Python: on two cores two processes take a fifth
    less time. Where the system does not tell how much memory is free, it is one.
    """
    if machine.n_gpus:
        return 1
    n_fit = (find_free_bytes() or 0) // LEAST_WORKER_BYTES
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
