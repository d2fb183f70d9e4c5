"""Small stores with streams of encoders beside their shards, of frames and of faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.contracts import ClipFeatures
from features.store.shard_format import StreamHeader
from features.store.writer import write_store
from tests.builders import clip_features

CLASSES = ("happy", "sad")
AUDIO = StreamHeader(name="audio", rows="frame", size=3, fingerprint="a" * 64, encoder={})
DINO = StreamHeader(name="dino", rows="face", size=5, fingerprint="d" * 64, encoder={})

CONTEXT = StreamHeader(name="context", rows="frame", size=6, fingerprint="c" * 64, encoder={})
CONTEXT_ROWS = replace(CONTEXT, name="rows")
FACE = StreamHeader(name="face", rows="face", size=7, fingerprint="f" * 64, encoder={})
FACE_ROWS = replace(FACE, name="looks")


def make_clip(
    number: int, *headers: StreamHeader, prefix: str = "c", **changed: Any
) -> ClipFeatures:
    """A clip of 2 to 4 frames in two phases, some with several faces, some with none.

    Each fourth clip has no face. Labels go round; of six clips three are train, two val, one test.
    """
    n_frames = 2 * (1 + number % 3)
    faces = [frame for frame in range(n_frames) for _ in range((number + frame) % 3)]
    face_frame = np.array([] if number % 4 == 3 else faces, np.int32)
    clip = clip_features(
        f"{prefix}{number:02}",
        n_frames=n_frames,
        n_faces=len(face_frame),
        face_frame=face_frame,
        phase=(np.arange(n_frames) % 2).astype(np.int16),
        n_phases=2,
        label=CLASSES[number // 2 % 2],
        split=("train", "val", "train", "test", "train", "val")[number % 6],
        **changed,
    )
    rng = np.random.default_rng(number)
    rows = {"frame": clip.n_frames, "face": clip.n_faces}
    of_rows: dict[str, dict[str, np.ndarray]] = {"frame": {}, "face": {}}
    for h in headers:
        values = rng.normal(2, 0.3, (rows[h.rows], h.size))
        of_rows[h.rows][h.name] = values.astype(np.float16)
    return replace(clip, streams=of_rows["frame"], face_streams=of_rows["face"])


def write_other_context(path: Path, n_clips: int) -> Path:
    """A store in which an encoder's stream stands in the place of the context features."""
    clips = []
    for clip in (make_clip(number, CONTEXT_ROWS) for number in range(n_clips)):
        streams = {CONTEXT.name: clip.streams[CONTEXT_ROWS.name]}
        clips.append(replace(clip, context_2x2=None, context_7x7=None, streams=streams))
    return write_streams(path, CONTEXT, clips=clips, keeps_context=False)


def write_neither(path: Path, n_clips: int, **changed: Any) -> Path:
    """A store in which encoders' streams stand in the place of the context and face features.

    changed: Of the stream ``face``.
    """
    clips = []
    face = replace(FACE, **changed)
    made = replace(FACE_ROWS, size=face.size)
    for clip in (make_clip(number, CONTEXT_ROWS, made) for number in range(n_clips)):
        own = {"context_2x2": None, "context_7x7": None, "face_vector": None}
        streams = {"context": clip.streams["rows"]}
        faces = {"face": clip.face_streams["looks"]}
        clips.append(replace(clip, **own, streams=streams, face_streams=faces))
    return write_streams(path, CONTEXT, face, clips=clips, keeps_context=False, keeps_face=False)


def write_streams(
    path: Path, *headers: StreamHeader, clips: Sequence[ClipFeatures] = (), **told: Any
) -> Path:
    """A store of these clips, or of 24 that ``make_clip`` makes. told: Arguments of write_store."""
    clips = clips or [make_clip(number, *headers) for number in range(24)]
    values = {"classes": CLASSES, "fingerprint": "test", "added_streams": headers}
    return write_store(path, clips, **(values | told))
