"""The nouns that stages hand to each other: Clip, Faces, ClipFeatures. Numpy only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEC_CLASSES = ("happy", "sad", "angry", "surprise", "disgust", "worried", "anxious", "neutral")
"""The eight classes of MEC 2017 (IV-A), in the order that every table and matrix uses."""

SPLITS: tuple[str, ...] = ("train", "val", "test")

CLIP_ID = re.compile(r"[A-Za-z0-9._-]+")

TICK_RATE_HZ = 5
"""Beats a second of the sampling clock (IV-C)."""

CONTEXT_CHANNELS = 512
FACE_VECTOR_SIZE = 512
"""Of the shipped face CNN; a store may keep vectors of another size."""
FACE_MAP_SHAPE = (512, 7, 7)
"""Of the shipped face CNN, for a crop of 128 x 128."""
RESERVED_STREAMS = frozenset({"context", "context_2x2", "context_7x7", "face", "face_map"})
"""Names that an extra stream cannot have: the store's own features, as heads ask for them."""
CONTEXT_STREAM, FACE_STREAM = "context", "face"
REPLACEABLE_STREAMS: Mapping[str, str] = {CONTEXT_STREAM: "frame", FACE_STREAM: "face"}
"""Name of a stream that may take the place of the store's own context or face features, as another
encoder made it -> what has a row of it."""
CONTEXT_CROP_PX = 224
FACE_CROP_PX = 128


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The unit of work: a video file, or the part ``start_s``..``end_s`` of one."""

    clip_id: str
    path: Path
    """Absolute, or relative to the working directory; never relative to the manifest."""
    label: str
    """A class name, or empty for a clip that is only to be predicted."""
    split: str
    subject: str = ""
    source: str = ""
    start_s: float | None = None
    end_s: float | None = None
    line: int = 0
    """Line of the manifest that the clip stands on, for messages."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Columns of the manifest that this project does not know, kept as they are."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"clip {self.clip_id}: split {self.split!r} is not one of {SPLITS}")
        if self.start_s is not None and self.end_s is not None and self.start_s >= self.end_s:
            raise ValueError(f"clip {self.clip_id}: start_s {self.start_s} >= end_s {self.end_s}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Faces:
    """The faces found in some frames, one row per detection, ordered by frame, then area."""

    frame: NDArray[np.int32]
    """[A] Row of the frame that each face was found in, non-decreasing."""
    box_px: NDArray[np.float32]
    """[A, 4] Left, top, right, bottom in pixels of the displayed frame; may leave the frame."""
    score: NDArray[np.float32]
    """[A] O-Net's probability of a face, 0..1."""
    landmarks_px: NDArray[np.float32]
    """[A, 5, 2] x, y of left eye, right eye, nose, left and right mouth corner (viewer's left)."""

    def __post_init__(self) -> None:
        n = len(self.frame)
        if self.box_px.shape != (n, 4) or self.score.shape != (n,):
            raise ValueError(f"Faces: {n} rows but boxes {self.box_px.shape}")
        if self.landmarks_px.shape != (n, 5, 2):
            raise ValueError(f"Faces: {n} rows but landmarks {self.landmarks_px.shape}")
        if n and np.any(np.diff(self.frame) < 0):
            raise ValueError("Faces: rows are not ordered by frame")

    def choose(self, rows: NDArray[np.intp]) -> Faces:
        """Some of the faces. rows: [N] increasing."""
        return Faces(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipFeatures:
    """All that the store keeps of one clip: what stage one writes and stage two reads."""

    clip_id: str
    label: str
    split: str
    subject: str = ""
    source: str = ""
    sha256: str = ""
    """SHA-256 of the clip's file when it was decoded."""
    decoder: str = ""
    """Who decoded it and from what: ``software:h264``, ``nvdec:hevc`` (a GPU), or, where a GPU gave
    up on the way, ``nvdec:h264, software:h264``."""
    start_s: float | None = None
    end_s: float | None = None
    """The part of the file that the clip is, where it is not the whole."""
    n_phases: int = 1
    """Phases of the clock that the clip was sampled at (IV-C)."""
    extra: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)
    """What was unusual about its film: name (FORMAT.md) -> count or seconds."""

    pts_s: NDArray[np.float64]
    """[F] Presentation time of each frame, seconds from the clip's start, non-decreasing."""
    phase: NDArray[np.int16]
    """[F] Phase of the clock that chose the frame; all 0 where P = 1."""
    context_2x2: NDArray[np.float16] | None
    """[F, 512, 2, 2], or None where the store lacks it: then there may be a stream ``context``."""
    context_7x7: NDArray[np.float16] | None
    """[F, 512, 7, 7], or None where the store lacks it or the reader did not ask for it."""

    face_frame: NDArray[np.int32]
    """[A] Row of this clip's frame (0..F-1) that each face was found in, non-decreasing."""
    box_px: NDArray[np.float32]
    """[A, 4] Left, top, right, bottom in pixels of the displayed frame."""
    score: NDArray[np.float32]
    """[A]"""
    landmarks_px: NDArray[np.float32]
    """[A, 5, 2]"""
    track: NDArray[np.int32]
    """[A] -1, or a number that follows one person from frame to frame within the clip."""
    face_vector: NDArray[np.float16] | None
    """[A, D], of the shipped face CNN D is 512; None where the store lacks it, and with it the map
    and expressions: then there may be a stream ``face``."""
    face_map: NDArray[np.float16] | None = None
    """[A, C, h, w], or None where the store lacks it or the reader did not ask for it."""
    face_expression: NDArray[np.float16] | None = None
    """[A, K] Probability of each of the store's expressions, or None where it lacks them."""
    streams: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    """Name -> [F, D]: features of each frame beside the store's own, for example ``audio``."""
    face_streams: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    """Name -> [A, D]: the same of each face. A name is that of a frame's stream or a face's."""

    @property
    def status(self) -> str:
        """``ok``, or ``no-face`` where no frame of the clip has a face."""
        return "ok" if self.n_faces else "no-face"

    @property
    def n_frames(self) -> int:
        return len(self.pts_s)

    @property
    def n_faces(self) -> int:
        return len(self.face_frame)

    def __post_init__(self) -> None:
        f, a = self.n_frames, self.n_faces
        expected = {
            "phase": (f,),
            "context_2x2": (f, CONTEXT_CHANNELS, 2, 2),
            "context_7x7": (f, CONTEXT_CHANNELS, 7, 7),
            "box_px": (a, 4),
            "score": (a,),
            "landmarks_px": (a, 5, 2),
            "track": (a,),
        }
        for name, shape in expected.items():
            found = getattr(self, name)
            if found is not None and found.shape != shape:
                raise ValueError(f"clip {self.clip_id}: {name} is {found.shape}, not {shape}")
        vector = self.face_vector
        if vector is not None and (vector.ndim != 2 or len(vector) != a):
            raise ValueError(f"clip {self.clip_id}: face_vector is {vector.shape}, not ({a}, D)")
        if self.face_map is not None and (self.face_map.ndim != 4 or len(self.face_map) != a):
            raise ValueError(
                f"clip {self.clip_id}: face_map is {self.face_map.shape}, not ({a}, C, h, w)"
            )
        if self.face_expression is not None:
            self._check_rows("face_expression", self.face_expression, a, "a face")
        if twice := self.streams.keys() & self.face_streams.keys():
            raise ValueError(
                f"clip {self.clip_id}: the stream {min(twice)} is of frames and of faces"
            )
        own = {CONTEXT_STREAM: self.context_2x2, FACE_STREAM: self.face_vector}
        for rows, streams, n in (("frame", self.streams, f), ("face", self.face_streams, a)):
            for name, values in streams.items():
                check_beside_name(name, rows)
                if own.get(name) is not None:
                    raise ValueError(f"clip {self.clip_id}: it has a stream {name} beside its own")
                self._check_rows(f"stream {name}", values, n, f"a {rows}")
        if a and (self.face_frame.min() < 0 or self.face_frame.max() >= f):
            raise ValueError(f"clip {self.clip_id}: a face points outside its {f} frames")
        if not np.isfinite(self.pts_s).all():
            raise ValueError(f"clip {self.clip_id}: a frame's time is not a number")
        if np.any(np.diff(self.pts_s) < 0) or np.any(np.diff(self.face_frame) < 0):
            raise ValueError(f"clip {self.clip_id}: rows are not in time order")

    def _check_rows(self, name: str, values: NDArray[np.float16], n: int, row: str) -> None:
        if values.ndim != 2 or len(values) != n or values.dtype != np.float16:
            raise ValueError(
                f"clip {self.clip_id}: {name} is {values.dtype} {values.shape}, not "
                f"float16 ({n}, values {row})"
            )


def check_stream_name(name: str) -> None:
    """Raise ValueError unless an extra stream may have this name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED_STREAMS:
        raise ValueError(
            f"stream {name!r}: a name is small letters, digits and _, begins with a letter, and "
            f"is none of {', '.join(sorted(RESERVED_STREAMS))}"
        )


def check_beside_name(name: str, rows: str) -> None:
    """Raise ValueError unless a stream beside the shards may have this name.

    rows: What has a row of it, ``frame`` or ``face``.
    """
    if name not in REPLACEABLE_STREAMS:
        check_stream_name(name)
    elif rows != REPLACEABLE_STREAMS[name]:
        raise ValueError(f"stream {name}: its rows are not those of {REPLACEABLE_STREAMS[name]}s")
