"""Adds a stream of sound to finished shards; with no encoder of the user's it loads no torch.

No frame is looked at but the first of each film, which says when the clip begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from features.contracts import Clip
from features.disk import FileState
from features.errors import ClipError
from features.store.index import Failure
from features.store.shard_reader import ShardIndex, read_shard_index
from pipeline.decode.clock import find_tick_times
from pipeline.decode.notes import Notes
from pipeline.decode.opening import ChangedError, UnreadableError
from pipeline.decode.sound import iter_sound
from pipeline.inputs import Inputs
from pipeline.sound.stream import AUDIO_STREAM, LearnedEncoder, SoundEncoder, Statistics
from pipeline.stored_clip import StoredClip, read_stored_clip
from pipeline.workers.messages import (
    Begun,
    Extracted,
    Machine,
    Progressed,
    ShardUnit,
    StreamPart,
    Work,
)


class SoundExtractor:
    """Makes the stream ``audio``; one clip after another, as decoding takes most of the time."""

    @staticmethod
    def find_machine(device: str) -> Machine:
        """A CPU, whatever the device."""
        return Machine(device="cpu", n_gpus=0, n_cores=os.cpu_count() or 1, precision="float32")

    def __init__(self, work: Work) -> None:
        self._inputs = Inputs(work.inputs)
        self._name, self._encoder = self.load(work)

    def load(self, work: Work) -> tuple[str, SoundEncoder]:
        """The stream's name, and who computes its rows."""
        return AUDIO_STREAM, Statistics()

    def iter_items(
        self,
        units: Iterable[ShardUnit],
        tell: Callable[[Begun | Progressed], None] = lambda _: None,
    ) -> Generator[Extracted]:
        """Yield the rows and the end of each clip of each shard, then the shard's own end.

        Args:
            units: Which shards; one is taken when its turn has come.
            tell: Told as it happens which clip is read.

        Raises:
            ShardError: a shard is damaged.
        """
        for unit in units:
            index = read_shard_index(unit.path)
            for row in range(len(index)):
                yield from self._iter_clip(unit, index, row, tell)
            yield unit.end(index)

    def _iter_clip(
        self,
        unit: ShardUnit,
        index: ShardIndex,
        row: int,
        tell: Callable[[Begun | Progressed], None],
    ) -> Iterator[Extracted]:
        wanted = unit.wanted.get(index.columns["id"][row])
        if wanted is None or not wanted.path or wanted.failure is not None:
            yield unit.end_clip(index, row)
            return
        stored = read_stored_clip(index, row)
        clip, notes, failure = stored.locate(wanted.path), Notes(), None
        tell(Begun(clip_id=unit.clip_id, within=clip))
        try:
            for values in self._iter_rows(clip, stored, notes):
                yield StreamPart(shard_name=unit.clip_id, values={self._name: values})
        except (ClipError, OSError) as error:
            failure = _describe(clip, error)
        yield unit.end_clip(index, row, was_read=True, failure=failure, notes=notes.amounts)

    def _iter_rows(
        self, clip: Clip, stored: StoredClip, notes: Notes
    ) -> Iterator[NDArray[np.float16]]:
        """Raises ClipError: its file is gone or another, or there is no film in it. OSError."""
        found, hashed = self._inputs.look_up(clip.path)
        if found.sha256 != stored.sha256:
            raise ChangedError

        def check(state: FileState) -> None:
            if state != hashed:
                raise ChangedError

        rows = stored.rows
        tick_s = find_tick_times(rows.pts_s, rows.phase, stored.n_phases)
        with closing(iter_sound(clip, notes, check_state=check)) as chunks:
            yield from self._encoder.iter_rows(chunks, tick_s)


class LearnedSoundExtractor(SoundExtractor):
    """Makes the stream of an encoder of the user's."""

    @staticmethod
    def find_machine(device: str) -> Machine:
        """As that of frames. Raises ConfigError where there is no such device."""
        from pipeline.workers.extractor import Extractor

        return Extractor.find_machine(device)

    def load(self, work: Work) -> tuple[str, SoundEncoder]:
        """Loads torch. Raises WeightsError and ConfigError as ``read_encoder``."""
        (spec,) = work.encoders
        return spec.name, LearnedEncoder(spec, work.device, work.config.precision)


def _describe(clip: Clip, error: ClipError | OSError) -> Failure:
    is_read, reason = isinstance(error, UnreadableError), str(error)
    if isinstance(error, OSError):
        is_read, reason = True, f"cannot be read ({error.strerror or type(error).__name__})"
    return Failure(
        clip_id=clip.clip_id,
        path=str(clip.path),
        step="read" if is_read else "decode",
        reason=reason.replace(str(clip.path), clip.path.name),  # reasons travel in bundles
    )
