"""What extract and its workers say to each other, and how. The parent loads no network.

Rows of clips never pass: workers write them to shards themselves.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from features.contracts import Clip, ClipFeatures
from features.networks.encoders import EncoderSpec
from features.store.index import Failure, ShardEntry
from features.store.shard_format import ShardHeader, StreamHeader
from features.store.writer import SHARD_FRAMES
from pipeline.config import ExtractConfig
from pipeline.inputs import InputFile

_LENGTH = struct.Struct("!Q")
_READ_BYTES = 1 << 20
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
    face_weights: Path
    inputs: Path
    """inputs.jsonl of the store."""
    device: str
    """``cpu``, ``cuda`` or ``cuda:N``."""
    encoders: tuple[EncoderSpec, ...] = ()
    """Each makes a stream beside the shards."""
    n_threads: int = 1
    """Of the networks."""
    n_decoders: int = 1
    """Clips that are decoded at once."""


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

    entry: ShardEntry


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds by step, summed over threads, since the worker last told."""

    step_s: Mapping[str, float]


Extracted = ClipFeatures | ClipEnd | Timing
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


Item = Loaded | ClipEnd | ShardFinished | Timing | Lost
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


class Channel:
    """One end of a socket: messages arrive whole. Several threads may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        """end: connected, blocking."""
        self._socket = end
        self._received = bytearray()
        self._lock = Lock()

    def fileno(self) -> int:
        """For ``selectors``."""
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Send a message; waits until the other side has room. Raises OSError if it is gone."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(data)))
            self._socket.sendall(data)

    put_nowait = send
    """What ``logging.handlers.QueueHandler`` calls."""

    def receive(self) -> Any:
        """The next message; waits for it. Raises EOFError or OSError if the other side is gone."""
        while not (messages := self._take_messages(1)):
            self._read(0)
        return messages[0]

    def receive_arrived(self) -> list[Any]:
        """Read once, without waiting; the messages that are whole, often none.

        A process that stops in the middle of a message holds up nobody.

        Raises:
            EOFError, OSError: the other side is gone, and all that it sent was received.
        """
        try:
            self._read(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        return self._take_messages(None)

    def receive_rest(self) -> list[Any]:
        """The whole messages that the other side sent before it ended; never waits."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._read(socket.MSG_DONTWAIT)
        return self._take_messages(None)

    def close(self) -> None:
        """The other side is told."""
        self._socket.close()

    def _read(self, flags: int) -> None:
        data = self._socket.recv(_READ_BYTES, flags)
        if not data:
            raise EOFError
        self._received += data

    def _take_messages(self, limit: int | None) -> list[Any]:
        """Whole messages of those that were read, at most so many."""
        messages: list[Any] = []
        while limit is None or len(messages) < limit:
            if len(self._received) < _LENGTH.size:
                break
            end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                break
            with memoryview(self._received) as view, view[_LENGTH.size : end] as data:
                messages.append(pickle.loads(data))
            del self._received[:end]
        return messages
