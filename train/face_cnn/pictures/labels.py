"""What people called the emotion of a face, as classes, training targets and majority labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SYNONYMS = {
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "disgusted": "disgust",
    "fearful": "fear",
    "scared": "fear",
    "afraid": "fear",
}
"""Other names of an emotion -> the name that the networks use."""
_NOT_EMOTIONS = ("unknown", "nf")
"""Votes of FER+ that name no emotion: *not clear* and *no face*."""


def canonical_emotion(name: str) -> str:
    """The name that face CNNs use for an emotion: ``Happy`` and ``happiness`` are one."""
    lowered = name.strip().lower()
    return _SYNONYMS.get(lowered, lowered)


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceLabels:
    """The emotions that people saw in N pictures."""

    classes: tuple[str, ...]
    target: NDArray[np.float32]
    """[N, K] Share of the votes for each class; a row of zeros where the picture is not usable."""
    label: NDArray[np.int64]
    """[N] The class that more than half of the voters chose, or -1."""


def label_votes(votes: NDArray[Any], names: Sequence[str]) -> FaceLabels:
    """Votes [N, V] become targets and majority labels, as the authors of FER+ do it.

    A picture that most people found unclear has no target. A vote that nobody shares is an
    outlier and does not count as target, where another class has more (Barsoum et al. 2016).
    """
    counts = votes.astype(np.float32)
    emotions = [i for i, name in enumerate(names) if name.lower() not in _NOT_EMOTIONS]
    clear = np.isin(counts.argmax(1), emotions) & (counts.sum(1) > 0)
    majority = counts.max(1) > counts.sum(1) / 2
    kept = counts[:, emotions]
    label = np.where(clear & majority, kept.argmax(1), -1)
    shared = np.where(kept > 1, kept, 0)
    kept = np.where(shared.sum(1, keepdims=True) > 0, shared, kept)
    target = kept / np.maximum(kept.sum(1, keepdims=True), 1) * clear[:, None]
    classes = tuple(canonical_emotion(names[i]) for i in emotions)
    return FaceLabels(classes=classes, target=target, label=label)


def label_names(names: Sequence[str]) -> FaceLabels:
    """One name a picture becomes target and label; an empty one, or one of no emotion, is none."""
    names = [canonical_emotion(name) for name in names]
    classes = tuple(sorted(set(names) - {"", *_NOT_EMOTIONS}))
    label = np.array([classes.index(n) if n in classes else -1 for n in names], dtype=np.int64)
    target = np.eye(len(classes) + 1, dtype=np.float32)[label, : len(classes)]
    return FaceLabels(classes=classes, target=target, label=label)
