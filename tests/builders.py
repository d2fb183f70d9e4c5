"""Small, seeded things for tests: a clip's features, a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from skimage import data

from features.contracts import MEC_CLASSES, ClipFeatures
from features.store.writer import write_store


def clip_features(clip_id: str = "a", *, n_frames: int = 3, **changed: Any) -> ClipFeatures:
    """A clip with one face a frame, its values drawn from a seed made of its id."""
    rng = np.random.default_rng(list(clip_id.encode()))
    n_faces = changed.pop("n_faces", n_frames)
    face_frame = np.sort(np.arange(n_faces) % max(n_frames, 1))
    values: dict[str, Any] = {
        "clip_id": clip_id,
        "label": "happy",
        "split": "train",
        "pts_s": np.arange(n_frames) / 5,
        "phase": np.zeros(n_frames, dtype=np.int16),
        "context_2x2": rng.random((n_frames, 512, 2, 2)).astype(np.float16),
        "context_7x7": np.tile(rng.random((n_frames, 512, 1, 1)).astype(np.float16), (1, 1, 7, 7)),
        "face_frame": face_frame.astype(np.int32),
        "box_px": rng.random((n_faces, 4)).astype(np.float32),
        "score": rng.random(n_faces).astype(np.float32),
        "landmarks_px": rng.random((n_faces, 5, 2)).astype(np.float32),
        "track": np.zeros(n_faces, dtype=np.int32),
        "face_vector": rng.random((n_faces, 512)).astype(np.float16),
    }
    return ClipFeatures(**(values | changed))


def small_store(path: Path, n_clips: int = 6, **changed: Any) -> Path:
    """A store of clips c0, c1 ... whose labels and splits go round."""
    clips = [
        clip_features(
            f"c{i}", label=MEC_CLASSES[i % 8], split=("train", "val", "test")[i % 3], **changed
        )
        for i in range(n_clips)
    ]
    return write_store(path, clips, classes=MEC_CLASSES, fingerprint="test")


def write_face_video(
    path: Path, *, n_frames: int, shift_px: int = 0, face_found: bool = True
) -> Path:
    """An h264 clip of 160x120 at 25 fps: the astronaut's face drifting over grey, or grey only."""
    face = data.astronaut()[58:178, 164:284]  # (120, 120, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for i in range(n_frames):
            rgb = np.full((120, 160, 3), 96, dtype=np.uint8)
            if face_found:
                left = 4 + (shift_px + i) % 36
                rgb[:, left : left + 120] = face
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    return path
