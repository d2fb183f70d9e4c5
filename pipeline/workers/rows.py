"""Gathers the frames of a clip into parts for the store: a clip of any length passes through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from features.contracts import Clip, ClipFeatures
from pipeline.detect.tracker import Tracker
from pipeline.embed.encoder import EmbeddedFrame
from pipeline.workers.messages import ClipEnd

PART_FRAMES = 256
"""Rows of a part, at most: about 14 MB, and as much again for maps of a face each."""
PART_FACES = 1024
"""Faces with which a part ends before it has all its rows: 1 MB, their maps 51 MB."""


def iter_parts(
    items: Iterable[EmbeddedFrame | ClipEnd], n_phases: dict[str, int]
) -> Iterator[ClipFeatures | ClipEnd]:
    """Turn frames into rows: one for each tick of a frame, and so its faces.

    Args:
        items: The frames of each clip in order, then its end.
        n_phases: Split -> phases of the clock.

    Yields:
        The parts of each clip, at least one where it did not fail, then its end. The hash of the
        clip's file is known only then.
    """
    rows = _Rows()
    for item in items:
        if isinstance(item, ClipEnd):
            if rows.n_frames and item.failure is None:
                yield rows.gather(item.clip, n_phases[item.clip.split])
            rows = _Rows()
            yield item
            continue
        clip = item.record.clip
        track = rows.tracker.follow(item.faces.box_px, item.record.pts_s)
        for phase in item.record.phases:
            rows.add(item, phase, track)
            if rows.n_frames >= PART_FRAMES or rows.n_faces >= PART_FACES:
                yield rows.gather(clip, n_phases[clip.split])


class _Rows:
    """The rows of one clip that no part holds yet, and who its people are."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self._rows: list[tuple[EmbeddedFrame, int, NDArray[np.int32]]] = []
        """A row: the frame, its phase, the tracks of its faces."""
        self.n_faces = 0
        """Of these rows."""
        self._decoders: dict[str, None] = {}
        """In the order in which they decoded the clip; the last part names them all."""

    @property
    def n_frames(self) -> int:
        return len(self._rows)

    def add(self, frame: EmbeddedFrame, phase: int, track: NDArray[np.int32]) -> None:
        """Add the row of one tick of a frame."""
        self._decoders[frame.record.decoder] = None
        self._rows.append((frame, phase, track))
        self.n_faces += len(track)

    def gather(self, clip: Clip, n_phases: int) -> ClipFeatures:
        """The rows as a part of the clip; they are forgotten, the people are not."""
        frames = [frame for frame, _, _ in self._rows]
        faces = [frame.faces for frame in frames]
        full = [frame.context_7x7 for frame in frames if frame.context_7x7 is not None]
        small = [frame.context_2x2 for frame in frames if frame.context_2x2 is not None]
        vectors = [frame.face.vector for frame in frames if frame.face.vector is not None]
        maps = [frame.face.map for frame in frames if frame.face.map is not None]
        shown = [f.face.expression for f in frames if f.face.expression is not None]
        streams = [frame.streams for frame in frames]
        part = ClipFeatures(
            clip_id=clip.clip_id,
            label=clip.label,
            split=clip.split,
            subject=clip.subject,
            source=clip.source,
            decoder=", ".join(self._decoders),
            start_s=clip.start_s,
            end_s=clip.end_s,
            n_phases=n_phases,
            extra=clip.extra,
            pts_s=np.array([frame.record.pts_s for frame in frames]),
            phase=np.array([phase for _, phase, _ in self._rows], dtype=np.int16),
            context_7x7=np.stack(full) if full else None,
            context_2x2=np.stack(small) if small else None,
            face_frame=np.repeat(np.arange(len(frames)), [len(f.score) for f in faces]).astype(
                np.int32
            ),
            box_px=np.concatenate([f.box_px for f in faces]),
            score=np.concatenate([f.score for f in faces]),
            landmarks_px=np.concatenate([f.landmarks_px for f in faces]),
            track=np.concatenate([track for _, _, track in self._rows]),
            face_vector=np.concatenate(vectors) if vectors else None,
            face_map=np.concatenate(maps) if maps else None,
            face_expression=np.concatenate(shown) if shown else None,
            streams={n: np.stack([rows.frame[n] for rows in streams]) for n in streams[0].frame},
            face_streams={
                n: np.concatenate([rows.face[n] for rows in streams]) for n in streams[0].face
            },
        )
        self._rows, self.n_faces = [], 0
        return part
