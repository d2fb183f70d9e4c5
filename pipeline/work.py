"""Runs clips through stage one up to the store's door, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from features.contracts import SPLITS, Clip, ClipFeatures
from features.fingerprint import hash_file
from features.memory import keep_freed_memory
from pipeline.config import ExtractConfig
from pipeline.decode import Frames, iter_chosen_frames
from pipeline.flow import ClipEnd, Flow, FlowSize
from pipeline.inputs import InputFile, Inputs, ReadTwice
from pipeline.parts import iter_parts
from pipeline.see import load_seer

_CPU_DECODED_BYTES, _CUDA_DECODED_BYTES = 64 << 20, 1 << 30
_CHUNK_BYTES = 48 << 20


@dataclass(frozen=True, kw_only=True)
class Work:
    """How one process extracts clips."""

    config: ExtractConfig
    """Its precision is chosen."""
    face_weights: Path
    inputs: Path
    """inputs.json of the store."""
    device: str
    """``cpu``, ``cuda`` or ``cuda:N``; for ``pipeline.lanes`` also ``auto``."""
    n_threads: int = 1
    """Of the networks."""
    n_decoders: int = 1
    """Clips that are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Comes first: the networks are ready."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Comes last: seconds by step, summed over threads."""

    step_s: Mapping[str, float]


Item = Loaded | ClipFeatures | ClipEnd | Timing


def iter_work(work: Work, clips: Iterable[Clip]) -> Generator[Item]:
    """Yield word that it is ready; each clip's parts, then its end, in order; at last the timing.

    Args:
        work: How.
        clips: Which; one is taken when its turn is near.

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

        read_twice = ReadTwice()

        def decode(clip: Clip) -> Frames:
            n_phases = config.n_phases(clip.split)
            check_state = partial(read_twice.check_state, clip.clip_id)
            return iter_chosen_frames(
                clip, n_phases, device, check_state=check_state, strict=config.strict
            )

        def prepare(clip: Clip) -> InputFile:
            found, state = inputs.look_up(clip.path)
            read_twice.check_state(clip.clip_id, state)
            return found

        flow = Flow(seer, decode, prepare, choose_size(work))
        phases = {split: config.n_phases(split) for split in SPLITS}
        with contextlib.closing(flow.iter_features(clips)) as features:
            yield from iter_parts(features, phases)
        yield Timing(step_s=flow.step_s)


def choose_size(work: Work) -> FlowSize:
    """How much to have under way on a device."""
    on_card = torch.device(work.device).type == "cuda"
    return FlowSize(
        n_threads=work.n_threads,
        n_decoders=work.n_decoders,
        decoded_bytes=_CUDA_DECODED_BYTES if on_card else _CPU_DECODED_BYTES,
        chunk_bytes=_CHUNK_BYTES,
        batch_frames=64 if on_card else 16,
    )


@contextlib.contextmanager
def _torch_threads(n_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
