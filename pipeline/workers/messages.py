"""What extract and its workers say to each other. The parent loads no network.

Rows of clips never pass: workers write them to shards, or files of streams, themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from features.contracts import Clip, ClipFeatures
from features.networks.encoders import EncoderSpec
from features.store.index import WORKER_STEP, Failure, ShardEntry
from features.store.shard_format import Lack, ShardHeader, StreamHeader
from features.store.shard_reader import ShardIndex
from features.store.writer import SHARD_FRAMES
from pipeline.config import ExtractConfig
from pipeline.inputs import InputFile

_GPU = re.compile(r"CUDA|CUDNN|CUBLAS|NVRTC|device-side assert", re.IGNORECASE)
"""torch says such things in several kinds of RuntimeError, its libraries in plain ones."""
_MEMORY = re.compile(r"can't allocate memory|bad_alloc|not enough memory", re.IGNORECASE)


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
    face_weights: Path = Path()
    """Of the first pass."""
    inputs: Path
    """inputs.jsonl of the store."""
    device: str
    """``cpu``, ``cuda`` or ``cuda:N``."""
    encoders: tuple[EncoderSpec, ...] = ()
    """Each makes a stream beside the shards; ``context`` and ``face`` those of CNNs that are then
    not loaded."""
    n_threads: int = 1
    """Of the networks."""
    n_decoders: int = 1
    """Clips that are decoded at once."""

    @property
    def network_bytes(self) -> int:
        """Of the encoders' files."""
        return sum(spec.path.stat().st_size for spec in self.encoders)


@dataclass(frozen=True, kw_only=True)
class WantedClip:
    """A clip of a finished shard that is to get streams."""

    streams: tuple[str, ...]
    path: Path | None
    """Of its file; None: it has no row in these streams."""
    failure: Failure | None = None
    """Why it cannot be had: it lacks the streams."""

    @property
    def is_read(self) -> bool:
        """Whether its file is to be decoded."""
        return self.path is not None and self.failure is None


@dataclass(frozen=True, kw_only=True)
class ShardUnit(Clip):
    """In a second pass: a finished shard that is to get streams; for the pool it is a clip.

    Its id is the shard's name: it is given to a worker, and tried again, as a whole.
    """

    streams: tuple[str, ...]
    wanted: Mapping[str, WantedClip]
    """By id. The rows of other clips are those that a file of the stream has already; where there
    is none they do not count, as a later shard holds the clip again."""
    one_by_one: bool = False
    """No clip is decoded ahead of another: the one that is read is the one that ends a worker."""

    def leave_out(self, failure: Failure) -> ShardUnit | None:
        """The same without the clip that failed; None: it is no clip that could be left out."""
        clip = self.wanted.get(failure.clip_id)
        if clip is None or not clip.is_read:
            return None
        wanted = {**self.wanted, failure.clip_id: replace(clip, failure=failure)}
        return replace(self, wanted=wanted)

    def end_clip(
        self,
        index: ShardIndex,
        row: int,
        *,
        was_read: bool = False,
        failure: Failure | None = None,
        notes: Mapping[str, float] = MappingProxyType({}),
    ) -> ClipAdded:
        """The end of a clip. index: of the shard, of which the clip has this row."""
        wanted = self.wanted.get(index.columns["id"][row])
        return ClipAdded(
            shard_name=self.clip_id,
            clip_id=index.columns["id"][row],
            sha256=index.columns["sha256"][row],
            n_frames=int(index.frame_offset[row + 1] - index.frame_offset[row]),
            n_faces=int(index.face_offset[row + 1] - index.face_offset[row]),
            streams=self.streams,
            wanted=wanted,
            was_read=was_read,
            failure=failure or (wanted.failure if wanted else None),
            notes=dict(notes),
        )

    def end(self, index: ShardIndex) -> ClipEnd:
        """The end of the shard."""
        state = index.state
        file = InputFile(n_bytes=state.n_bytes, mtime_ns=state.mtime_ns, sha256="")
        return ClipEnd(clip=self, file=file)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where one worker writes its shards; sent after ``Work``."""

    store: Path
    header: ShardHeader
    stream_headers: tuple[StreamHeader, ...] = ()
    """Of streams beside the shards."""
    shard_frames: int = SHARD_FRAMES
    """A shard is full when it has as many."""
    first_frames: int = SHARD_FRAMES
    """The first shard is full when it has as many; each further one may have twice as many."""


@dataclass(frozen=True, kw_only=True)
class StreamOutput:
    """The same in a second pass: files of streams, beside shards that are finished."""

    store: Path
    headers: tuple[StreamHeader, ...]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The networks of a worker are ready."""


@dataclass(frozen=True, kw_only=True)
class NextClip:
    """A worker asks for a clip: ``Given``, or None: end those that you have, then ask again."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A clip for a worker."""

    clip: Clip
    is_kept: bool
    """Its rows go into a shard; else it only shows whether the worker works."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A worker is to finish its shard with the clips that have ended, and to end, at once."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """From now on a worker reads this clip: what holds it up is this one, or one before."""

    clip_id: str
    within: Clip | None = None
    """In a second pass the worker was given a shard, whose name is ``clip_id``: the clip of it."""


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Another frame has its features; sent once a second at most."""


@dataclass(frozen=True, kw_only=True)
class ClipEnd:
    """Comes after the last frame of a clip.

    From a worker it means: the clip is in the shard at hand, whose ``ShardFinished`` is to come.
    """

    clip: Clip
    file: InputFile | None = None
    """The clip's file as it was read; None where the clip failed, and only there."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """What was unusual about its film (``pipeline.decode.notes``)."""
    failure: Failure | None = None
    """Why the clip cannot be used: its frames are to be dropped."""
    n_frames: int = 0
    n_faces: int = 0

    def __post_init__(self) -> None:
        if (self.file is None) != (self.failure is not None):
            raise ValueError(f"clip {self.clip.clip_id}: expected its file or a failure")


@dataclass(frozen=True, kw_only=True)
class ShardBegun:
    """A worker has a shard at hand."""

    name: str
    """That it will have in store.json."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A worker waits for the disk until it says ``Progressed`` or ``ShardFinished``."""


@dataclass(frozen=True, kw_only=True)
class ShardFinished:
    """A shard of a worker has its final name; it holds all clips that ended since the last."""

    entry: ShardEntry | None = None
    """None in a second pass."""
    stream_files: tuple[str, ...] = ()
    """In a second pass: files of streams that have their names, those that have changed."""


@dataclass(frozen=True, kw_only=True)
class StreamPart:
    """In a second pass: rows of the clip at hand, those that follow the ones before."""

    shard_name: str
    values: Mapping[str, NDArray[np.float16]]
    """Stream -> [n, D]."""


@dataclass(frozen=True, kw_only=True)
class ClipAdded:
    """In a second pass: the end of a clip of the shard at hand, whose rows came before."""

    shard_name: str
    clip_id: str
    sha256: str
    n_frames: int
    n_faces: int
    streams: tuple[str, ...]
    """That the shard is to get."""
    wanted: WantedClip | None
    """What the clip is to get of them; None: nothing."""
    was_read: bool = False
    """Its file was decoded, or this was tried."""
    failure: Failure | None = None
    """Why it has not got them."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """What was unusual about its sound (``pipeline.decode.notes``)."""

    @property
    def lacks(self) -> Lack:
        """Whether it lacks those that it was to get."""
        if self.failure is None:
            return Lack.NO
        return Lack.RETRIED if self.failure.step in ("read", WORKER_STEP) else Lack.FINAL


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds by step, summed over threads, since the worker last told."""

    step_s: Mapping[str, float]


Extracted = ClipFeatures | StreamPart | ClipAdded | ClipEnd | Timing
"""What an extractor yields: the parts of each clip, then its end; at last the timing."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a worker ended before its time."""

    kind: str
    """Short: deaths of one kind may have one cause."""
    reason: str
    """What the worker did, in words that follow "worker": ``crashed ...``."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A worker has ended, and with it its shard at hand: the clips in it will come again."""

    shard_name: str | None
    """Of that shard; None: it had none."""


Item = Loaded | ClipEnd | ClipAdded | ShardFinished | Timing | Lost
"""What the record of a run is told."""


def is_fault(error: Exception) -> bool:
    """Whether what comes after an error in the same process would fail, too.

    A CUDA context is lost for good with the first illegal access, whichever clip's turn it is.
    Where memory is short, the clip that asks for it last need not be the one that took it.
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and bool(_GPU.search(text) or _MEMORY.search(text))


def describe_fault(error: Exception) -> Death:
    """How a worker ended that raised this."""
    kind, text = type(error).__name__, str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return Death(kind="memory", reason="had no memory left" + (f": {text}" if text else ""))
    if isinstance(error, RuntimeError) and _GPU.search(text):
        return Death(kind="GPU", reason=f"met a GPU error: {text}")
    return Death(kind=kind, reason=f"raised {kind}: {text}")
