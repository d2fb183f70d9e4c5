"""Clips go through all steps in order, whatever goes wrong with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contracts import Clip
from features.errors import ClipError
from pipeline.decode.sampling import DecodedFrame, FrameRecord, Frames
from pipeline.embed.encoder import FrameEncoder
from pipeline.embed.streams import StreamCrops
from pipeline.inputs import InputFile
from pipeline.workers.messages import ClipEnd
from pipeline.workers.stages import StageLimits, Stages

BREAKS = ("not", "read", "decode", "detect", "embed")
"""The step at which a clip goes wrong."""


class FakeEncoder:
    """Passes frames on; the first pixel tells which clip to fail at, and where."""

    def __init__(self, n_faces: int = 1, crop_bytes: int = 1) -> None:
        self.n_faces = n_faces
        """Of each frame."""
        self.crop_bytes = crop_bytes
        """The same, for other encoders."""
        self.batches: list[int] = []
        """Frames that were embedded together."""

    def chunk_frames(self, split: str) -> int:
        return 3 if split == "train" else 2

    def detect(self, frames: Sequence[Any]) -> list[Any]:
        if any(BREAKS[frame.rgb[0, 0, 0]] == "detect" for frame in frames):
            raise RuntimeError("cannot detect")
        faces = SimpleNamespace(score=np.ones(self.n_faces))
        crops = StreamCrops(frame={"big": torch.zeros(self.crop_bytes, dtype=torch.uint8)})
        return [SimpleNamespace(**vars(f), faces=faces, stream_crops=crops) for f in frames]

    def embed(self, frames: Sequence[Any]) -> list[Any]:
        if any(BREAKS[frame.rgb[0, 0, 0]] == "embed" for frame in frames):
            raise RuntimeError("cannot embed")
        self.batches.append(len(frames))
        return list(frames)


def make_stages(
    breaks: Sequence[str],
    n_frames: Sequence[int],
    *,
    n_threads: int,
    encoder: FakeEncoder | None = None,
) -> Stages:
    def decode(clip: Clip) -> Frames:
        number = int(clip.clip_id)
        for i in range(n_frames[number]):
            rgb = np.full((2 + i % 2, 2, 3), BREAKS.index(breaks[number]), dtype=np.uint8)
            record = FrameRecord(clip=clip, pts_s=float(i), phases=(0,), decoder="fake")
            yield DecodedFrame(record=record, rgb=rgb)
        if breaks[number] == "decode":
            raise ClipError("breaks off")
        return {"repeated_frames": number}

    def prepare(clip: Clip) -> InputFile:
        if breaks[int(clip.clip_id)] == "read":
            raise PermissionError(13, "Permission denied")
        return InputFile(n_bytes=1, mtime_ns=1, sha256=f"hash {clip.clip_id}")

    limits = StageLimits(
        n_threads=n_threads, n_decoders=2, decoded_bytes=1000, chunk_bytes=60, batch_frames=4
    )
    return Stages(cast(FrameEncoder, encoder or FakeEncoder()), decode, prepare, limits)


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
    stages = make_stages(breaks, n_frames, n_threads=n_threads)
    for item in stages.iter_features(make_clips(len(clips))):
        if isinstance(item, ClipEnd):
            ends.append(item)
        else:
            record = item.record
            frames.setdefault(record.clip.clip_id, []).append(record.pts_s)
            assert int(record.clip.clip_id) == len(ends)
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


def test_large_crops_are_embedded_fewer_at_a_time() -> None:
    encoder = FakeEncoder(crop_bytes=11 << 20)
    stages = make_stages(["not"], [10], n_threads=1, encoder=encoder)
    assert sum(not isinstance(item, ClipEnd) for item in stages.iter_features(make_clips(1))) == 10
    assert encoder.batches == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("n_faces", "batches"), [(60, [4, 4, 2]), (100, [3, 3, 3, 1]), (999, [1] * 10)]
)
def test_a_crowd_is_embedded_fewer_frames_at_a_time(n_faces: int, batches: list[int]) -> None:
    encoder = FakeEncoder(n_faces)
    stages = make_stages(["not"], [10], n_threads=1, encoder=encoder)
    assert sum(not isinstance(item, ClipEnd) for item in stages.iter_features(make_clips(1))) == 10
    assert encoder.batches == batches


def test_the_reason_of_a_failure_says_what_happened() -> None:
    stages = make_stages(["decode", "embed", "read"], [2, 1, 1], n_threads=1)
    ends = [item for item in stages.iter_features(make_clips(3)) if isinstance(item, ClipEnd)]
    assert [end.failure and end.failure.reason for end in ends] == [
        "breaks off",
        "unexpected RuntimeError: cannot embed",
        "cannot be read (Permission denied)",
    ]


def test_stages_that_are_closed_early_ends_its_threads() -> None:
    stages = make_stages(["not"] * 50, [9] * 50, n_threads=2)
    items = stages.iter_features(make_clips(50))
    next(items)
    items.close()
    with pytest.raises(StopIteration):
        next(items)


def test_the_time_of_each_step_is_told() -> None:
    stages = make_stages(["not"], [3], n_threads=1)
    list(stages.iter_features(make_clips(1)))
    assert set(stages.step_s) == {"decode", "detect", "embed"}
    assert all(seconds > 0 for seconds in stages.step_s.values())
