"""One clip through the whole of stage one: frames -> faces -> crops -> both CNNs -> features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.context_cnn import ContextCNN
from features.contracts import FACE_VECTOR_SIZE, Clip, ClipFeatures, Faces
from features.errors import ClipError
from features.face_network import read_face_network
from pipeline.config import ExtractConfig
from pipeline.crops import crop_context, crop_faces
from pipeline.decode import ChosenFrame, iter_chosen_frames
from pipeline.detect import FaceDetector
from pipeline.memory import keep_freed_memory
from pipeline.track import Tracker

_CHUNK_PIXELS = 4_000_000
"""Frames are handled in chunks of about this many pixels: what bounds the memory of a clip."""
_CHUNK_FRAMES = 16
_CNN_BATCH = 32


class ClipSeer:
    """Holds the networks of stage one on one device."""

    def __init__(self, config: ExtractConfig, face_weights: Path, device: torch.device) -> None:
        """Raises WeightsError where a network's weights are missing or not the expected ones."""
        keep_freed_memory()
        if device.type == "cuda":  # TF32 is not the float32 that the fingerprint speaks of
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self.config = config
        self.device = device
        self.detector = FaceDetector(
            min_face_px=config.min_face_px, thresholds=config.thresholds, device=device
        )
        self.context_cnn = ContextCNN(config.context_weights).to(device)
        self.face_network = read_face_network(face_weights, device)
        self.step = "read"
        """What is being done: the ``step`` of failures.csv if it goes wrong."""

    def see(self, clip: Clip, sha256: str) -> ClipFeatures:
        """All features of a clip; a function of the clip and the config alone.

        Args:
            clip: From the manifest.
            sha256: Of the clip's file.

        Raises:
            ClipError: the clip cannot be decoded.
        """
        n_phases = self.config.n_phases(clip.split)
        parts = _Parts()
        tracker = Tracker()
        self.step = "decode"
        for chunk in _iter_chunks(iter_chosen_frames(clip, n_phases)):
            rgb = torch.stack([frame.rgb for frame in chunk]).to(self.device)
            self.step = "detect"
            faces = self.detector.find_faces(rgb)
            self.step = "embed"
            self._embed(rgb, faces, chunk, parts, tracker)
            self.step = "decode"
        return ClipFeatures(
            clip_id=clip.clip_id,
            label=clip.label,
            split=clip.split,
            subject=clip.subject,
            source=clip.source,
            sha256=sha256,
            decoder=parts.decoder,
            start_s=clip.start_s,
            end_s=clip.end_s,
            n_phases=n_phases,
            extra=clip.extra,
            **parts.joined(),
        )

    @torch.inference_mode()
    def _embed(
        self,
        rgb: Tensor,
        faces: Faces,
        chunk: list[ChosenFrame],
        parts: _Parts,
        tracker: Tracker,
    ) -> None:
        """Adds the rows of a chunk: a frame has one for each of its ticks, so do its faces."""
        context_crops, face_crops = crop_context(rgb), crop_faces(rgb, faces)
        context = [self.context_cnn(batch) for batch in torch.split(context_crops, _CNN_BATCH)]
        pooled_7x7 = _half(torch.cat([c.pooled_7x7 for c in context]))
        pooled_2x2 = _half(torch.cat([c.pooled_2x2 for c in context]))
        vector = np.zeros((0, FACE_VECTOR_SIZE), dtype=np.float16)
        face_map = np.zeros((0, *self.face_network.map_shape), dtype=np.float16)
        if len(face_crops):
            seen = [self.face_network.embed(batch) for batch in torch.split(face_crops, _CNN_BATCH)]
            vector = _half(torch.cat([s.vector for s in seen]))
            if self.config.face_map:
                face_map = _half(torch.cat([s.map for s in seen]))
        for i, frame in enumerate(chunk):
            of_frame = np.flatnonzero(faces.frame == i)
            track = tracker.follow(faces.box_px[of_frame], frame.pts_s)
            for phase in frame.phases:
                row = parts.n_frames
                parts.add("pts_s", np.array([frame.pts_s]))
                parts.add("phase", np.array([phase], dtype=np.int16))
                parts.add("context_7x7", pooled_7x7[i : i + 1])
                parts.add("context_2x2", pooled_2x2[i : i + 1])
                parts.add("face_frame", np.full(len(of_frame), row, dtype=np.int32))
                parts.add("box_px", faces.box_px[of_frame])
                parts.add("score", faces.score[of_frame])
                parts.add("landmarks_px", faces.landmarks_px[of_frame])
                parts.add("track", track)
                parts.add("face_vector", vector[of_frame])
                if self.config.face_map:
                    parts.add("face_map", face_map[of_frame])
        parts.decoder = chunk[0].decoder


class _Parts:
    """The columns of a clip while they grow."""

    def __init__(self) -> None:
        self.decoder = ""
        self._columns: dict[str, list[NDArray[np.generic]]] = {}

    @property
    def n_frames(self) -> int:
        return len(self._columns.get("pts_s", []))

    def add(self, name: str, rows: NDArray[np.generic]) -> None:
        self._columns.setdefault(name, []).append(rows)

    def joined(self) -> dict[str, Any]:
        if not self._columns:
            raise ClipError("no frame can be decoded")
        # One column at a time is joined and let go, so that a long clip is not in memory twice.
        return {name: np.concatenate(self._columns.pop(name)) for name in list(self._columns)}


def _iter_chunks(frames: Iterator[ChosenFrame]) -> Iterator[list[ChosenFrame]]:
    """Groups of frames of one size, cut by what went before in this clip only."""
    chunk: list[ChosenFrame] = []
    for frame in frames:
        height, width = frame.rgb.shape[:2]
        limit = max(1, min(_CHUNK_FRAMES, _CHUNK_PIXELS // (height * width)))
        if chunk and (len(chunk) >= limit or chunk[0].rgb.shape != frame.rgb.shape):
            yield chunk
            chunk = []
        chunk.append(frame)
    if chunk:
        yield chunk


def _half(features: Tensor) -> NDArray[np.float16]:
    half: NDArray[np.float16] = features.half().cpu().numpy()
    return half
