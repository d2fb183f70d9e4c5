"""What the stores in tests/archives/ hold, and the command that writes one.

An archive stays as the release of its time wrote it: every later code must read it. Written once,
for a new format version, with::

    python -m tests.archived tests/archives/store-v1.bundle.xz
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from features.contracts import MEC_CLASSES, ClipFeatures
from features.store.bundle import pack_bundle
from features.store.writer import write_store
from tests.builders import clip_features

MAP_SHAPE = (512, 2, 1)
STREAMS = {"audio": 3}


def archived_clips() -> list[ClipFeatures]:
    """Two clips of every kind of data that version 1 knows, their values easily compressed."""
    return [_make_clip("first", n_frames=2, n_faces=3), _make_clip("zweiter", label="", n_faces=0)]


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
    """Write the bundle of a store with ``archived_clips``, compressed by xz."""
    with TemporaryDirectory() as folder:
        store = write_store(
            Path(folder) / "store",
            archived_clips(),
            classes=MEC_CLASSES,
            fingerprint="archive",
            config={"rate_hz": 5},
            face_map_shape=MAP_SHAPE,
            streams=STREAMS,
        )
        pack_bundle(store, Path(folder) / "bundle")
        file.write_bytes(lzma.compress((Path(folder) / "bundle").read_bytes()))


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
