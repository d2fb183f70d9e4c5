"""Runs clips through decoding, detection and the CNNs at once; order never depends on timing.

::

    decoders --chunks of a clip--> detect --batches of many clips--> embed --> in the clips' order

Work is done in threads: those of the decoders (``pipeline.workers.prefetch``), and those of the
networks, which call ``FrameEncoder``. The caller's thread makes the chunks and the batches. A chunk
is of one clip, so what is found in it is a function of that clip alone. The CNNs get their batches
across clips; what a row gives does not depend on its batch.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

from features.contracts import Clip
from features.errors import ClipError
from features.store.index import Failure
from pipeline.decode.opening import UnreadableError
from pipeline.decode.sampling import DecodedFrame, FrameRecord, Frames
from pipeline.inputs import InputFile
from pipeline.workers.messages import ClipEnd, is_fault
from pipeline.workers.prefetch import Prefetcher

_log = logging.getLogger(__name__)

_BATCH_FACES = 256
"""Faces with which a batch ends before it has all its frames: their maps are 50 kB each."""
_BATCH_BYTES = 32 << 20
"""Crops for other encoders with which it ends: those of 518 x 518 pixels are 0.8 MB each."""

T = TypeVar("T")
U = TypeVar("U")

_Chunk = list[DecodedFrame]
"""Frames of one clip and one size, at least one."""
_Detected = Any
"""What ``detect`` gives of a frame, a Failure, or a ClipEnd."""


@dataclass(frozen=True, kw_only=True)
class StageLimits:
    """How much is under way at once: what bounds the memory, whatever the clips are."""

    n_threads: int
    """Threads that run the networks."""
    n_decoders: int
    """Clips that are decoded at once."""
    decoded_bytes: int
    """Decoded frames that wait."""
    chunk_bytes: int
    """Pictures of a chunk, at most; a single frame may be larger."""
    batch_frames: int
    """Frames whose crops go to the CNNs together."""


class HasRecord(Protocol):
    """Features of a frame."""

    @property
    def record(self) -> FrameRecord:
        """Which frame of which clip."""


E = TypeVar("E", bound=HasRecord)
E_co = TypeVar("E_co", bound=HasRecord, covariant=True)


class Networks(Protocol[E_co]):
    """What finds and embeds; several threads may use it at once: ``FrameEncoder``."""

    def chunk_frames(self, split: str) -> int:
        """Frames of a clip of this split to give to ``detect`` at once, at most."""

    def detect(self, frames: Sequence[DecodedFrame]) -> Sequence[Any]:
        """A chunk's frames with their ``faces`` and ``stream_crops``, in order."""

    def embed(self, frames: Sequence[Any]) -> Sequence[E_co]:
        """The features of frames that ``detect`` gave, of any clips."""


class Stages(Generic[E]):
    """Runs clips through all stages up to the store; keeps how long each stage took."""

    def __init__(
        self,
        encoder: Networks[E],
        decode: Callable[[Clip], Frames],
        prepare: Callable[[Clip], InputFile],
        limits: StageLimits,
        begin: Callable[[Clip], None] = lambda _: None,
    ) -> None:
        """Nothing runs yet.

        Args:
            encoder: The networks.
            decode: A clip's frames; runs in a thread, as does the next.
            prepare: Reads the hash of a clip's file.
            limits: How much is under way at once.
            begin: Called when the frames of a clip are about to be taken, one clip after another.
        """
        self._encoder = encoder
        self._decode = decode
        self._prepare = prepare
        self._limits = limits
        self._begin = begin
        self._lock = Lock()
        self._step_s: dict[str, float] = defaultdict(float)

    @property
    def step_s(self) -> Mapping[str, float]:
        """Step -> seconds spent in it by all threads together."""
        return dict(self._step_s)

    def iter_features(self, clips: Iterable[Clip]) -> Generator[E | ClipEnd]:
        """Yield each clip's frames in order, then its end, clip after clip.

        A clip that goes wrong has an end with a failure; of what it raises nothing comes out here
        but faults of the process (``is_fault``). Closing the generator stops all
        threads.
        """
        limits = self._limits
        n_ahead = limits.n_threads + 2  # chunks, and batches, that may be under way
        with (
            contextlib.closing(
                Prefetcher(
                    clips,
                    self._prepare,
                    self._timed_decode,
                    n_threads=limits.n_decoders,
                    max_bytes=limits.decoded_bytes,
                )
            ) as ahead,
            _pool(limits.n_threads) as pool,
        ):
            chunks = self._iter_chunks(ahead)
            detected = _map_in_order(pool, self._detect, chunks, n_ahead)
            batches = _iter_batches(detected, limits.batch_frames)
            failed: dict[str, Failure] = {}
            for items in _map_in_order(pool, self._embed, batches, n_ahead):
                for item in items:
                    if isinstance(item, Failure):
                        failed[item.clip_id] = item
                    elif isinstance(item, ClipEnd):
                        failure = item.failure or failed.get(item.clip.clip_id)
                        failed.pop(item.clip.clip_id, None)
                        yield ClipEnd(clip=item.clip, failure=failure) if failure else item
                    elif item.record.clip.clip_id not in failed:
                        yield item

    def _timed_decode(self, clip: Clip) -> Frames:
        with contextlib.closing(self._decode(clip)) as frames:
            while True:
                try:
                    with self._timed("decode"):
                        frame = next(frames)
                except StopIteration as end:
                    return end.value or {}
                yield frame

    def _iter_chunks(self, ahead: Prefetcher) -> Iterator[_Chunk | ClipEnd]:
        for clip, frames in ahead:
            self._begin(clip)
            file = _attempt(clip, "read", partial(getattr, frames, "prepared"))
            if isinstance(file, Failure):
                yield ClipEnd(clip=clip, failure=file)
                continue
            limit, chunk = self._encoder.chunk_frames(clip.split), _Chunk()
            while True:
                frame = _attempt(clip, "decode", partial(next, frames, None))
                if isinstance(frame, Failure):
                    yield ClipEnd(clip=clip, failure=frame)
                    break
                if chunk and not (frame and self._fits(chunk, frame, limit)):
                    yield chunk
                    chunk = []
                if frame is None:
                    yield ClipEnd(clip=clip, file=file, notes=frames.notes)
                    break
                chunk.append(frame)

    def _fits(self, chunk: _Chunk, frame: DecodedFrame, limit: int) -> bool:
        n_bytes = (len(chunk) + 1) * frame.rgb.nbytes
        same_size = chunk[0].rgb.shape == frame.rgb.shape
        return same_size and len(chunk) < limit and n_bytes <= self._limits.chunk_bytes

    def _detect(self, chunk: _Chunk | ClipEnd) -> Sequence[_Detected]:
        if isinstance(chunk, ClipEnd):
            return [chunk]
        with self._timed("detect"):
            clip = chunk[0].record.clip
            detected = _attempt(clip, "detect", partial(self._encoder.detect, chunk))
        return [detected] if isinstance(detected, Failure) else detected

    def _embed(self, items: list[_Detected]) -> list[E | Failure | ClipEnd]:
        frames = [item for item in items if not isinstance(item, Failure | ClipEnd)]
        others = [item for item in items if isinstance(item, Failure | ClipEnd)]
        if not frames:
            return [*others]
        with self._timed("embed"):
            clip = frames[0].record.clip
            embedded = _attempt(clip, "embed", partial(self._encoder.embed, frames))
        if isinstance(embedded, Failure):
            if len({frame.record.clip.clip_id for frame in frames}) > 1:
                # one clip must not spoil the others
                return [out for part in _split_by_clip(items) for out in self._embed(part)]
            return [embedded, *others]
        rows = iter(embedded)
        return [item if isinstance(item, Failure | ClipEnd) else next(rows) for item in items]

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._step_s[step] += time.perf_counter() - started_s


def _attempt(clip: Clip, step: str, action: Callable[[], T]) -> T | Failure:
    """What an action returns, or why it failed as a row of failures.csv; raises other faults."""
    try:
        return action()
    except ClipError as error:
        reason = str(error)
        step = "read" if isinstance(error, UnreadableError) else step
    except OSError as error:
        step, reason = "read", f"cannot be read ({error.strerror or type(error).__name__})"
    except Exception as error:  # the one broad except: whatever one clip does, the others go on
        if is_fault(error):
            raise
        _log.debug("clip %s", clip.clip_id, exc_info=True)
        reason = f"unexpected {type(error).__name__}: {error}"
    reason = reason.replace(str(clip.path), clip.path.name)  # reasons travel in bundles
    return Failure(clip_id=clip.clip_id, path=str(clip.path), step=step, reason=reason)


def _iter_batches(
    detected: Iterable[Sequence[_Detected]], n_frames: int
) -> Iterator[list[_Detected]]:
    """Lists of items with ``n_frames`` frames each, fewer where these are full or large."""
    batch: list[_Detected] = []
    n_faces = n_bytes = count = 0
    for items in detected:
        for item in items:
            batch.append(item)
            if not isinstance(item, Failure | ClipEnd):
                count += 1
                n_faces += len(item.faces.score)
                n_bytes += item.stream_crops.n_bytes
            if count == n_frames or n_faces >= _BATCH_FACES or n_bytes >= _BATCH_BYTES:
                yield batch
                batch, count, n_faces, n_bytes = [], 0, 0, 0
    if batch:
        yield batch


def _split_by_clip(items: Sequence[_Detected]) -> list[list[_Detected]]:
    """Cut items where the clip changes; ends and failures stay behind their clip's frames."""
    parts: list[list[_Detected]] = []
    last = ""
    for item in items:
        clip_id = last if isinstance(item, Failure | ClipEnd) else item.record.clip.clip_id
        if not parts or clip_id != last:
            parts.append([])
        parts[-1].append(item)
        last = clip_id
    return parts


def _map_in_order(
    pool: Executor, function: Callable[[T], U], items: Iterable[T], n_ahead: int
) -> Iterator[U]:
    """Apply a function in the pool; results in order, at most ``n_ahead`` items under way."""
    under_way: deque[Future[U]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) >= n_ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


@contextlib.contextmanager
def _pool(n_threads: int) -> Iterator[Executor]:
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="networks")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
