"""Holds what one worker process needs to turn clips into features, and runs clips through it.

The work is that of ``pipeline.workers.stages``; here its results become the parts of each clip.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch

from features.contracts import SPLITS, Clip
from features.networks.runtime import choose_device, choose_precision
from pipeline.decode.sampling import Frames, iter_chosen_frames
from pipeline.embed.encoder import FrameEncoder
from pipeline.inputs import InputFile, Inputs, ReadTwice
from pipeline.workers.messages import Begun, Extracted, Machine, Progressed, Timing, Work
from pipeline.workers.rows import iter_parts
from pipeline.workers.stages import StageLimits, Stages

_CPU_DECODED_BYTES, _CUDA_DECODED_BYTES = 64 << 20, 1 << 30
_CHUNK_BYTES = 48 << 20
_PROGRESS_S = 1.0

T = TypeVar("T")


class Extractor:
    """The networks of a worker, ready for any number of clips."""

    @staticmethod
    def find_machine(device: str) -> Machine:
        """What there is to work with. Raises ConfigError where there is no such device."""
        chosen = choose_device(device)
        n_gpus = 0
        if chosen.type == "cuda":
            n_gpus = torch.cuda.device_count() if chosen.index is None else 1
        return Machine(
            device=str(chosen),
            n_gpus=n_gpus,
            n_cores=torch.get_num_threads(),
            precision=choose_precision("auto", chosen),
        )

    def __init__(self, work: Work) -> None:
        """Loads them, which takes seconds.

        Raises:
            WeightsError: a network's weights are missing or not the expected ones.
            ConfigError: an encoder that the device cannot run.
        """
        self._work = work
        self._device = torch.device(work.device)
        self._inputs = Inputs(work.inputs)
        self._read_twice = ReadTwice()
        set_up_torch(self._device)
        self._encoder = FrameEncoder(
            work.config, work.face_weights, self._device, work.n_threads, work.encoders
        )

    def iter_items(
        self, clips: Iterable[Clip], tell: Callable[[Begun | Progressed], None] = lambda _: None
    ) -> Generator[Extracted]:
        """Yield each clip's parts, then its end, in order; at last the timing.

        Args:
            clips: Which; one is taken when its turn is near.
            tell: Told as it happens which clip is read, and that there is progress.

        Raises:
            Exception: a fault of this process or its GPU (``is_fault``).
        """
        config = self._work.config
        self._read_twice = ReadTwice()
        stages = Stages(
            self._encoder,
            self.iter_frames,
            self._prepare,
            limit_stages(self._work),
            begin=lambda clip: tell(Begun(clip_id=clip.clip_id)),
        )
        phases = {split: config.n_phases(split) for split in SPLITS}
        with contextlib.closing(stages.iter_features(clips)) as features:
            yield from iter_parts(tell_progress(features, tell), phases)
        yield Timing(step_s=stages.step_s)

    def iter_frames(self, clip: Clip) -> Frames:
        """Decode a clip."""
        config = self._work.config
        return iter_chosen_frames(
            clip,
            config.n_phases(clip.split),
            self._device,
            check_state=partial(self._read_twice.check_state, clip.clip_id),
            strict=config.strict,
        )

    def _prepare(self, clip: Clip) -> InputFile:
        found, state = self._inputs.look_up(clip.path)
        self._read_twice.check_state(clip.clip_id, state)
        return found


def set_up_torch(device: torch.device) -> None:
    """Settings of a worker's process."""
    if device.type == "cuda":  # TF32 is not the float32 that the fingerprint speaks of
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(1)  # each thread of the stages keeps a core busy


def limit_stages(work: Work) -> StageLimits:
    """How much a worker has under way."""
    on_gpu = torch.device(work.device).type == "cuda"
    return StageLimits(
        n_threads=work.n_threads,
        n_decoders=work.n_decoders,
        decoded_bytes=_CUDA_DECODED_BYTES if on_gpu else _CPU_DECODED_BYTES,
        chunk_bytes=_CHUNK_BYTES,
        batch_frames=64 if on_gpu else 16,
    )


def tell_progress(features: Iterable[T], tell: Callable[[Progressed], None]) -> Iterator[T]:
    """The same items; meanwhile it is told, once a second at most, that there are some."""
    last_s = time.monotonic()
    for item in features:
        if time.monotonic() - last_s > _PROGRESS_S:
            tell(Progressed())
            last_s = time.monotonic()
        yield item
