"""Clips to features while decoding, detection and the CNNs overlap; order never depends on timing.

::

    decoders --chunks of a clip--> look --frames of many clips--> embed --> in the clips' order

A chunk is of one clip, so what is found in it is a function of that clip alone. The CNNs get their
batches across clips; what a row gives does not depend on its batch.
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
from typing import TypeVar

from features.contracts import Clip
from features.errors import ClipError
from features.store.index import Failure
from pipeline.decode.sampling import ChosenFrame, Frames
from pipeline.embed.encoder import LookedFrame, SeenFrame, Seer
from pipeline.inputs import InputFile
from pipeline.workers.faults import is_fault
from pipeline.workers.messages import ClipEnd
from pipeline.workers.prefetch import Prefetcher

_log = logging.getLogger(__name__)

_BATCH_FACES = 256
"""Faces with which a batch ends before it has all its frames: their maps are 50 kB each."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    clip: Clip
    frames: list[ChosenFrame]


Looked = tuple[Clip, LookedFrame] | Failure | ClipEnd
Seen = tuple[Clip, SeenFrame] | Failure | ClipEnd


@dataclass(frozen=True, kw_only=True)
class FlowSize:
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

    @property
    def n_ahead(self) -> int:
        """Chunks, and batches, that may be under way."""
        return self.n_threads + 2


class Flow:
    """Runs clips through all stages up to the store; keeps how long each stage took."""

    def __init__(
        self,
        seer: Seer,
        decode: Callable[[Clip], Frames],
        prepare: Callable[[Clip], InputFile],
        size: FlowSize,
        begin: Callable[[Clip], None] = lambda _: None,
    ) -> None:
        """Nothing runs yet.

        Args:
            seer: The networks.
            decode: A clip's frames; runs in a thread, as does the next.
            prepare: Reads the hash of a clip's file.
            size: How much is under way at once.
            begin: Called when the frames of a clip are about to be taken, one clip after another.
        """
        self._seer = seer
        self._decode = decode
        self._prepare = prepare
        self._size = size
        self._begin = begin
        self._lock = Lock()
        self._step_s: dict[str, float] = defaultdict(float)

    @property
    def step_s(self) -> Mapping[str, float]:
        """Step -> seconds spent in it by all threads together."""
        return dict(self._step_s)

    def iter_features(self, clips: Iterable[Clip]) -> Generator[tuple[Clip, SeenFrame] | ClipEnd]:
        """Yield each clip's frames in order, then its end, clip after clip.

        A clip that goes wrong has an end with a failure; of what it raises nothing comes out here
        but faults of the process (``pipeline.workers.faults``). Closing the generator stops all
        threads.
        """
        size = self._size
        with (
            Prefetcher(
                clips,
                self._prepare,
                self._timed_decode,
                n_threads=size.n_decoders,
                max_bytes=size.decoded_bytes,
            ) as ahead,
            _pool(size.n_threads) as pool,
        ):
            chunks = self._iter_chunks(ahead)
            looked = _map_in_order(pool, self._look, chunks, size.n_ahead)
            batches = _iter_batches(looked, size.batch_frames)
            failed: dict[str, Failure] = {}
            for items in _map_in_order(pool, self._embed, batches, size.n_ahead):
                for item in items:
                    if isinstance(item, Failure):
                        failed[item.clip_id] = item
                    elif isinstance(item, ClipEnd):
                        failure = item.failure or failed.get(item.clip.clip_id)
                        failed.pop(item.clip.clip_id, None)
                        yield ClipEnd(clip=item.clip, failure=failure) if failure else item
                    elif item[0].clip_id not in failed:
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

    def _iter_chunks(self, ahead: Prefetcher[InputFile]) -> Iterator[_Chunk | ClipEnd]:
        for clip, frames in ahead:
            self._begin(clip)
            file = _attempt(clip, "read", partial(getattr, frames, "prepared"))
            if isinstance(file, Failure):
                yield ClipEnd(clip=clip, failure=file)
                continue
            limit, chunk = self._seer.chunk_frames(clip.split), list[ChosenFrame]()
            while True:
                frame = _attempt(clip, "decode", partial(next, frames, None))
                if isinstance(frame, Failure):
                    yield ClipEnd(clip=clip, failure=frame)
                    break
                if chunk and not (frame and self._fits(chunk, frame, limit)):
                    yield _Chunk(clip=clip, frames=chunk)
                    chunk = []
                if frame is None:
                    yield ClipEnd(clip=clip, file=file, notes=frames.notes)
                    break
                chunk.append(frame)

    def _fits(self, chunk: Sequence[ChosenFrame], frame: ChosenFrame, limit: int) -> bool:
        n_bytes = (len(chunk) + 1) * frame.rgb.nbytes
        same_size = chunk[0].rgb.shape == frame.rgb.shape
        return same_size and len(chunk) < limit and n_bytes <= self._size.chunk_bytes

    def _look(self, chunk: _Chunk | ClipEnd) -> list[Looked]:
        if isinstance(chunk, ClipEnd):
            return [chunk]
        with self._timed("detect"):
            looked = _attempt(chunk.clip, "detect", lambda: self._seer.look(chunk.frames))
        if isinstance(looked, Failure):
            return [looked]
        return [(chunk.clip, frame) for frame in looked]

    def _embed(self, items: list[Looked]) -> list[Seen]:
        frames = [item for item in items if isinstance(item, tuple)]
        if not frames:
            return [item for item in items if not isinstance(item, tuple)]
        with self._timed("embed"):
            seen = _attempt(
                frames[0][0], "embed", lambda: self._seer.embed([frame for _, frame in frames])
            )
        if isinstance(seen, Failure):
            clip_ids = {clip.clip_id: clip for clip, _ in frames}
            if len(clip_ids) > 1:  # one clip must not spoil the others
                return [out for part in _split_by_clip(items) for out in self._embed(part)]
            return [seen, *(item for item in items if not isinstance(item, tuple))]
        rows = iter(seen)
        return [(item[0], next(rows)) if isinstance(item, tuple) else item for item in items]

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
    except OSError as error:
        reason = f"cannot be read ({error.strerror or type(error).__name__})"
    except Exception as error:  # the one broad except: whatever one clip does, the others go on
        if is_fault(error):
            raise
        _log.debug("clip %s", clip.clip_id, exc_info=True)
        reason = f"unexpected {type(error).__name__}: {error}"
    reason = reason.replace(str(clip.path), clip.path.name)  # reasons travel in bundles
    return Failure(clip_id=clip.clip_id, path=str(clip.path), step=step, reason=reason)


def _iter_batches(looked: Iterable[list[Looked]], n_frames: int) -> Iterator[list[Looked]]:
    """Lists of items with ``n_frames`` frames each, fewer where these are full of faces."""
    batch: list[Looked] = []
    n_faces = count = 0
    for items in looked:
        for item in items:
            batch.append(item)
            if isinstance(item, tuple):
                count += 1
                n_faces += len(item[1].faces.score)
            if count == n_frames or n_faces >= _BATCH_FACES:
                yield batch
                batch, count, n_faces = [], 0, 0
    if batch:
        yield batch


def _split_by_clip(items: Sequence[Looked]) -> list[list[Looked]]:
    """Cut items where the clip changes; ends and failures stay behind their clip's frames."""
    parts: list[list[Looked]] = []
    last = ""
    for item in items:
        clip_id = item[0].clip_id if isinstance(item, tuple) else last
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
