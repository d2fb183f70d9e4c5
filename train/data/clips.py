"""Clips as sequences: the table of a split's clips, and which rows of its features a head reads.

Features of a split lie in matrices, a row a frame or face, as 16-bit floats, in memory or, where
they do not fit, on disk; a clip is two lists of row numbers. Row 0 is all zeros: it pads, and it
stands for the face of a clip without one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from features.contracts import ClipFeatures
from features.errors import ConfigError, ShardError
from train.data.matrices import DiskMatrix, Matrix, write_rows
from train.streams import Matrices

UNLABELLED = -1
"""Class number of a clip that is only to be predicted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSteps:
    """Which rows of its split's matrices a head reads of one clip at one phase, in order."""

    context: NDArray[np.int64]
    """[T] Rows of the matrices with a row a frame."""
    face: NDArray[np.int64]
    """[T] Rows of the matrices with a row a face; 0 where there is no face."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipTable:
    """The clips of one split, ordered by clip id, with their features."""

    clip_id: tuple[str, ...]
    label: NDArray[np.intp]
    """[N] Class number, or ``UNLABELLED``."""
    group: tuple[str, ...]
    """[N] Subject of each clip; the clip's own id where none is known."""
    phases: tuple[tuple[ClipSteps, ...], ...]
    """[N] Each clip's phases, at least one; evaluation reads the first."""
    features: Mapping[str, Matrix]
    """[A+1, values] with a row a face, [F+1, values] with a row a frame: ``face``, ``face_map``,
    ``context_2x2``, ``context_7x7``, and other streams by their names."""
    matrices: Matrices
    """What is in each of them."""

    def __len__(self) -> int:
        return len(self.clip_id)

    @property
    def labelled(self) -> NDArray[np.intp]:
        """Positions of the clips that have a label."""
        return np.flatnonzero(self.label != UNLABELLED)

    def choose_labelled(self) -> ClipTable:
        """The clips that have a label, on the same features."""
        kept = self.labelled
        return replace(
            self,
            clip_id=tuple(self.clip_id[i] for i in kept),
            label=self.label[kept],
            group=tuple(self.group[i] for i in kept),
            phases=tuple(self.phases[i] for i in kept),
        )


class TableBuilder:
    """Fills the table of one split, clip by clip; holds the matrices while they grow full."""

    def __init__(
        self,
        *,
        n_frames: int,
        n_faces: int,
        matrices: Matrices,
        dtype: torch.dtype,
        on_disk: Collection[str] = (),
        scratch: Path | None = None,
    ) -> None:
        """Make room for the counts given.

        Args:
            n_frames: Of all clips.
            n_faces: Of all clips.
            matrices: What is to be kept.
            dtype: What they are kept in.
            on_disk: Matrices that do not come into memory.
            scratch: The folder that takes their files; None: the system's.
        """
        self.features: dict[str, Matrix] = {}
        self.matrices = matrices
        for name, matrix in matrices.items():
            n_rows = 1 + (n_faces if matrix.rows == "face" else n_frames)
            n_values = math.prod(matrix.shape)
            self.features[name] = (
                DiskMatrix(n_rows, n_values, dtype, scratch)
                if name in on_disk
                else torch.zeros(n_rows, n_values, dtype=dtype)
            )
        self.n_frames = self.n_faces = 0
        self.rows: list[tuple[str, int, str, tuple[ClipSteps, ...]]] = []

    def add(self, clip: ClipFeatures, label: int, *, faces: str, max_time_steps: int) -> None:
        """Append a clip. Raises ShardError where it has no frame."""
        if clip.n_frames == 0:
            raise ShardError(
                f"clip {clip.clip_id}: no frame of it in the store. Run store verify, then extract."
            )
        # A phase's rows lie together: what a batch reads of a clip is one piece.
        frames = np.argsort(clip.phase, kind="stable")
        faces_by_phase = np.argsort(clip.phase[clip.face_frame], kind="stable")
        frame_at = 1 + self.n_frames + np.argsort(frames)
        face_at = 1 + self.n_faces + np.argsort(faces_by_phase)
        for name, matrix in self.features.items():
            of_faces = self.matrices[name].rows == "face"
            values = read_matrix(clip, name)[faces_by_phase if of_faces else frames]
            rows = torch.from_numpy(values.reshape(len(values), matrix.shape[1]))
            write_rows(matrix, 1 + (self.n_faces if of_faces else self.n_frames), rows)
        phases = []
        for phase in np.unique(clip.phase):
            frame, face = choose_steps(clip, int(phase), faces)
            n = max_time_steps or len(frame)
            at = np.where(face < 0, 0, np.append(face_at, 0)[face])
            phases.append(ClipSteps(context=frame_at[frame][:n], face=at[:n]))
        self.rows.append((clip.clip_id, label, clip.subject or clip.clip_id, tuple(phases)))
        self.n_frames += clip.n_frames
        self.n_faces += clip.n_faces

    def finish(self) -> ClipTable:
        """The table. Order of arrival does not matter: a resumed store trains to the same run."""
        rows = sorted(self.rows, key=lambda row: row[0])
        return ClipTable(
            clip_id=tuple(row[0] for row in rows),
            label=np.array([row[1] for row in rows], np.intp),
            group=tuple(row[2] for row in rows),
            phases=tuple(row[3] for row in rows),
            features=self.features,
            matrices=self.matrices,
        )


def read_matrix(clip: ClipFeatures, name: str) -> NDArray[np.float16]:
    """A clip's rows of one feature matrix: [A, ...] with a row a face, else [F, ...].

    Raises:
        ValueError: The clip was read without it.
    """
    own = {
        "context_2x2": clip.context_2x2,
        "context_7x7": clip.context_7x7,
        "face": clip.face_vector,
        "face_map": clip.face_map,
    }
    values = own.get(name)
    if values is None:  # "face", too, may be a stream beside the shards
        values = {**clip.streams, **clip.face_streams}.get(name)
    if values is None:
        raise ValueError(f"clip {clip.clip_id}: was read without {name}")
    return values


def choose_steps(
    clip: ClipFeatures, phase: int, faces: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the steps that a head reads of a clip at one phase of the clock (IV-B).

    ::

        frames   0      1    2      faces a b of frame 0, c of frame 2; a larger than b
        all      a b         c      each face with its frame; a frame without one gives no step
        largest  a           c      the first of each frame: faces are stored largest first
        track    b           c      if b and c are one person, and the one seen most often
        no face  -      -    -      every frame gives a step with a zero face

    ``track`` means the track with most rows in the whole clip, the earlier one among equals; where
    the phase shows nothing of it, or the store has no tracks, it means ``largest``.

    Returns:
        [T] rows of the clip's frames and [T] rows of its faces, -1 for no face; T >= 1 where the
        phase has a frame.
    """
    at_phase = np.flatnonzero(clip.phase == phase)
    rows = np.flatnonzero(clip.phase[clip.face_frame] == phase)
    if faces == "track":
        followed = rows[clip.track[rows] == _main_track(clip.track)]
        rows, faces = (followed, "all") if len(followed) else (rows, "largest")
    if faces == "largest":
        _, first = np.unique(clip.face_frame[rows], return_index=True)
        rows = rows[first]
    if len(rows) == 0:
        return at_phase.astype(np.int64), np.full(len(at_phase), -1, np.int64)
    return clip.face_frame[rows].astype(np.int64), rows.astype(np.int64)


def _main_track(track: NDArray[np.int32]) -> int:
    """The number that most rows carry; one that no row carries where there are no tracks."""
    numbers, first, counts = np.unique(track[track >= 0], return_index=True, return_counts=True)
    if len(numbers) == 0:
        return -2
    return int(numbers[np.lexsort((first, -counts))[0]])


def number_label(label: str, classes: Sequence[str], where: str) -> int:
    """The class number of a label, ``UNLABELLED`` for none.

    Raises:
        ConfigError: the label is not among the store's classes.
    """
    if not label:
        return UNLABELLED
    if label not in classes:
        raise ConfigError(
            f"{where}: label {label!r}, but the store declares {', '.join(classes)}. "
            "Correct the manifest and run extract again: features are kept."
        )
    return list(classes).index(label)


def check_train_table(table: ClipTable, classes: Sequence[str]) -> None:
    """Raise ShardError unless the clips with a label show two classes at least."""
    found = np.unique(table.label[table.labelled])
    if len(found) == 0:
        raise ShardError(
            "split train: no clip with a label. Give clips of the manifest the split train, and a "
            "label, and run extract."
        )
    if len(found) == 1:
        raise ShardError(
            f"split train: every clip is {classes[found[0]]!r}, so there is nothing to tell apart. "
            "Add clips of another class to the manifest and run extract."
        )


def check_val_table(table: ClipTable) -> None:
    """Raise ShardError unless a clip has a label: without one no epoch can be chosen."""
    if len(table.labelled) == 0:
        raise ShardError(
            "split val: no clip with a label, so no epoch can be chosen. Give some clips of the "
            "manifest the split val, and a label, and run extract."
        )
