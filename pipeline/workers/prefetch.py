"""Decodes the next clips in background threads while this one goes through the networks.

A thread decodes a clip at a time, frame by frame; nothing is batched here, and no network runs.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from features.contracts import Clip
from pipeline.decode.sampling import DecodedFrame, Frames
from pipeline.inputs import InputFile

_CLIPS_AHEAD_PER_THREAD = 2
"""How far threads run ahead where clips are short, broken or small: not over a whole manifest, as
other processes want clips too."""


class Prefetcher:
    """Yields each clip with an iterator of its frames, in the clips' order, whatever the timing.

    ::

        with closing(Prefetcher(clips, prepare, decode, n_threads=2, max_bytes=256 << 20)) as ahead:
            for clip, frames in ahead:
                file = frames.prepared  # what prepare(clip) returned, or raises what it raised
                for frame in frames:  # what decode(clip) yields, then raises what it raised
                    ...
                notes = frames.notes  # what decode(clip) returned at its end

    Frames that wait to be taken are at most ``max_bytes``, half of them for the clips after the
    one that is being read; beyond it go one frame of each thread, which waits for room, and the
    frame that is being waited for, however large. What one clip raises reaches nobody else. Going
    on to the next clip drops the frames that are left of this one. Closing it stops every
    thread at its next frame and waits for it.
    """

    def __init__(
        self,
        clips: Iterable[Clip],
        prepare: Callable[[Clip], InputFile],
        decode: Callable[[Clip], Frames],
        *,
        n_threads: int,
        max_bytes: int,
    ) -> None:
        """Starts to decode at once.

        Args:
            clips: In the order in which they will be yielded; one is taken when its turn is near.
            prepare: Run once for each clip in one of the threads, before or while it is decoded.
            decode: Run once for each clip; its generator is used and closed in one thread.
            n_threads: At least 1.
            max_bytes: Bound on the frames that wait, a number that no clip changes.
        """
        self._clips = iter(clips)
        self._prepare = prepare
        self._decode = decode
        self._n_ahead = _CLIPS_AHEAD_PER_THREAD * n_threads
        self._buffer = _Buffer(max_bytes)
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="decode")
        self._started: deque[FramesAhead] = deque()
        self._n_started = 0
        self._start()

    def close(self) -> None:
        """Stops all threads; frames that nobody took are dropped."""
        self._buffer.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Clip, FramesAhead]]:
        while self._started:
            frames = self._started.popleft()
            self._buffer.read_from(frames.number)
            self._start()
            yield frames.clip, frames

    def _start(self) -> None:
        """Tasks are taken in the order in which they come: no clip waits for a later one."""
        while len(self._started) < self._n_ahead:
            clip = next(self._clips, None)
            if clip is None:
                return
            frames = FramesAhead(
                clip=clip,
                number=self._n_started,
                _buffer=self._buffer,
                _preparation=self._pool.submit(self._prepare, clip),
                _decoding=self._pool.submit(self._fill, clip, self._n_started),
            )
            frames._decoding.add_done_callback(lambda _: self._buffer.wake())
            self._started.append(frames)
            self._n_started += 1

    def _fill(self, clip: Clip, number: int) -> Mapping[str, float]:
        """Returns the notes of the clip; none of one that nobody reads to its end."""
        if not self._buffer.wants(number):
            return {}
        with contextlib.closing(self._decode(clip)) as frames:
            while True:
                try:
                    frame = next(frames)
                except StopIteration as end:
                    return end.value or {}
                if not self._buffer.put(number, frame):
                    return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class FramesAhead:
    """The frames of one clip: what its decoder yields. Made by Prefetcher alone."""

    clip: Clip
    number: int
    _buffer: _Buffer
    _preparation: Future[InputFile]
    _decoding: Future[Mapping[str, float]]

    @property
    def prepared(self) -> InputFile:
        """What ``prepare`` returned for the clip; waits for it. Raises what it raised."""
        return self._preparation.result()

    @property
    def notes(self) -> Mapping[str, float]:
        """What was unusual about the clip's film (``pipeline.decode.notes``), after its last frame.

        Waits for it. Raises what ended the clip.
        """
        return self._decoding.result()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> DecodedFrame:
        """Raises ValueError once the next clip is read or the Prefetcher is closed."""
        frame = self._buffer.take(self.number, self._decoding)
        if frame is None:
            self._decoding.result()  # raises what ended the clip, if anything did
            raise StopIteration
        return frame


class _Buffer:
    """The frames that wait, of all clips; what every thread waits at."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._frames: dict[int, deque[DecodedFrame]] = defaultdict(deque)
        self._n_bytes: dict[int, int] = defaultdict(int)
        """Of the frames that wait, by clip."""
        self._reading = 0
        """Number of the clip that is being read: no earlier one is wanted."""
        self._closed = False

    def wants(self, number: int) -> bool:
        """Whether anybody may still read this clip."""
        return not self._closed and number >= self._reading

    def put(self, number: int, frame: DecodedFrame) -> bool:
        """Adds a frame once there is room. Returns False if nobody will read it."""
        n_bytes = frame.rgb.nbytes
        with self._changed:
            self._changed.wait_for(lambda: not self.wants(number) or self._fits(number, n_bytes))
            if not self.wants(number):
                return False
            self._frames[number].append(frame)
            self._n_bytes[number] += n_bytes
            self._changed.notify_all()
            return True

    def take(self, number: int, decoding: Future[Mapping[str, float]]) -> DecodedFrame | None:
        """The clip's next frame; None if there is none left and its decoder has ended."""
        with self._changed:
            if not self._closed and number == self._reading:
                self._changed.wait_for(lambda: self._frames[number] or decoding.done())
            if self._closed or number != self._reading:
                raise ValueError("these frames were dropped: another clip is being read")
            if not self._frames[number]:
                return None
            frame = self._frames[number].popleft()
            self._n_bytes[number] -= frame.rgb.nbytes
            self._changed.notify_all()
            return frame

    def read_from(self, number: int) -> None:
        """From now on this clip is read; what is left of earlier ones is dropped."""
        with self._changed:
            for earlier in range(self._reading, number):
                self._frames.pop(earlier, None)
                self._n_bytes.pop(earlier, None)
            self._reading = number
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._frames.clear()
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _fits(self, number: int, n_bytes: int) -> bool:
        if number == self._reading and not self._frames[number]:
            return True  # it is or will be waited for: whatever the others hold, and its size
        total = sum(self._n_bytes.values())
        if total + n_bytes > self._max_bytes:
            return False
        ahead = total - self._n_bytes[self._reading]
        return number == self._reading or ahead + n_bytes <= self._max_bytes // 2
