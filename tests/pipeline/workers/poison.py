"""Extractors whose clips end or hold up their worker; what a clip does stands in its id."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from features.contracts import Clip, ClipFeatures
from features.errors import WeightsError
from features.store.clip_writer import ClipWriter
from features.store.index import ShardEntry
from features.store.shard_writer import ShardWriter
from pipeline.inputs import InputFile
from pipeline.workers.messages import Begun, ClipEnd, Machine, Progressed, Timing, Work
from tests.builders import clip_features


def poison(clip: Clip) -> None:
    """What a decoder may do to its process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind = clip.clip_id.partition("-")[0]
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "exit":
        os._exit(3)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "spin":
        while True:
            pass
    elif kind == "memory":
        taken = [bytearray(64 << 20) for _ in range(48)]
        time.sleep(60)  # its end comes sooner
        del taken
    elif kind == "gpu":
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore words")


class FakeExtractor:
    """No network: takes three clips ahead, as prefetching does; good clips have made-up features.

    Starts in a tenth of the time of the true one.
    """

    @staticmethod
    def find_machine(device: str) -> Machine:
        return Machine(device="cpu", n_gpus=0, n_cores=2, precision="float32")

    def __init__(self, work: Work) -> None:
        pass

    def iter_items(
        self, clips: Iterable[Clip], tell: Callable[[Begun | Progressed], None]
    ) -> Iterator[ClipFeatures | ClipEnd | Timing]:
        ahead: deque[Clip] = deque()
        for clip in clips:
            if not clip.clip_id.startswith(("spin", "stop")):
                poison(clip)
            ahead.append(clip)
            if len(ahead) > 2:
                yield from self._extract(ahead.popleft(), tell)
        while ahead:
            yield from self._extract(ahead.popleft(), tell)
        yield Timing(step_s={})

    def _extract(
        self, clip: Clip, tell: Callable[[Begun | Progressed], None]
    ) -> Iterator[ClipFeatures | ClipEnd]:
        tell(Begun(clip_id=clip.clip_id))
        yield clip_features(clip.clip_id, split=clip.split)
        poison(clip)  # here its first rows have left
        file = InputFile(n_bytes=1, mtime_ns=1, sha256="0" * 64)
        yield ClipEnd(clip=clip, file=file)


class Silent(FakeExtractor):
    @staticmethod
    def find_machine(device: str) -> Machine:
        time.sleep(60)
        raise ValueError("nobody waited")


class SlowStarter(FakeExtractor):
    def __init__(self, work: Work) -> None:
        once = Path(os.environ["STANDS_STILL_ONCE"])
        if not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGSTOP)


class Unloadable(FakeExtractor):
    def __init__(self, work: Work) -> None:
        raise RuntimeError("no library")


class Unweighted(FakeExtractor):
    def __init__(self, work: Work) -> None:
        raise WeightsError("weights are missing")


class Talkative(FakeExtractor):
    def _extract(
        self, clip: Clip, tell: Callable[[Begun | Progressed], None]
    ) -> Iterator[ClipFeatures | ClipEnd]:
        logging.getLogger("pipeline.decode.sampling").warning("clip %s", clip.clip_id)
        yield from super()._extract(clip, tell)


class NeverFinishesAShard(FakeExtractor):
    """As on a network disk that is gone."""

    def __init__(self, work: Work) -> None:
        ClipWriter.finish = lambda self: time.sleep(300)  # type: ignore[assignment, method-assign]


class DiesAfterFirstShard(FakeExtractor):
    """Once: when its first shard has its name, before it tells."""

    def __init__(self, work: Work) -> None:
        finish = ClipWriter.finish

        def finish_and_die(self: ClipWriter) -> ShardEntry | None:
            entry = finish(self)
            if entry is not None and entry.name == "shards/0000.h5":
                os.kill(os.getpid(), signal.SIGKILL)
            return entry

        ClipWriter.finish = finish_and_die  # type: ignore[method-assign]


class Mortal(FakeExtractor):
    """Its process dies at its fifth clip, whichever that is."""

    n_clips = 0

    def _extract(
        self, clip: Clip, tell: Callable[[Begun | Progressed], None]
    ) -> Iterator[ClipFeatures | ClipEnd]:
        self.n_clips += 1
        if self.n_clips == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super()._extract(clip, tell)


class FullDisk(FakeExtractor):
    """Of the worker that takes the first shard: its fourth clip does not fit."""

    def __init__(self, work: Work) -> None:
        add_rows = ShardWriter.add_rows

        def add_until_full(self: ShardWriter, part: ClipFeatures) -> None:
            if self.path.name == "0000.h5" and len(self.frame_offset) > 3:
                raise OSError(errno.ENOSPC, "No space left on device", str(self.partial))
            add_rows(self, part)

        ShardWriter.add_rows = add_until_full  # type: ignore[method-assign]


class SlowDisk(FakeExtractor):
    """A shard takes longer to finish than a clip may stand still."""

    def __init__(self, work: Work) -> None:
        finish = ShardWriter.finish

        def finish_late(self: ShardWriter) -> None:
            time.sleep(1.5)
            finish(self)

        ShardWriter.finish = finish_late  # type: ignore[method-assign]
