"""What the stores in tests/archives/ hold, and the command that writes one.

An archive stays as the release of its time wrote it: every later code must read it. Written once,
for a new format version or new kinds of data, with::

    python -m tests.archived tests/archives/store-v1-lacking.bundle.xz
"""

from __future__ import annotations

import lzma
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from features.contracts import MEC_CLASSES, ClipFeatures
from features.store.bundle import pack_bundle
from features.store.shard_format import Lack, StreamHeader
from features.store.writer import write_store
from tests.added_streams import take_away
from tests.builders import clip_features

MAP_SHAPE = (512, 2, 1)
STREAMS = {"audio": 3}
EXPRESSIONS = ("joy", "怒り")
ADDED_STREAMS = (
    StreamHeader(name="places", rows="frame", size=2, fingerprint="p", encoder={"licence": "MIT"}),
    StreamHeader(name="dino", rows="face", size=5, fingerprint="d", encoder={"sha256": "0" * 64}),
)
LACKING = {"places": {"zweiter": Lack.RETRIED}, "dino": {"first": Lack.FINAL}}
VECTOR_SIZE = 3
LICENCES = {"context": "MIT, as far as is known"}
"""Of ``store-v1-face``."""


def archived_clips(archive: str) -> list[ClipFeatures]:
    """Two clips of every kind of data of their time, their values easily compressed.

    archive: ``store-v1``: what the first version 1 knew. ``store-v1-streams``: expressions, face
    vectors of another size, and streams beside the shards. ``store-v1-lacking``: the same, in which
    each clip lacks a stream (files of streams of version 2). ``store-v1-face``: an encoder's stream
    in the place of the face features; the header tells licences.
    """
    clips = [_make_clip("first", n_frames=2, n_faces=3), _make_clip("zweiter", label="", n_faces=0)]
    if archive == "store-v1":
        return clips
    if archive == "store-v1-face":
        return list(map(_replace_face, clips))
    later = [_add_later_data(clip) for clip in clips]
    return list(map(_leave_out_lacking, later)) if archive == "store-v1-lacking" else later


def _replace_face(clip: ClipFeatures) -> ClipFeatures:
    rows = np.arange(clip.n_faces, dtype=np.float16)[:, None] * np.ones(VECTOR_SIZE, np.float16)
    return replace(clip, face_vector=None, face_map=None, face_streams={"face": rows})


def _leave_out_lacking(clip: ClipFeatures) -> ClipFeatures:
    has = {name for name, lacks in LACKING.items() if clip.clip_id not in lacks}
    return replace(
        clip,
        streams={name: rows for name, rows in clip.streams.items() if name in {"audio", *has}},
        face_streams={name: rows for name, rows in clip.face_streams.items() if name in has},
    )


def _add_later_data(clip: ClipFeatures) -> ClipFeatures:
    frames = np.arange(clip.n_frames, dtype=np.float16)[:, None]
    faces = np.arange(clip.n_faces, dtype=np.float16)[:, None]
    return replace(
        clip,
        face_vector=faces + np.arange(VECTOR_SIZE, dtype=np.float16),
        face_expression=np.tile(np.array([0.25, 0.75], np.float16), (clip.n_faces, 1)),
        streams={**clip.streams, "places": frames + np.array([0.5, 1], np.float16)},
        face_streams={"dino": faces * np.ones(5, np.float16)},
    )


def _make_clip(
    clip_id: str, *, n_faces: int, n_frames: int = 1, label: str = "sad"
) -> ClipFeatures:
    frames = np.arange(1, n_frames + 1, dtype=np.float16)
    faces = np.arange(1, n_faces + 1, dtype=np.float16)
    return clip_features(
        clip_id,
        n_frames=n_frames,
        n_faces=n_faces,
        label=label,
        split="val",
        subject="演员",
        source="archive",
        sha256="0" * 64,
        decoder="software:h264",
        start_s=0.5,
        n_phases=1,
        extra={"note": "kept"},
        context_2x2=np.tile(frames[:, None, None, None], (1, 512, 2, 2)),
        context_7x7=np.tile(frames[:, None, None, None] / 2, (1, 512, 7, 7)),
        face_vector=np.tile(faces[:, None], (1, 512)),
        face_map=np.tile(faces[:, None, None, None] / 4, (1, *MAP_SHAPE)),
        streams={"audio": np.tile(frames[:, None], (1, 3))},
    )


def write_archive(file: Path) -> None:
    """Write the bundle of a store with the clips of the newest archive, compressed by xz."""
    with TemporaryDirectory() as folder:
        store = write_store(
            Path(folder) / "store",
            archived_clips("store-v1-streams"),  # some of which is taken away below
            classes=MEC_CLASSES,
            fingerprint="archive",
            config={"rate_hz": 5},
            face_map_shape=MAP_SHAPE,
            face_vector_size=VECTOR_SIZE,
            expressions=EXPRESSIONS,
            streams=STREAMS,
            added_streams=ADDED_STREAMS,
        )
        for name, lacks in LACKING.items():
            take_away(store, name, lacks)
        pack_bundle(store, Path(folder) / "bundle")
        file.write_bytes(lzma.compress((Path(folder) / "bundle").read_bytes()))


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
