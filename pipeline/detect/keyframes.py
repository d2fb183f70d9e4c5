"""Finds faces in a chunk of a clip by the whole cascade on few frames, carried to the others.

P-Net over the pyramid is most of the work of detection. Here it runs on the middle frame of each
shot in the chunk; from there faces are carried forward and backward, frame by frame: R-Net and
O-Net judge boxes around where a face was. A frame that differs much from the middle one, or that
has lost a face, gets the whole cascade.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from features.contracts import TICK_RATE_HZ, Faces
from pipeline.detect.boxes import Boxes
from pipeline.detect.mtcnn import FaceDetector

_CHUNK_S = 2.0
_MOST_FRAMES = 15
_CUT_LEVELS = 24.0
"""Mean change of grey levels from one frame to the next that is a cut."""
_CHANGED_LEVELS = 20.0
"""Mean change since the middle frame from which on a frame gets the whole cascade."""
_THUMB_PX = 32
_MOVES = np.array([
    (0, 0, 1), (-0.15, 0, 1), (0.15, 0, 1), (0, -0.15, 1), (0, 0.15, 1), (0, 0, 0.82), (0, 0, 1.22),
], dtype=np.float32)  # fmt: skip
"""[M, 3] Where a face may have gone: shifts in box sides, and a factor of the side."""


def count_chunk_frames(n_phases: int) -> int:
    """Frames of a chunk: two seconds of a clip, but no more than memory allows."""
    return min(round(_CHUNK_S * TICK_RATE_HZ * n_phases), _MOST_FRAMES)


def find_faces_tracked(detector: FaceDetector, rgb: Tensor, min_face_px: int) -> Faces:
    """The faces of a chunk; see the module. Arguments and result as ``FaceDetector.find_faces``."""
    thumbs = _make_thumbs(rgb)
    middle = choose_middles(thumbs)
    frames = np.arange(len(rgb))
    changed = np.abs(thumbs - thumbs[middle]).mean(axis=1) > _CHANGED_LEVELS
    key_frames = frames[(middle == frames) | changed]
    found: dict[int, Faces] = {}

    def run_cascade(at: NDArray[np.intp]) -> None:
        faces = detector.find_faces(rgb[at], min_face_px)
        found.update({int(i): _select_frame(faces, row) for row, i in enumerate(at)})

    run_cascade(key_frames)
    others = np.setdiff1d(frames, key_frames)
    distance = np.abs(others - middle[others])
    for nearest in np.unique(distance):
        at = others[distance == nearest]
        before = at + np.sign(middle[at] - at)
        boxes = [_move_boxes(found[int(j)], i) for i, j in zip(at, before, strict=True)]
        faces = detector.refine(rgb, np.concatenate(boxes))
        found.update({int(i): _select_frame(faces, int(i)) for i in at})
        lost = [
            len(found[int(i)].frame) < len(found[int(j)].frame)
            for i, j in zip(at, before, strict=True)
        ]
        if any(lost):
            run_cascade(at[lost])
    return _join([found[i] for i in range(len(rgb))])


def choose_middles(thumbs: NDArray[np.float32]) -> NDArray[np.intp]:
    """The middle frame of each frame's shot.

    Args:
        thumbs: [F, P] Grey levels of each frame, a few pixels.

    Returns:
        [F] Rows of frames; a shot ends where the picture changes at once.
    """
    cuts = np.abs(np.diff(thumbs, axis=0)).mean(axis=1) > _CUT_LEVELS
    shots = np.split(np.arange(len(thumbs)), np.flatnonzero(cuts) + 1)
    return np.concatenate([np.full(len(shot), shot[len(shot) // 2]) for shot in shots])


def _make_thumbs(rgb: Tensor) -> NDArray[np.float32]:
    """[F, H, W, 3] -> [F, at most 32 * 32] green levels at regular places."""
    rows, columns = (max(1, side // _THUMB_PX) for side in rgb.shape[1:3])
    sampled = rgb[:, rows // 2 :: rows, columns // 2 :: columns, 1]
    thumbs: NDArray[np.float32] = sampled.flatten(1).float().cpu().numpy()
    return thumbs


def _move_boxes(faces: Faces, frame: np.intp) -> Boxes:
    """Square boxes around where faces were, as proposals for another frame: [A * M, 6]."""
    side = (faces.box_px[:, 2:] - faces.box_px[:, :2]).max(axis=1)  # (A,)
    centre = (faces.box_px[:, :2] + faces.box_px[:, 2:]) / 2
    new_side = side[:, None] * _MOVES[:, 2]  # (A, M)
    new_centre = centre[:, None] + side[:, None, None] * _MOVES[:, :2]
    half = new_side[..., None] / 2
    boxes = np.concatenate([new_centre - half, new_centre + half], axis=2).reshape(-1, 4)
    n = len(boxes)
    return np.concatenate(
        [np.full((n, 1), frame), boxes, np.ones((n, 1))], axis=1, dtype=np.float32
    )


def _select_frame(faces: Faces, frame: int) -> Faces:
    return faces.choose(np.flatnonzero(faces.frame == frame))


def _join(by_frame: list[Faces]) -> Faces:
    """The faces of consecutive frames as one table."""
    frame = np.repeat(np.arange(len(by_frame)), [len(f.frame) for f in by_frame])
    return Faces(
        frame=frame.astype(np.int32),
        box_px=np.concatenate([f.box_px for f in by_frame]),
        score=np.concatenate([f.score for f in by_frame]),
        landmarks_px=np.concatenate([f.landmarks_px for f in by_frame]),
    )
