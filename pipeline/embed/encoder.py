"""The networks of stage one: decoded frames -> faces and crops -> the features of all networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.contracts import CONTEXT_CROP_PX, CONTEXT_STREAM, FACE_STREAM, Faces
from features.networks.context_cnn import ContextCNN
from features.networks.encoders import EncoderSpec
from features.networks.face_network import FACE_BATCH, FaceNetwork, read_face_network
from features.networks.runtime import Network, choose_batch, compile_network, run_padded
from pipeline.config import ExtractConfig
from pipeline.decode.sampling import DecodedFrame, FrameRecord
from pipeline.detect.keyframes import count_chunk_frames, find_faces_tracked
from pipeline.detect.mtcnn import FaceDetector
from pipeline.embed.crops import FaceCut, crop_context, crop_faces, cut_faces
from pipeline.embed.streams import StreamCrops, StreamEncoders, StreamRows


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectedFrame:
    """A frame after detection, with the crops that are the CNNs' input."""

    record: FrameRecord
    faces: Faces
    """A faces, all of this frame, largest first."""
    context_crop: Tensor | None
    """[3, 224, 224] float32, 0..255; None where there is no context CNN."""
    face_cuts: Sequence[FaceCut | Tensor]
    """A cuts: what ``crop_faces`` makes the face CNN's input of; none where there is none."""
    stream_crops: StreamCrops
    """The input of other encoders."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedFrame:
    """A frame's features."""

    record: FrameRecord
    faces: Faces
    context_7x7: NDArray[np.float16] | None
    """[512, 7, 7]; None where there is no context CNN."""
    context_2x2: NDArray[np.float16] | None
    """[512, 2, 2]; the same."""
    face: FaceRows
    streams: StreamRows
    """Of other encoders."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceRows:
    """What the face network gave for A faces."""

    vector: NDArray[np.float16] | None
    """[A, D]; of the shipped face CNN D is 512. None where there is no face network."""
    map: NDArray[np.float16] | None
    """[A, C, h, w], where the config asks for it."""
    expression: NDArray[np.float16] | None
    """[A, K], where the network has a classifier."""

    def choose(self, rows: slice) -> FaceRows:
        """Those of some of the faces."""
        return FaceRows(
            vector=None if self.vector is None else self.vector[rows],
            map=None if self.map is None else self.map[rows],
            expression=None if self.expression is None else self.expression[rows],
        )


class FrameEncoder:
    """Holds the networks of stage one on one device; several threads may use it at once."""

    def __init__(
        self,
        config: ExtractConfig,
        face_weights: Path,
        device: torch.device,
        n_threads: int,
        encoders: Sequence[EncoderSpec] = (),
    ) -> None:
        """Loads the networks.

        Args:
            config: What decides the features.
            face_weights: Of the face network.
            device: Where they run.
            n_threads: Threads that will use them at once.
            encoders: Other encoders, each of which makes a stream. One named ``context`` takes the
                place of the context CNN, one named ``face`` that of the face network, which is then
                not loaded.

        Raises:
            WeightsError: weights are missing or not the expected ones, an encoder breaks a rule.
            ConfigError: an encoder that this device cannot run.
        """
        self.config = config
        self.device = device
        self.batch = choose_batch(device)
        self.detector = FaceDetector(
            thresholds=config.thresholds,
            device=device,
            precision=config.precision,
            n_threads=n_threads,
        )
        names = {spec.name for spec in encoders}
        self.context_cnn: Network | None = None
        if CONTEXT_STREAM not in names:
            self.context_cnn = compile_network(
                ContextCNN(config.context_weights),
                torch.zeros(1, 3, CONTEXT_CROP_PX, CONTEXT_CROP_PX),
                device=device,
                precision=config.precision,
                n_threads=n_threads,
            )
        self.face_network: FaceNetwork | None = None
        if FACE_STREAM not in names:
            self.face_network = read_face_network(
                face_weights, device=device, precision=config.precision, n_threads=n_threads
            )
        self.streams = StreamEncoders(encoders, device, config.precision, n_threads)

    def chunk_frames(self, split: str) -> int:
        """Frames of a clip of this split to give to ``detect`` at once, at most."""
        if self.config.detect == "tracked":
            return count_chunk_frames(self.config.n_phases(split))
        return 32 if self.device.type == "cuda" else 4

    @torch.inference_mode()
    def detect(self, frames: Sequence[DecodedFrame]) -> list[DetectedFrame]:
        """Find the faces of a chunk of a clip and cut out the crops for the CNNs.

        Args:
            frames: Of one size, in time order. What is found is a function of the chunk alone.
        """
        rgb = torch.stack([torch.as_tensor(frame.rgb) for frame in frames]).to(self.device)
        min_face_px = self.config.min_face_px(rgb.shape[1])
        if self.config.detect == "tracked":
            faces = find_faces_tracked(self.detector, rgb, min_face_px)
        else:
            faces = self.detector.find_faces(rgb, min_face_px)
        context_crops = None if self.context_cnn is None else crop_context(rgb)
        cuts = None if self.face_network is None else cut_faces(rgb, faces)
        stream_crops = self.streams.crop(rgb, faces)
        rows = [np.flatnonzero(faces.frame == i) for i in range(len(frames))]
        return [
            DetectedFrame(
                record=frame.record,
                faces=faces.choose(rows[i]),
                context_crop=None if context_crops is None else context_crops[i],
                face_cuts=[] if cuts is None else [cuts[row] for row in rows[i]],
                stream_crops=stream_crops[i],
            )
            for i, frame in enumerate(frames)
        ]

    @torch.inference_mode()
    def embed(self, frames: Sequence[DetectedFrame]) -> list[EmbeddedFrame]:
        """Run the networks on crops; the frames may be of several clips, at least one.

        Raises:
            ClipError: an encoder gave values that a store cannot keep.
        """
        pooled_7x7: NDArray[np.float16] | None = None
        pooled_2x2: NDArray[np.float16] | None = None
        if self.context_cnn is not None:
            crops = [frame.context_crop for frame in frames if frame.context_crop is not None]
            pooled = run_padded(
                self.context_cnn, torch.stack(crops), batch=self.batch, multiple=self.batch
            )
            pooled_7x7, pooled_2x2 = map(_to_float16, pooled)
        faces = self._embed_faces([cut for frame in frames for cut in frame.face_cuts])
        streams = self.streams.embed([frame.stream_crops for frame in frames])
        embedded, first = [], 0
        for i, frame in enumerate(frames):
            rows = slice(first, first + len(frame.face_cuts))
            first = rows.stop
            embedded.append(
                EmbeddedFrame(
                    record=frame.record,
                    faces=frame.faces,
                    context_7x7=None if pooled_7x7 is None else pooled_7x7[i],
                    context_2x2=None if pooled_2x2 is None else pooled_2x2[i],
                    face=faces.choose(rows),
                    streams=streams[i],
                )
            )
        return embedded

    def _embed_faces(self, cuts: Sequence[FaceCut | Tensor]) -> FaceRows:
        n_faces, network = len(cuts), self.face_network
        if network is None:
            return FaceRows(vector=None, map=None, expression=None)
        vector = np.zeros((n_faces, network.vector_size), dtype=np.float16)
        face_map = expression = None
        if self.config.face_map:
            face_map = np.zeros((n_faces, *network.map_shape), dtype=np.float16)
        if network.expressions:
            expression = np.zeros((n_faces, len(network.expressions)), dtype=np.float16)
        for first in range(0, n_faces, FACE_BATCH):
            rows = slice(first, first + FACE_BATCH)
            face = network.embed(crop_faces(cuts[rows]))
            vector[rows] = _to_float16(face.vector)
            if face_map is not None:
                face_map[rows] = _to_float16(face.map)
            if expression is not None and face.expression is not None:
                expression[rows] = _to_float16(face.expression)
        return FaceRows(vector=vector, map=face_map, expression=expression)


def _to_float16(features: Tensor) -> NDArray[np.float16]:
    half: NDArray[np.float16] = features.half().cpu().numpy()
    return half
