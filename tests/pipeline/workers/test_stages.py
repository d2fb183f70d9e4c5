"""Clips flow through all steps in order, whatever goes wrong with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contracts import Clip
from features.errors import ClipError
from pipeline.decode.sampling import ChosenFrame, Frames
from pipeline.embed.encoder import Seer
from pipeline.inputs import InputFile
from pipeline.workers.messages import ClipEnd
from pipeline.workers.stages import Flow, FlowSize

BREAKS = ("not", "read", "decode", "detect", "embed")
"""The step at which a clip goes wrong."""


class FakeSeer:
    """Passes frames on; the first pixel tells which clip to fail at, and where."""

    def __init__(self, n_faces: int = 1) -> None:
        self.n_faces = n_faces
        """Of each frame."""
        self.batches: list[int] = []
        """Frames that were embedded together."""

    def chunk_frames(self, split: str) -> int:
        return 3 if split == "train" else 2

    def look(self, frames: Sequence[Any]) -> list[Any]:
        if any(BREAKS[frame.rgb[0, 0, 0]] == "detect" for frame in frames):
            raise RuntimeError("cannot look")
        faces = SimpleNamespace(score=np.ones(self.n_faces))
        return [SimpleNamespace(**vars(frame), faces=faces) for frame in frames]

    def embed(self, frames: Sequence[Any]) -> list[Any]:
        if any(BREAKS[frame.rgb[0, 0, 0]] == "embed" for frame in frames):
            raise RuntimeError("cannot embed")
        self.batches.append(len(frames))
        return list(frames)


def make_flow(
    breaks: Sequence[str],
    n_frames: Sequence[int],
    *,
    n_threads: int,
    seer: FakeSeer | None = None,
) -> Flow:
    def decode(clip: Clip) -> Frames:
        number = int(clip.clip_id)
        for i in range(n_frames[number]):
            rgb = np.full((2 + i % 2, 2, 3), BREAKS.index(breaks[number]), dtype=np.uint8)
            yield ChosenFrame(pts_s=float(i), phases=(0,), rgb=rgb, decoder="fake")
        if breaks[number] == "decode":
            raise ClipError("breaks off")
        return {"repeated_frames": number}

    def prepare(clip: Clip) -> InputFile:
        if breaks[int(clip.clip_id)] == "read":
            raise PermissionError(13, "Permission denied")
        return InputFile(n_bytes=1, mtime_ns=1, sha256=f"hash {clip.clip_id}")

    size = FlowSize(
        n_threads=n_threads, n_decoders=2, decoded_bytes=1000, chunk_bytes=60, batch_frames=4
    )
    return Flow(cast(Seer, seer or FakeSeer()), decode, prepare, size)


def make_clips(n: int) -> list[Clip]:
    return [
        Clip(clip_id=str(i), path=Path(f"{i}.mp4"), label="", split=("train", "val")[i % 2])
        for i in range(n)
    ]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(BREAKS), st.integers(1, 9)), max_size=12),
    st.integers(1, 3),
)
def test_frames_and_failures_come_in_the_clips_order(
    clips: list[tuple[str, int]], n_threads: int
) -> None:
    breaks, n_frames = [b for b, _ in clips], [n for _, n in clips]
    frames: dict[str, list[float]] = {}
    ends: list[ClipEnd] = []
    flow = make_flow(breaks, n_frames, n_threads=n_threads)
    for item in flow.iter_features(make_clips(len(clips))):
        if isinstance(item, ClipEnd):
            ends.append(item)
        else:
            frames.setdefault(item[0].clip_id, []).append(item[1].pts_s)
            assert int(item[0].clip_id) == len(ends)
    assert [end.clip.clip_id for end in ends] == [str(i) for i in range(len(clips))]
    for number, end in enumerate(ends):
        if breaks[number] == "not":
            assert end.failure is None
            assert end.file is not None
            assert end.file.sha256 == f"hash {number}"
            assert end.notes == {"repeated_frames": number}
            assert frames[str(number)] == list(range(n_frames[number]))
        else:
            assert end.failure is not None
            assert end.failure.step == breaks[number]


@pytest.mark.parametrize(
    ("n_faces", "batches"), [(60, [4, 4, 2]), (100, [3, 3, 3, 1]), (999, [1] * 10)]
)
def test_a_crowd_is_embedded_fewer_frames_at_a_time(n_faces: int, batches: list[int]) -> None:
    seer = FakeSeer(n_faces)
    flow = make_flow(["not"], [10], n_threads=1, seer=seer)
    assert sum(isinstance(item, tuple) for item in flow.iter_features(make_clips(1))) == 10
    assert seer.batches == batches


def test_the_reason_of_a_failure_says_what_happened() -> None:
    flow = make_flow(["decode", "embed", "read"], [2, 1, 1], n_threads=1)
    ends = [item for item in flow.iter_features(make_clips(3)) if isinstance(item, ClipEnd)]
    assert [end.failure and end.failure.reason for end in ends] == [
        "breaks off",
        "unexpected RuntimeError: cannot embed",
        "cannot be read (Permission denied)",
    ]


def test_a_flow_that_is_closed_early_ends_its_threads() -> None:
    flow = make_flow(["not"] * 50, [9] * 50, n_threads=2)
    items = flow.iter_features(make_clips(50))
    next(items)
    items.close()
    with pytest.raises(StopIteration):
        next(items)


def test_the_time_of_each_step_is_told() -> None:
    flow = make_flow(["not"], [3], n_threads=1)
    list(flow.iter_features(make_clips(1)))
    assert set(flow.step_s) == {"decode", "detect", "embed"}
    assert all(seconds > 0 for seconds in flow.step_s.values())
