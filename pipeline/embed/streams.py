"""Streams of a user's own encoders: crops for each encoder, and its rows of frames and faces."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.contracts import Faces
from features.networks.encoder_network import Encoder, read_encoder
from features.networks.encoders import EncoderSpec
from pipeline.embed.crops import FaceCut, crop_faces, crop_frames, cut_faces

_AT_ONCE = 32
"""Crops that are made, and embedded, at once: those of a crowd would be large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamCrops:
    """What the encoders need of one frame and its A faces."""

    frame: Mapping[str, Tensor] = field(default_factory=dict)
    """Stream -> [3, h, w] uint8, RGB."""
    faces: Mapping[str, Sequence[FaceCut | Tensor]] = field(default_factory=dict)
    """Stream -> A cuts."""

    @property
    def n_bytes(self) -> int:
        """Of the crops of the frame; those of faces come with their number."""
        return sum(crop.nbytes for crop in self.frame.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamRows:
    """What the encoders gave for one frame and its A faces."""

    frame: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    """Stream -> [D]."""
    face: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    """Stream -> [A, D]."""


class StreamEncoders:
    """Encoders of frames and faces on one device; several threads may use them at once."""

    def __init__(
        self, specs: Sequence[EncoderSpec], device: torch.device, precision: str, n_threads: int
    ) -> None:
        """Loads them. Raises WeightsError and ConfigError as ``read_encoder``."""
        loaded = [read_encoder(spec, device, precision, n_threads) for spec in specs]
        self._of_frames = [encoder for encoder in loaded if encoder.spec.rows == "frame"]
        self._of_faces = [encoder for encoder in loaded if encoder.spec.rows == "face"]

    def crop(
        self, rgb: Tensor, faces: Faces, names: Collection[str] | None = None
    ) -> list[StreamCrops]:
        """Cut out of frames what the encoders look at.

        Args:
            rgb: [F, H, W, 3] uint8.
            faces: Their ``frame`` counts rows of ``rgb``.
            names: Streams that are wanted; None: all.
        """
        frames = {
            encoder.spec.name: crop_frames(
                rgb,
                encoder.spec.height,
                encoder.spec.width,
                squeezed=encoder.spec.crop == "whole",
                dtype=torch.uint8,
            )
            for encoder in self._of_frames
            if names is None or encoder.spec.name in names
        }
        cuts = {
            encoder.spec.name: cut_faces(
                rgb,
                faces,
                encoder.spec.width,
                margin=encoder.spec.margin,
                dtype=torch.uint8,
            )
            for encoder in self._of_faces
            if names is None or encoder.spec.name in names
        }
        rows = [np.flatnonzero(faces.frame == i).tolist() for i in range(len(rgb))]
        return [
            StreamCrops(
                frame={name: crops[i] for name, crops in frames.items()},
                faces={name: [of_all[row] for row in rows[i]] for name, of_all in cuts.items()},
            )
            for i in range(len(rgb))
        ]

    def embed(self, crops: Sequence[StreamCrops]) -> list[StreamRows]:
        """The rows of the streams that each frame was cropped for; frames may be of several clips.

        Raises:
            ClipError: values that a store cannot keep.
        """
        frame: list[dict[str, NDArray[np.float16]]] = [{} for _ in crops]
        face: list[dict[str, NDArray[np.float16]]] = [{} for _ in crops]
        for encoder in self._of_frames:
            name = encoder.spec.name
            wanted = [i for i, of_frame in enumerate(crops) if name in of_frame.frame]
            values = _embed_frames(encoder, [crops[i].frame[name] for i in wanted])
            for i, row in zip(wanted, values, strict=True):
                frame[i][name] = row
        for encoder in self._of_faces:
            name = encoder.spec.name
            wanted = [i for i, of_frame in enumerate(crops) if name in of_frame.faces]
            of_faces = _embed_faces(encoder, [crops[i].faces[name] for i in wanted])
            for i, rows in zip(wanted, of_faces, strict=True):
                face[i][name] = rows
        return [StreamRows(frame=f, face=a) for f, a in zip(frame, face, strict=True)]


def _embed_frames(encoder: Encoder, crops: Sequence[Tensor]) -> NDArray[np.float16]:
    """[F, D] of F crops."""
    values = np.zeros((len(crops), encoder.spec.size), dtype=np.float16)
    for first in range(0, len(crops), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        values[rows] = encoder.embed(torch.stack(list(crops[rows]))).half().numpy()
    return values


def _embed_faces(
    encoder: Encoder, cuts: Sequence[Sequence[FaceCut | Tensor]]
) -> list[NDArray[np.float16]]:
    """For each frame [A, D] of its A faces."""
    flat = [cut for of_frame in cuts for cut in of_frame]
    values = np.zeros((len(flat), encoder.spec.size), dtype=np.float16)
    for first in range(0, len(flat), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        values[rows] = encoder.embed(crop_faces(flat[rows])).half().numpy()
    ends = np.cumsum([len(of_frame) for of_frame in cuts])
    return np.split(values, ends)[:-1]
