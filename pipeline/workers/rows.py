"""Gathers the frames of a clip into parts for the store: a clip of any length passes through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from features.contracts import Clip, ClipFeatures
from pipeline.detect.tracker import Tracker
from pipeline.embed.encoder import SeenFrame
from pipeline.workers.messages import ClipEnd

PART_FRAMES = 256
"""Rows of a part, at most: about 14 MB, and as much again for maps of a face each."""
PART_FACES = 1024
"""Faces with which a part ends before it has all its rows: 1 MB, their maps 51 MB."""


def iter_parts(
    items: Iterable[tuple[Clip, SeenFrame] | ClipEnd], n_phases: dict[str, int]
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
        clip, seen = item
        track = rows.follow(seen)
        for phase in seen.phases:
            rows.add(seen, phase, track)
            if rows.n_frames >= PART_FRAMES or rows.n_faces >= PART_FACES:
                yield rows.gather(clip, n_phases[clip.split])


class _Rows:
    """The rows of one clip that no part holds yet, and who its people are."""

    def __init__(self) -> None:
        self._tracker = Tracker()
        self._seen: list[tuple[SeenFrame, int, NDArray[np.int32]]] = []
        """A row: the frame, its phase, the tracks of its faces."""
        self.n_faces = 0
        """Of these rows."""
        self._decoders: dict[str, None] = {}
        """In the order in which they decoded the clip; the last part names them all."""

    @property
    def n_frames(self) -> int:
        return len(self._seen)

    def follow(self, seen: SeenFrame) -> NDArray[np.int32]:
        """The tracks of a frame's faces; call it once for each frame of the clip, in order."""
        return self._tracker.follow(seen.faces.box_px, seen.pts_s)

    def add(self, seen: SeenFrame, phase: int, track: NDArray[np.int32]) -> None:
        """Add the row of one tick of a frame."""
        self._decoders[seen.decoder] = None
        self._seen.append((seen, phase, track))
        self.n_faces += len(track)

    def gather(self, clip: Clip, n_phases: int) -> ClipFeatures:
        """The rows as a part of the clip; they are forgotten, the people are not."""
        frames = [seen for seen, _, _ in self._seen]
        faces = [seen.faces for seen in frames]
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
            pts_s=np.array([seen.pts_s for seen in frames]),
            phase=np.array([phase for _, phase, _ in self._seen], dtype=np.int16),
            context_7x7=np.stack([seen.context_7x7 for seen in frames]),
            context_2x2=np.stack([seen.context_2x2 for seen in frames]),
            face_frame=np.repeat(np.arange(len(frames)), [len(f.score) for f in faces]).astype(
                np.int32
            ),
            box_px=np.concatenate([f.box_px for f in faces]),
            score=np.concatenate([f.score for f in faces]),
            landmarks_px=np.concatenate([f.landmarks_px for f in faces]),
            track=np.concatenate([track for _, _, track in self._seen]),
            face_vector=np.concatenate([seen.face_vector for seen in frames]),
            face_map=_join_maps(frames),
        )
        self._seen, self.n_faces = [], 0
        return part


def _join_maps(frames: list[SeenFrame]) -> NDArray[np.float16] | None:
    maps = [seen.face_map for seen in frames if seen.face_map is not None]
    return np.concatenate(maps) if maps else None
