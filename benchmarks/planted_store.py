"""Stores with a known answer: synthetic features in which the label is planted in a chosen place.

Every frame shows a place and a mood, every face shows a sign; a clip visits each place once, in an
order of its own, and sees each of the three moods twice::

    planted in   sign of the faces    moods of the frames    label
    face         the label            each twice             the sign
    context      any                  all the label          the mood
    both         one of the places    each twice             the mood at the signed place

In ``both`` every sign is as frequent in each class, and so is every sequence of frames: neither
stream alone tells anything of the label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.contracts import CONTEXT_CHANNELS, FACE_MAP_SHAPE, ClipFeatures
from features.store.writer import write_store
from tests.builders import clip_features

CLASSES = ("happy", "sad", "angry")
N_STEPS = 6
"""Frames of a clip, one for each place."""
PLANTED = ("face", "context", "both")
PLANTED_STEP = "planted_step"
"""Column of a clip's ``extra``: in ``both``, the row of the frame that matters."""

_SHOWN_CHANNELS = 32
"""Channels, of 512, that a place, mood or sign lights up."""
_LIGHT = 4.0
"""What a channel that is lit up shows; twice that where a place and a mood share it."""
_NOISE = 0.4
"""Standard deviation of what is added to every channel."""


def write_planted_store(
    path: Path, planted: str, n_clips: Mapping[str, int], *, face_map: bool = False, seed: int = 0
) -> Path:
    """Write a store through the public writer.

    Args:
        path: Its folder.
        planted: One of ``PLANTED``.
        n_clips: Clips of each split; labels go round.
        face_map: Keep face maps too, which show what the vectors show, at every place of the map.
        seed: Of everything that is drawn.
    """
    rng = np.random.default_rng(seed)
    return write_store(
        path,
        _iter_clips(planted, n_clips, face_map, rng),
        classes=CLASSES,
        fingerprint=f"planted in {planted}, seed {seed}",
        face_map_shape=FACE_MAP_SHAPE if face_map else None,
    )


def _iter_clips(
    planted: str, n_clips: Mapping[str, int], face_map: bool, rng: np.random.Generator
) -> Iterator[ClipFeatures]:
    place, mood, sign = (_draw_patterns(rng) for _ in range(3))  # a sign for each place
    for split, n in n_clips.items():
        for i in range(n):
            label = i % len(CLASSES)
            places = rng.permutation(N_STEPS)
            moods = rng.permutation(N_STEPS) % len(CLASSES)
            step = int(rng.choice(np.flatnonzero(moods == label)))
            signed = label if planted == "face" else int(places[step])
            if planted == "context":
                moods[:] = label
            face = _add_noise(np.tile(sign[signed], (N_STEPS, 1)), rng)  # [F, 512]
            context = _add_noise(place[places] + mood[moods], rng)  # [F, 512]
            yield clip_features(
                f"{split}-{i:05}",
                n_frames=N_STEPS,
                label=CLASSES[label],
                split=split,
                extra={PLANTED_STEP: str(step)} if planted == "both" else {},
                context_2x2=_put_in_corner(context, 2),
                context_7x7=_put_in_corner(context, 7),
                face_vector=face,
                face_map=_spread(face) if face_map else None,
            )


def _draw_patterns(rng: np.random.Generator) -> NDArray[np.float64]:
    """[N_STEPS, 512]"""
    patterns = np.zeros((N_STEPS, CONTEXT_CHANNELS))
    for pattern in patterns:
        pattern[rng.choice(CONTEXT_CHANNELS, _SHOWN_CHANNELS, replace=False)] = _LIGHT
    return patterns


def _add_noise(x: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float16]:
    """Never below zero, as what a ReLU gives."""
    noisy: NDArray[np.float64] = np.maximum(x + _NOISE * rng.standard_normal(x.shape), 0)
    return noisy.astype(np.float16)


def _put_in_corner(values: NDArray[np.float16], grid: int) -> NDArray[np.float16]:
    """[F, 512] to [F, 512, grid, grid]: as if all else in the picture were dark."""
    filled = np.zeros((*values.shape, grid, grid), np.float16)
    filled[..., 0, 0] = values
    return filled


def _spread(values: NDArray[np.float16]) -> NDArray[np.float16]:
    """[A, 512] to [A, 512, 7, 7]: the same at every place."""
    return np.broadcast_to(values[..., None, None], (len(values), *FACE_MAP_SHAPE))
