"""Adds streams to finished shards: decodes their clips again, and takes the faces from the store.

For the pool a shard is a clip: it is given to a worker as a whole, and tried again as a whole.
``pipeline.workers.stages`` runs its clips as in the first pass, without detection.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from features.contracts import Clip, Faces
from features.errors import ClipError
from features.store.index import Failure
from features.store.shard_reader import ShardIndex, read_shard_index
from pipeline.decode.sampling import DecodedFrame, FrameRecord, Frames, iter_chosen_frames
from pipeline.embed.streams import StreamCrops, StreamEncoders, StreamRows
from pipeline.inputs import InputFile, Inputs, ReadTwice
from pipeline.stored_clip import StoredClip, read_stored_clip
from pipeline.workers.extractor import Extractor, limit_stages, set_up_torch, tell_progress
from pipeline.workers.messages import (
    Begun,
    ClipEnd,
    Extracted,
    Progressed,
    ShardUnit,
    StreamPart,
    Timing,
    WantedClip,
    Work,
)
from pipeline.workers.stages import Stages

_PART_ROWS = 1024
"""Rows of frames, or of faces, with which a part of a clip is handed on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CroppedFrame:
    """A decoded frame, with what the encoders need of it."""

    record: FrameRecord
    faces: Faces
    """Those that the store has in it."""
    stream_crops: StreamCrops


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedFrame:
    """A frame's rows of streams."""

    record: FrameRecord
    rows: StreamRows


class StreamNetworks:
    """What ``Stages`` runs in a second pass: no detection, only the encoders."""

    def __init__(self, work: Work) -> None:
        """Loads the encoders. Raises WeightsError and ConfigError as ``read_encoder``."""
        self._device = torch.device(work.device)
        self._encoders = StreamEncoders(
            work.encoders, self._device, work.config.precision, work.n_threads
        )
        self.clips: dict[str, StoredClip] = {}
        """Those under way, by id."""
        self.streams: dict[str, tuple[str, ...]] = {}
        """That they are to get."""

    def chunk_frames(self, split: str) -> int:
        """Frames that are cropped together."""
        return 32 if self._device.type == "cuda" else 8

    @torch.inference_mode()
    def detect(self, frames: Sequence[DecodedFrame]) -> list[CroppedFrame]:
        """Crop frames and their faces, which are those of the store.

        Raises:
            ClipError: the store has no row of such a time.
        """
        clip_id = frames[0].record.clip.clip_id
        stored = self.clips[clip_id]
        rgb = torch.stack([torch.as_tensor(frame.rgb) for frame in frames]).to(self._device)
        faces = [stored.find_boxes(frame.record.pts_s) for frame in frames]
        in_chunk = _as_faces(faces)
        crops = self._encoders.crop(rgb, in_chunk, self.streams[clip_id])
        return [
            CroppedFrame(record=frame.record, faces=_as_faces([boxes]), stream_crops=of_frame)
            for frame, boxes, of_frame in zip(frames, faces, crops, strict=True)
        ]

    @torch.inference_mode()
    def embed(self, frames: Sequence[CroppedFrame]) -> list[StreamedFrame]:
        """Run the encoders; the frames may be of several clips."""
        rows = self._encoders.embed([frame.stream_crops for frame in frames])
        return [
            StreamedFrame(record=frame.record, rows=of_frame)
            for frame, of_frame in zip(frames, rows, strict=True)
        ]


class StreamExtractor:
    """The encoders of a worker, ready for any number of finished shards."""

    find_machine = staticmethod(Extractor.find_machine)

    def __init__(self, work: Work) -> None:
        """Loads the encoders. Raises WeightsError and ConfigError as ``read_encoder``."""
        self._work = work
        self._device = torch.device(work.device)
        self._inputs = Inputs(work.inputs)
        self._read_twice = ReadTwice()
        set_up_torch(self._device)
        self._limits = limit_stages(work)
        self._networks = StreamNetworks(work)
        self._sizes = {spec.name: spec.size for spec in work.encoders}
        self._of_faces = {spec.name for spec in work.encoders if spec.rows == "face"}

    def iter_items(
        self,
        units: Iterable[ShardUnit],
        tell: Callable[[Begun | Progressed], None] = lambda _: None,
    ) -> Generator[Extracted]:
        """Yield the parts and the end of each clip of each shard, then the shard's own end.

        Args:
            units: Which shards; one is taken when its turn is near.
            tell: Told as it happens which clip is read, and that there is progress.

        Raises:
            ShardError: a shard is damaged.
            Exception: a fault of this process or its GPU (``is_fault``).
        """
        self._read_twice = ReadTwice()
        self._networks.clips.clear()
        begun: deque[_Shard] = deque()

        def tell_begun(clip: Clip) -> None:
            tell(Begun(clip_id=self._networks.clips[clip.clip_id].shard_name, within=clip))

        for clips in self._iter_groups(units, begun, tell_begun):
            stages = Stages(
                self._networks, self.iter_frames, self._prepare, self._limits, tell_begun
            )
            with contextlib.closing(stages.iter_features(clips)) as features:
                for item in tell_progress(features, tell):
                    clip_id = (item if isinstance(item, ClipEnd) else item.record).clip.clip_id
                    yield from self._pass_over(begun, until=clip_id)
                    yield from self._take(begun[0], item)
            yield Timing(step_s=stages.step_s)
        yield from self._pass_over(begun)

    def iter_frames(self, clip: Clip) -> Frames:
        """Decode a clip as it was."""
        return iter_chosen_frames(
            clip,
            self._networks.clips[clip.clip_id].n_phases,
            self._device,
            check_state=partial(self._read_twice.check_state, clip.clip_id),
            strict=self._work.config.strict,
        )

    def _prepare(self, clip: Clip) -> InputFile:
        found, state = self._inputs.look_up(clip.path)
        self._read_twice.check_state(clip.clip_id, state)
        expected = self._networks.clips[clip.clip_id].sha256
        if found.sha256 != expected:
            raise ClipError(
                f"its file has SHA-256 {found.sha256[:12]}, that which was extracted had "
                f"{expected[:12]}: run extract again, which extracts a changed clip"
            )
        return found

    def _iter_groups(
        self, units: Iterable[ShardUnit], begun: deque[_Shard], begin: Callable[[Clip], None]
    ) -> Iterator[Iterable[Clip]]:
        """Clips that may be decoded ahead of each other.

        A shard whose clips may not is given to a worker that holds no other, and so is the first.
        """
        units = iter(units)
        for unit in units:
            if unit.one_by_one:
                for clip in self._iter_clips([unit], begun):
                    begin(clip)  # before a thread decodes it
                    yield [clip]
            else:
                yield self._iter_clips(chain([unit], units), begun)

    def _iter_clips(self, units: Iterable[ShardUnit], begun: deque[_Shard]) -> Iterator[Clip]:
        """The clips that are to be decoded, shard by shard; these are added to ``begun``."""
        for unit in units:
            shard = _Shard(unit=unit, index=read_shard_index(unit.path))
            begun.append(shard)
            for row, clip_id in enumerate(shard.index.columns["id"]):
                wanted = unit.wanted.get(clip_id)
                if wanted is not None and wanted.is_read and wanted.path:
                    stored = read_stored_clip(shard.index, row)
                    self._networks.clips[clip_id] = stored
                    self._networks.streams[clip_id] = wanted.streams
                    yield stored.locate(wanted.path)

    def _pass_over(self, begun: deque[_Shard], until: str | None = None) -> Iterator[Extracted]:
        """End shards, and clips that are not decoded, up to a clip; None: all."""
        while begun:
            shard = begun[0]
            ids = shard.index.columns["id"]
            while shard.row < len(ids):
                if ids[shard.row] == until and shard.wanted and shard.wanted.is_read:
                    return
                yield shard.unit.end_clip(shard.index, shard.row)
                shard.row += 1
            yield shard.unit.end(shard.index)
            begun.popleft()

    def _take(self, shard: _Shard, item: StreamedFrame | ClipEnd) -> Iterator[Extracted]:
        """What a frame, or the end of a clip, of the shard at hand adds to its streams."""
        if shard.failure is None:
            try:
                yield from self._add(shard, item)
            except ClipError as error:
                clip = (item if isinstance(item, ClipEnd) else item.record).clip
                shard.failure = Failure(
                    clip_id=clip.clip_id, path=str(clip.path), step="decode", reason=f"{error}"
                )
        if isinstance(item, ClipEnd):
            yield shard.unit.end_clip(shard.index, shard.row, was_read=True, failure=shard.failure)
            self._networks.clips.pop(item.clip.clip_id, None)
            self._networks.streams.pop(item.clip.clip_id, None)
            shard.pending, shard.n_taken, shard.failure = [], 0, None
            shard.row += 1

    def _add(self, shard: _Shard, item: StreamedFrame | ClipEnd) -> Iterator[Extracted]:
        """Raises ClipError where the clip's rows are not those that are stored."""
        if isinstance(item, ClipEnd) and item.failure is not None:
            shard.failure = item.failure
        elif isinstance(item, ClipEnd):
            self._networks.clips[item.clip.clip_id].check_end(shard.n_taken)
            yield self._make_part(shard)
        else:
            n_ticks = len(item.record.phases)
            stored_clip = self._networks.clips[item.record.clip.clip_id]
            stored_clip.check_rows(shard.n_taken, item.record)
            shard.n_taken += n_ticks
            shard.pending += [item.rows] * n_ticks
            n_faces = sum(len(r) for rows in shard.pending for r in [*rows.face.values()][:1])
            if max(len(shard.pending), n_faces) >= _PART_ROWS:
                yield self._make_part(shard)

    def _make_part(self, shard: _Shard) -> StreamPart:
        rows, shard.pending = shard.pending, []
        values: dict[str, NDArray[np.float16]] = {}
        for name in shard.wanted.streams if shard.wanted else ():
            none = [np.zeros((0, self._sizes[name]), dtype=np.float16)]
            of_faces = name in self._of_faces
            found = [r.face[name] if of_faces else r.frame[name][None] for r in rows]
            values[name] = np.concatenate(none + found)
        return StreamPart(shard_name=shard.unit.clip_id, values=values)


@dataclass(kw_only=True, eq=False)
class _Shard:
    """A shard under way."""

    unit: ShardUnit
    index: ShardIndex
    row: int = 0
    """Of the clip at hand."""
    failure: Failure | None = None
    """Why that clip cannot have its streams."""
    n_taken: int = 0
    """Rows of the clip at hand."""
    pending: list[StreamRows] = field(default_factory=list)
    """Of these, the last ones, which no part holds yet."""

    @property
    def wanted(self) -> WantedClip | None:
        """What the clip at hand is to get."""
        return self.unit.wanted.get(self.index.columns["id"][self.row])


def _as_faces(boxes: Sequence[NDArray[np.float32]]) -> Faces:
    """Boxes of some frames, [A, 4] each, as faces of these frames."""
    box_px = np.concatenate(boxes)
    frame = np.repeat(np.arange(len(boxes)), [len(of_frame) for of_frame in boxes])
    return Faces(
        frame=frame.astype(np.int32),
        box_px=box_px,
        score=np.ones(len(box_px), dtype=np.float32),
        landmarks_px=np.zeros((len(box_px), 5, 2), dtype=np.float32),
    )
