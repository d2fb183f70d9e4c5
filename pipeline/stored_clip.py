"""A clip as a finished shard has it: decoded again, it must have the same frames and faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.contracts import Clip
from features.errors import ClipError
from features.store.shard_reader import ClipRows, ShardIndex, read_clip_rows

if TYPE_CHECKING:  # it loads torch, which sound does without
    from pipeline.decode.sampling import FrameRecord

_SAME_TIME_S = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredClip:
    """What a shard says of a clip."""

    shard_name: str
    clip_id: str
    split: str
    sha256: str
    """Of its file."""
    n_phases: int
    start_s: float | None
    end_s: float | None
    rows: ClipRows

    def locate(self, path: Path) -> Clip:
        """The clip as it was extracted. path: of its file now."""
        return Clip(
            clip_id=self.clip_id,
            path=path,
            label="",
            split=self.split,
            start_s=self.start_s,
            end_s=self.end_s,
        )

    def find_boxes(self, pts_s: float) -> NDArray[np.float32]:
        """[A, 4] The boxes of faces in the frame of a time. Raises ClipError: there is none."""
        times = self.rows.pts_s
        first = int(np.searchsorted(times, pts_s - _SAME_TIME_S))
        if first == len(times) or times[first] > pts_s + _SAME_TIME_S:
            raise ClipError(f"{_DIFFERS}: it has a frame at {pts_s:.3f} s, the store has none")
        start, end = np.searchsorted(self.rows.face_frame, [first, first + 1])
        return self.rows.box_px[start:end]

    def check_rows(self, first: int, record: FrameRecord) -> None:
        """Raise ClipError unless the rows from ``first`` on are those of a frame."""
        rows = slice(first, first + len(record.phases))
        times = self.rows.pts_s[rows]
        is_same = self.rows.phase[rows].tolist() == [*record.phases]
        if not is_same or np.abs(times - record.pts_s).max() > _SAME_TIME_S:
            found = f"at {times[0]:.3f} s" if len(times) else "missing"
            raise ClipError(
                f"{_DIFFERS}: row {first} is at {record.pts_s:.3f} s, in the store it is {found}"
            )

    def check_end(self, n_rows: int) -> None:
        """Raise ClipError unless the clip has so many rows."""
        if n_rows != len(self.rows.pts_s):
            raise ClipError(
                f"{_DIFFERS}: it has {n_rows} rows, in the store {len(self.rows.pts_s)}"
            )


_DIFFERS = "decoded again it is not what the store has; extract it into a new store"


def read_stored_clip(index: ShardIndex, row: int) -> StoredClip:
    """A clip of a shard. Raises ShardError where the shard is damaged."""
    of_clip = {name: values[row] for name, values in index.columns.items()}
    start_s, end_s = (None if np.isnan(of_clip[n]) else of_clip[n] for n in ("start_s", "end_s"))
    return StoredClip(
        shard_name=f"shards/{index.path.name}",
        clip_id=of_clip["id"],
        split=of_clip["split"],
        sha256=of_clip["sha256"],
        n_phases=of_clip["n_phases"],
        start_s=start_s,
        end_s=end_s,
        rows=read_clip_rows(index, row),
    )
