"""Runs clips through stage one up to the store's door: in this process, or in several."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from threading import Lock
from typing import Any, cast

import torch

from features.contracts import SPLITS, Clip, ClipFeatures
from features.engine import choose_device
from features.errors import WorkerError
from features.fingerprint import hash_file
from features.memory import find_free_bytes, keep_freed_memory
from pipeline.config import ExtractConfig
from pipeline.decode import ChosenFrame, iter_chosen_frames
from pipeline.flow import ClipEnd, Flow, FlowSize
from pipeline.inputs import InputFile, Inputs
from pipeline.parts import iter_parts
from pipeline.see import load_seer

_CPU_DECODED_BYTES, _CUDA_DECODED_BYTES = 64 << 20, 1 << 30
_CHUNK_BYTES = 48 << 20
_LOGGERS = ("features", "pipeline")
_WORKER_CLIPS = 8
"""A process needs some seconds to start: fewer clips are not worth one."""
_WORKER_BYTES = 2 << 30
"""What a process takes at most."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Clips, and how to extract them."""

    clips: Sequence[Clip]
    """All of them, also where several processes share them."""
    config: ExtractConfig
    """Its precision is chosen."""
    face_weights: Path
    inputs: Path
    """inputs.json of the store."""
    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    n_threads: int = 0
    """Of the networks; 0: as many as the device wants."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Comes first: the networks are ready."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Comes last: seconds by step, summed over threads."""

    step_s: Mapping[str, float]


Item = Loaded | ClipFeatures | ClipEnd | Timing


def iter_lanes(work: Work, n_workers: int | None) -> Generator[tuple[int, Item]]:
    """Run the work in this process, or in several; yields a process's number with items.

    Of one number come word that it is ready, the parts of a clip, then its end, clip after clip, at
    last the timing. Closing the generator stops everything.

    Args:
        work: All clips, in order.
        n_workers: Processes; None: as many as pay, see ``count_workers``.

    Raises:
        ConfigError: no such device. WorkerError: a process died.
        WeightsError: a network's weights are missing or not the expected ones.
    """
    device = choose_device(work.device)
    if n_workers is None:
        n_workers = count_workers(len(work.clips), device)
    works = prepare_work(work, device, min(n_workers, len(work.clips)))
    if len(works) > 1:
        yield from _iter_processes(works)
        return
    with contextlib.closing(iter_work(works[0], work.clips)) as items:
        for item in items:
            yield 0, item


def count_workers(n_clips: int, device: torch.device) -> int:
    """Processes that pay: on a CPU one a core, as far as clips and free memory go, else one.

    Threads of one process wait for each other's Python: on two cores two processes take a fifth
    less time.
    """
    if device.type == "cuda":
        return 1
    free = find_free_bytes()
    n_fit = n_clips if free is None else free // _WORKER_BYTES
    return max(1, min(torch.get_num_threads(), n_clips // _WORKER_CLIPS, n_fit))


def prepare_work(work: Work, device: torch.device, n_workers: int) -> list[Work]:
    """The work of each process; with ``cuda`` (no number) each takes the next card."""
    n_cards = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 0
    if device.type == "cuda":
        n_threads = 2  # while one waits for the card, the other does what is left to the CPU
    else:  # threads that share Python wait for it at times, so there is one more of them
        n_cores = torch.get_num_threads()
        n_threads = -(-n_cores // n_workers) + (n_workers < n_cores)
    return [
        replace(work, device=f"cuda:{i % n_cards}" if n_cards else str(device), n_threads=n_threads)
        for i in range(n_workers)
    ]


def iter_work(work: Work, clips: Iterable[Clip]) -> Generator[Item]:
    """Yield word that it is ready; each clip's parts, then its end, in order; at last the timing.

    Args:
        work: How; prepared.
        clips: Which of its clips; one is taken when its turn is near.

    Raises:
        WeightsError: a network's weights are missing or not the expected ones.
    """
    keep_freed_memory()
    device, config = torch.device(work.device), work.config
    inputs = Inputs(work.inputs)
    if device.type == "cuda":  # TF32 is not the float32 that the fingerprint speaks of
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    with _torch_threads(1):
        seer = load_seer(
            config, work.face_weights, hash_file(work.face_weights), device, work.n_threads
        )

        yield Loaded()

        def decode(clip: Clip) -> Generator[ChosenFrame]:
            return iter_chosen_frames(clip, config.n_phases(clip.split), device)

        def prepare(clip: Clip) -> InputFile | None:
            # What is no file decodes to a better reason than hashing it gives.
            return inputs.look_up(clip.path) if clip.path.is_file() else None

        flow = Flow(seer, decode, prepare, choose_size(device, work.n_threads))
        phases = {split: config.n_phases(split) for split in SPLITS}
        with contextlib.closing(flow.iter_features(clips)) as features:
            yield from iter_parts(features, phases)
        yield Timing(step_s=flow.step_s)


def choose_size(device: torch.device, n_threads: int) -> FlowSize:
    """How much to have under way on a device."""
    on_card = device.type == "cuda"
    return FlowSize(
        n_threads=n_threads,
        n_decoders=4 if on_card else max(1, n_threads // 2),
        decoded_bytes=_CUDA_DECODED_BYTES if on_card else _CPU_DECODED_BYTES,
        chunk_bytes=_CHUNK_BYTES,
        batch_frames=64 if on_card else 16,
    )


def _iter_processes(works: Sequence[Work]) -> Generator[tuple[int, Item]]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    running: dict[Connection, int] = {}  # the end of its pipe -> its number
    processes = []
    taken = context.Value("q", 0)  # clips, by all processes
    try:
        levels = {name: logging.getLogger(name).getEffectiveLevel() for name in _LOGGERS}
        for number, work in enumerate(works):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_send_work, args=(work, taken, sender, levels), daemon=True
            )
            process.start()
            sender.close()  # so that the end of the process is the end of the pipe
            processes.append(process)
            running[receiver] = number
        while running:
            for ready in wait(list(running)):
                yield from _receive(cast(Connection, ready), running)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _receive(receiver: Connection, running: dict[Connection, int]) -> Iterator[tuple[int, Item]]:
    number = running[receiver]
    try:
        item = receiver.recv()
    except (EOFError, OSError):  # OSError: it died in the middle of an item
        raise WorkerError(
            f"worker {number} died (out of memory, or a decoder crashed). What was done is kept; "
            "run the same again, with fewer --workers if memory was short."
        ) from None
    if isinstance(item, BaseException):
        raise item
    if isinstance(item, logging.LogRecord):
        logging.getLogger(item.name).handle(item)
        return
    yield number, item
    if isinstance(item, Timing):
        del running[receiver]


class _Outbox:
    """The one way from a process to its parent, for items and for what its threads log."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender
        self._lock = Lock()

    def put_nowait(self, item: object) -> None:
        """Send an item; the name is what a ``QueueHandler`` calls."""
        with self._lock:
            self._sender.send(item)


def _send_work(
    work: Work, taken: Synchronized[int], sender: Connection, levels: Mapping[str, int]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    outbox = _Outbox(sender)
    logging.getLogger().addHandler(QueueHandler(cast(Any, outbox)))  # it only puts
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    torch.set_num_threads(work.n_threads)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        try:
            for item in iter_work(work, _take_clips(work.clips, taken)):
                outbox.put_nowait(item)
        except Exception as error:
            outbox.put_nowait(error)


def _take_clips(clips: Sequence[Clip], taken: Synchronized[int]) -> Iterator[Clip]:
    """Those clips whose turn comes while this process has time for them."""
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value = number + 1
        if number >= len(clips):
            return
        yield clips[number]


@contextlib.contextmanager
def _torch_threads(n_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
