"""Rows leave in parts of bounded size, however long a frame stays and however many faces it has."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from features.contracts import Clip, ClipFeatures, Faces
from pipeline.decode.sampling import FrameRecord
from pipeline.embed.encoder import EmbeddedFrame, FaceRows
from pipeline.embed.streams import StreamRows
from pipeline.inputs import InputFile
from pipeline.workers.messages import ClipEnd
from pipeline.workers.rows import iter_parts

CLIP = Clip(clip_id="a", path=Path("a.mp4"), label="", split="train")
FILE = InputFile(n_bytes=1, mtime_ns=1, sha256="0" * 64)


def embedded_frame(number: int, phases: tuple[int, ...], n_faces: int) -> EmbeddedFrame:
    """Its time and its features tell its number."""
    left = np.arange(n_faces, dtype=np.float32)[:, None] * 20
    return EmbeddedFrame(
        record=FrameRecord(clip=CLIP, pts_s=float(number), phases=phases, decoder="software:h264"),
        faces=Faces(
            frame=np.zeros(n_faces, dtype=np.int32),
            box_px=np.concatenate([left, left * 0, left + 10, left * 0 + 10], axis=1),
            score=np.ones(n_faces, dtype=np.float32),
            landmarks_px=np.zeros((n_faces, 5, 2), dtype=np.float32),
        ),
        context_7x7=np.full((512, 7, 7), number, dtype=np.float16),
        context_2x2=np.full((512, 2, 2), number, dtype=np.float16),
        face=FaceRows(
            vector=np.full((n_faces, 512), number, dtype=np.float16),
            map=np.full((n_faces, 512, 1, 1), number, dtype=np.float16),
            expression=np.full((n_faces, 8), number, dtype=np.float16),
        ),
        streams=StreamRows(
            frame={"place": np.full(3, number, dtype=np.float16)},
            face={"look": np.full((n_faces, 2), number, dtype=np.float16)},
        ),
    )


def make_parts(frames: Sequence[EmbeddedFrame]) -> list[ClipFeatures]:
    items = [*frames, ClipEnd(clip=CLIP, file=FILE)]
    *parts, end = iter_parts(items, {"train": 5})
    assert isinstance(end, ClipEnd)
    return [part for part in parts if isinstance(part, ClipFeatures)]


@pytest.mark.parametrize(
    ("n_ticks", "n_faces", "sizes"),
    [
        pytest.param([1] * 600, 1, [256, 256, 88], id="many frames"),
        pytest.param([600], 1, [256, 256, 88], id="one frame that stays"),
        pytest.param([255, 1, 300, 212], 0, [256, 256, 256], id="frames that end with a part"),
        pytest.param([3, 2, 5], 300, [4, 4, 2], id="a crowd"),
        pytest.param([2, 1], 5000, [1, 1, 1], id="a crowd that fills a part alone"),
    ],
)
def test_parts_are_bounded_and_hold_every_tick_once(
    n_ticks: list[int], n_faces: int, sizes: list[int]
) -> None:
    phases = [tuple((i + k) % 5 for k in range(n)) for i, n in enumerate(n_ticks)]
    parts = make_parts([embedded_frame(i, phases[i], n_faces) for i in range(len(n_ticks))])
    assert [part.n_frames for part in parts] == sizes
    number = np.repeat(np.arange(len(n_ticks)), n_ticks)
    np.testing.assert_array_equal(np.concatenate([part.pts_s for part in parts]), number)
    found = np.concatenate([part.phase for part in parts])
    np.testing.assert_array_equal(found, np.concatenate(phases))
    rows = [vars(p) | {"place": p.streams["place"], "look": p.face_streams["look"]} for p in parts]
    of_frames, of_faces = ("context_7x7", "place"), ("face_vector", "face_map", "look")
    sizes_of = dict.fromkeys(of_frames, 1) | dict.fromkeys((*of_faces, "face_expression"), n_faces)
    for name, each in sizes_of.items():
        values = np.concatenate([row[name] for row in rows])
        first = values[(slice(None), *[0] * (values.ndim - 1))]  # of each row
        np.testing.assert_array_equal(first, np.repeat(number, each))
    for part in parts:
        frames = np.arange(part.n_frames)
        np.testing.assert_array_equal(part.face_frame, np.repeat(frames, n_faces))
        still = np.tile(np.arange(n_faces), part.n_frames)  # nobody moves
        np.testing.assert_array_equal(part.track, still)


def test_a_frame_of_a_hundred_thousand_ticks_takes_the_memory_of_any() -> None:
    frame = embedded_frame(0, tuple(k % 5 for k in range(100_000)), 1)
    n_rows = 0
    tracemalloc.start()
    try:
        for item in iter_parts([frame, ClipEnd(clip=CLIP, file=FILE)], {"train": 5}):
            n_rows += item.n_frames if isinstance(item, ClipFeatures) else 0
        assert tracemalloc.get_traced_memory()[1] < 50e6  # all rows: 5,000e6
    finally:
        tracemalloc.stop()
    assert n_rows == 100_000
