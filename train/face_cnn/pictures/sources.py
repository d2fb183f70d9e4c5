"""Sets of labelled face images side by side: each has labels, sizes and splits of its own."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.errors import ManifestError
from train.face_cnn.pictures.files import read_face_images
from train.face_cnn.pictures.images import FaceImages
from train.face_cnn.pictures.twins import find_twins

_log = logging.getLogger(__name__)

EMOTIONS = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt",
)  # fmt: skip
"""The order of classes that are among them; others follow, by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceSource:
    """One set of pictures, labelled by one group of people."""

    name: str
    images: FaceImages
    rows: NDArray[np.intp]
    """Pictures to train on."""


def read_face_sources(paths: Sequence[Path], labels: str = "") -> list[FaceSource]:
    """Read sets of labelled face images, and leave out of training what is held out elsewhere.

    A file or folder is one set, named after it; a CSV (or an archive with one) that has a column
    ``source`` is one for each of its values. A train picture that is a near copy of a val or test
    picture, of its own set or another's, is not trained on.

    Args:
        paths: Each as of ``train.face_cnn.pictures.files.read_face_images``.
        labels: The array or column with the labels, in all of them.

    Raises:
        ManifestError: they cannot be read, two sets have one name, or one has no train picture.
    """
    found = read_face_sets(paths, labels)
    held_out = find_twins(list(found.values()))
    sources = []
    for (name, images), twins in zip(found.items(), held_out, strict=True):
        rows = np.setdiff1d(images.train_rows(), twins)
        n_train = int((images.split == "train").sum())
        _log.info("%s: %d of %d train pictures are used", name, len(rows), n_train)
        if not len(rows):
            raise ManifestError(f"{name}: none of its {n_train} train pictures can be used.")
        sources.append(FaceSource(name=name, images=images, rows=rows))
    return sources


def read_face_sets(paths: Sequence[Path], labels: str = "") -> dict[str, FaceImages]:
    """The same sets by name, all of their pictures.

    Raises:
        ManifestError: they cannot be read, or two sets have one name.
    """
    found: dict[str, FaceImages] = {}
    for path in paths:
        images = read_face_images(path, labels)
        names = np.array([clean_name(name) or clean_name(path.stem) for name in images.source])
        for name in dict.fromkeys(names.tolist()):
            if name in found:
                raise ManifestError(f"{path}: a second set of images named {name}. Rename one.")
            found[name] = images.choose(np.flatnonzero(names == name))
            images = replace(images, n_broken=0)  # counted once, with the first set of the file
    return found


def join_classes(sources: Sequence[FaceSource]) -> tuple[str, ...]:
    """All classes of some sets: ``EMOTIONS`` first, then others by name."""
    names = {name for source in sources for name in source.images.classes}
    return (*(n for n in EMOTIONS if n in names), *sorted(names - set(EMOTIONS)))


def hash_sources(sources: Sequence[FaceSource]) -> str:
    """The hash of all that training reads of them."""
    content = hashlib.sha256()
    for source in sources:
        content.update(source.name.encode())
        content.update(source.images.content_sha256().encode())
        content.update(np.ascontiguousarray(source.rows, dtype=np.int64).data)
    return content.hexdigest()


def clean_name(name: str) -> str:
    """The name of a set as networks keep it: small letters, digits and _."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
