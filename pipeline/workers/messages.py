"""What extract and its workers say to each other. Loads no network, as the parent has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from features.contracts import Clip, ClipFeatures
from features.store.index import Failure
from pipeline.config import ExtractConfig
from pipeline.inputs import InputFile


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first thing that a worker is sent."""

    device: str
    """As the user named it."""
    log_levels: Mapping[str, int]
    """Package -> level."""
    extractor: str
    """The class that does the work, as ``pkgutil.resolve_name`` finds it."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A worker's answer: what torch sees of the machine."""

    device: str
    """``cpu``, ``cuda`` or ``cuda:N``."""
    n_gpus: int
    """GPUs that workers share: 0 on a CPU, 1 where the device has a number."""
    n_cores: int
    """That torch means to use; OMP_NUM_THREADS limits them."""
    precision: str
    """What ``auto`` means on the device."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How one worker extracts clips."""

    config: ExtractConfig
    """Its precision is chosen."""
    face_weights: Path
    inputs: Path
    """inputs.json of the store."""
    device: str
    """``cpu``, ``cuda`` or ``cuda:N``."""
    n_threads: int = 1
    """Of the networks."""
    n_decoders: int = 1
    """Clips that are decoded at once."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The networks of a worker are ready."""


@dataclass(frozen=True, kw_only=True)
class NextClip:
    """A worker asks for a clip. The answer None means: end those that you have, then ask again."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """From now on a worker reads this clip: what holds it up is this one, or one before."""

    clip_id: str


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Another frame has its features; sent once a second at most."""


@dataclass(frozen=True, kw_only=True)
class ClipEnd:
    """Comes after the last frame of a clip."""

    clip: Clip
    file: InputFile | None = None
    """The clip's file as it was read; None where the clip failed, and only there."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """What was unusual about its film (``pipeline.decode.notes``)."""
    failure: Failure | None = None
    """Why the clip cannot be used: its frames are to be dropped."""

    def __post_init__(self) -> None:
        if (self.file is None) != (self.failure is not None):
            raise ValueError(f"clip {self.clip.clip_id}: expected its file or a failure")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds by step, summed over threads, since the worker last told."""

    step_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a worker ended before its time."""

    kind: str
    """Short: deaths of one kind may have one cause."""
    reason: str
    """What the worker did, in words that follow "worker": ``crashed ...``."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A worker has ended: the rows of the clip at hand are to be dropped; it is tried again."""


Item = Loaded | ClipFeatures | ClipEnd | Timing | Lost
"""What reaches the store's side."""
