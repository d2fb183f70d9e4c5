"""Reads labelled face images: an .npz, pictures that a CSV names, or a folder per class."""

from __future__ import annotations

import hashlib
import logging
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps

from features.contracts import FACE_CROP_PX
from features.errors import ManifestError
from train.face_cnn.pictures.images import FaceImages
from train.face_cnn.pictures.labels import label_names, label_votes

_log = logging.getLogger(__name__)

_NAMED_PROBLEMS = 20
"""Broken pictures that are named one by one; the rest are counted."""

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_VAL_TENTHS, _TEST_TENTHS = 1, 1
"""Tenths of the file names that become val and test where no splits are given."""
_LUMA = np.array([0.299, 0.587, 0.114])
"""BT.601, as Pillow's."""
_BROKEN = (OSError, KeyError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises about a file that it cannot read."""


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """One labelled picture on disk; each is one face crop."""

    path: Path | zipfile.Path
    where: str
    """For messages: the line of the CSV, or nothing."""
    label: str
    """As it was given; may be empty."""
    split: str
    subject: str = ""
    source: str = ""


def read_face_images(path: Path, labels: str = "") -> FaceImages:
    """Read labelled face images.

    An .npz laid out like FER+: ``images`` uint8 [N, S, S] or [N, S, S, 3], ``split`` [N],
    ``votes`` [N, V] with ``vote_names`` [V], or ``label`` [N] (empty: none); optional ``dup_group``
    [N]. A CSV with the columns path (relative to the CSV), label, split and optionally subject and
    source (which set a picture comes from), or a .zip with such a CSV and its pictures, or a folder
    per class, with or without splits above (``list_folder_pictures``); each picture is one face
    crop. Where a CSV or a folder has no val, a tenth of its train pictures becomes val.

    Pictures that cannot be read are named in the log, counted, and left out.

    Args:
        path: The file or folder.
        labels: The array of the .npz or the column of the CSV that holds the labels, where it is
            not ``votes`` or ``label``.

    Raises:
        ManifestError: something is missing or contradicts itself, or no picture can be read.
    """
    if path.is_dir():
        if labels:
            raise ManifestError(f"{path}: a folder has no labels {labels!r}; its folders name them")
        return _read_files(path, *list_folder_pictures(path))
    if not path.is_file():
        raise ManifestError(
            f"{path}: no such file. Give an .npz, a CSV, a .zip of one with its pictures, or a "
            "folder of labelled faces."
        )
    if path.suffix.lower() == ".csv":
        return _read_files(path, list_csv_pictures(path, labels or "label"), split_given=True)
    if path.suffix.lower() == ".zip":
        listed = list_csv_pictures(_find_csv(path), labels or "label")
        return _read_files(path, listed, split_given=True)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _read_npz(path, dict(archive), labels)
    except (ValueError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path}: not a readable .npz of face images ({error}).") from error


def _read_npz(path: Path, arrays: Mapping[str, NDArray[Any]], labels: str) -> FaceImages:
    missing = [name for name in ("images", "split", labels) if name and name not in arrays]
    if not labels and not {"votes", "vote_names"} <= arrays.keys() and "label" not in arrays:
        missing.append("votes with vote_names, or label")
    if missing:
        raise ManifestError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(arrays)}.")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ManifestError(
            f"{path}: images are {images.dtype} {images.shape}, expected uint8 [N, S, S] or "
            "[N, S, S, 3]."
        )
    grey = images if images.ndim == 3 else np.rint(images @ _LUMA).astype(np.uint8)
    if labels or "votes" not in arrays:
        found = label_names(arrays[labels or "label"].astype(np.str_).tolist())
    else:
        found = label_votes(arrays["votes"], arrays["vote_names"].tolist())
    group = arrays.get("dup_group", np.arange(len(images)))
    return FaceImages(
        **vars(found),
        pixels=np.ascontiguousarray(grey[:, None]),
        split=arrays["split"].astype(np.str_),
        group=group.astype(np.int64),
        source=np.full(len(images), "", dtype=np.str_),
    )


def _find_csv(path: Path) -> zipfile.Path:
    """The one CSV at the top of an archive. Raises ManifestError."""
    try:
        found = [item for item in zipfile.Path(path).iterdir() if item.name.endswith(".csv")]
    except (OSError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path}: not a readable archive ({error}).") from error
    if len(found) != 1:
        names = [item.name for item in found]
        raise ManifestError(f"{path}: has {names or 'no CSV'} at its top, expected one CSV.")
    return found[0]


def list_csv_pictures(path: Path | zipfile.Path, label_column: str) -> list[PictureFile]:
    """The rows of a CSV: path (relative to the CSV), label, split, optionally subject and source.

    Raises:
        ManifestError: it cannot be read, or lacks a column.
    """
    try:
        with path.open("rb") as file:
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a readable CSV ({error}).") from error
    missing = [name for name in ("path", label_column, "split") if name not in table]
    if missing:
        raise ManifestError(f"{path}: lacks the columns {missing}; it has {list(table)}.")
    nothing = [""] * len(table)
    subjects, sources = (table.get(name, nothing) for name in ("subject", "source"))
    rows = zip(table["path"], table[label_column], table["split"], subjects, sources, strict=True)
    files = [
        PictureFile(
            path=path.parent / name,
            where=f"line {line}: ",
            label=label,
            split=_SPLIT_FOLDERS.get(split.strip().lower(), split),
            subject=subject,
            source=source,
        )
        for line, (name, label, split, subject, source) in enumerate(rows, start=2)
    ]
    wrong = sorted({file.split for file in files} - set(_SPLIT_FOLDERS.values()))
    if wrong:
        raise ManifestError(f"{path}: splits {wrong}, expected train, val or test.")
    return _with_val(files)


def list_folder_pictures(folder: Path) -> tuple[list[PictureFile], bool]:
    """A folder per class, or a folder per split that holds a folder per class::

        faces/happy/0001.png              faces/train/happy/0001.png
        faces/sad/0002.png                faces/test/sad/0002.png

    Without splits the hash of the file name decides: eight tenths train, one val, one test.

    Returns:
        The pictures, before any is opened; and whether folders gave the splits.

    Raises:
        ManifestError: no picture is there, or folders of splits and of classes stand side by side.
    """
    inside = _subfolders(folder)
    as_splits = [_SPLIT_FOLDERS.get(sub.name.lower()) for sub in inside]
    if any(as_splits) and not all(as_splits):
        raise ManifestError(
            f"{folder}: folders of splits beside others: {[sub.name for sub in inside]}. Give a "
            "folder per class, or train, val and test with a folder per class in each."
        )
    files = []
    for sub, split in zip(inside, as_splits, strict=True):
        for of_class in _subfolders(sub) if split else [sub]:
            files += [
                PictureFile(
                    path=path,
                    where="",
                    label=of_class.name,
                    split=split or _split_by_name(path.name, _TEST_TENTHS),
                )
                for path in sorted(of_class.iterdir())
                if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
            ]
    if not files:
        raise ManifestError(
            f"{folder}: no picture ({', '.join(_SUFFIXES)}) in a folder per class. Found: "
            f"{[sub.name for sub in inside]}."
        )
    return (_with_val(files), True) if any(as_splits) else (files, False)


def _read_files(path: Path, listed: Sequence[PictureFile], split_given: bool) -> FaceImages:
    """Open each picture, turn it upright, and scale its luminance to a face crop.

    One that is not square is made so by replicated edges, as a box that leaves its frame.
    """
    pixels = np.empty((len(listed), 1, FACE_CROP_PX, FACE_CROP_PX), dtype=np.uint8)
    files: list[PictureFile] = []
    problems: list[str] = []
    for file in listed:
        try:
            pixels[len(files), 0] = _read_crop(file.path)
        except _BROKEN as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else error
            problems.append(f"{file.where}{file.path}: {reason}")
        else:
            files.append(file)
    if not listed:
        raise ManifestError(f"{path}: names no picture, expected a row for each.")
    if not files:
        raise ManifestError(
            "\n".join([f"{path}: no picture can be read:", *problems[:_NAMED_PROBLEMS]])
        )
    for problem in problems[:_NAMED_PROBLEMS]:
        _log.warning("left out: %s", problem)
    if problems:
        _log.warning("%s: %d of %d pictures cannot be read", path, len(problems), len(listed))
    labels = label_names([file.label for file in files])
    numbers: dict[str, int] = {}
    person = [numbers.setdefault(file.subject, -1 - len(numbers)) for file in files]
    alone = np.array([not file.subject for file in files])
    return FaceImages(
        **vars(labels),
        pixels=pixels[: len(files)],
        split=np.array([file.split for file in files]),
        group=np.where(alone, np.arange(len(files)), person),
        source=np.array([file.source for file in files], dtype=np.str_),
        split_given=split_given,
        n_broken=len(problems),
    )


def _read_crop(path: Path | zipfile.Path) -> NDArray[np.uint8]:
    """[128, 128]"""
    with path.open("rb") as file, Image.open(file) as picture:
        # RGB first: pictures with a palette or four inks have no luminance of their own.
        upright = ImageOps.exif_transpose(picture).convert("RGB").convert("L")
    if upright.width != upright.height:
        side = max(upright.size)
        width, height = side - upright.width, side - upright.height
        around = ((height // 2, height - height // 2), (width // 2, width - width // 2))
        upright = Image.fromarray(np.pad(np.asarray(upright), around, mode="edge"))
    crop = upright.resize((FACE_CROP_PX, FACE_CROP_PX), Image.Resampling.BILINEAR)
    return np.asarray(crop)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _with_val(files: list[PictureFile]) -> list[PictureFile]:
    """Where no picture is in val, a tenth of train becomes val, by person or by file name."""
    if any(file.split == "val" for file in files):
        return files
    return [
        replace(file, split=_split_by_name(file.subject or file.path.name, 0))
        if file.split == "train"
        else file
        for file in files
    ]


def _split_by_name(name: str, test_tenths: int) -> str:
    """The same name gives the same split on every machine and in every folder."""
    tenth = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 10
    if tenth < _VAL_TENTHS:
        return "val"
    return "test" if tenth < _VAL_TENTHS + test_tenths else "train"
