"""Writes shards, and changes the clip columns of written ones (FORMAT.md)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from features.contracts import ClipFeatures
from features.disk import partial_path, publish
from features.store.shard_checks import check_phases
from features.store.shard_format import (
    FACE_COLUMNS,
    FORMAT_NAME,
    FORMAT_VERSION,
    FRAME_COLUMNS,
    NUMBER_COLUMNS,
    OPTIONAL_COLUMNS,
    TEXT_COLUMNS,
    ShardHeader,
)
from features.store.shard_reader import read_shard_index

_CHUNK_BYTES = 1 << 19
_RESERVE_BYTES = 8 << 20
"""More than it takes to finish a shard: the last chunk of each column, the columns of clips."""
_TEXT_COLUMNS = (*TEXT_COLUMNS, *OPTIONAL_COLUMNS)


class ShardWriter:
    """Writes one shard beside its final name; ``finish`` gives it that name."""

    def __init__(self, path: Path, header: ShardHeader) -> None:
        """Raises OSError where the file cannot be made."""
        self.path = path
        self.partial = partial_path(path)
        self.columns: dict[str, list[Any]] = {c: [] for c in (*_TEXT_COLUMNS, *NUMBER_COLUMNS)}
        self.frame_offset, self.face_offset = [0], [0]
        self._n_frames = self._n_faces = 0
        """Rows of the clip at hand."""
        self._streams = dict(header.streams)
        self._reserve = partial_path(path.with_suffix(".reserve"))
        _reserve_space(self._reserve)
        self._disk = _CarefulFile(self.partial)
        self._file = h5py.File(self._disk, "w", libver="v110")
        self._write_header(header)
        face_columns = dict(FACE_COLUMNS)
        if header.face_map_shape is not None:
            face_columns["map"] = ("f2", header.face_map_shape)
        streams = {name: ("f2", (size,)) for name, size in header.streams.items()}
        tables: dict[str, Mapping[str, tuple[str, tuple[int, ...]]]] = {
            "frame": FRAME_COLUMNS,
            "face": face_columns,
            "stream": streams,
        }
        for group, table in tables.items():
            for name, (dtype, shape) in table.items():
                _create(self._file, f"{group}/{name}", np.dtype(dtype), shape)

    def append(self, clip: ClipFeatures) -> None:
        """Add a clip after the others. Raises OSError (a full disk), ValueError (parts missing)."""
        self.drop_clip()
        self.add_rows(clip)
        self.close_clip(clip)

    def add_rows(self, part: ClipFeatures) -> None:
        """Write rows of the clip at hand, which becomes part of the shard by ``close_clip``.

        Args:
            part: Frames of the clip that follow those before, with their faces.

        Raises:
            OSError: a full disk. ValueError: parts are missing.
        """
        if part.context_7x7 is None:
            raise ValueError(f"clip {part.clip_id}: context_7x7 is missing")
        if ("face/map" in self._file) != (part.face_map is not None):
            raise ValueError(f"clip {part.clip_id}: face_map does not fit the header")
        check_phases(part.phase, part.n_phases)
        sizes = {name: values.shape[1] for name, values in part.streams.items()}
        if sizes != self._streams:
            raise ValueError(
                f"clip {part.clip_id}: its streams are {sizes}, the header's {self._streams}"
            )
        first_frame = self.frame_offset[-1] + self._n_frames
        first_face = self.face_offset[-1] + self._n_faces
        frames: dict[str, NDArray[Any]] = {name: getattr(part, name) for name in FRAME_COLUMNS}
        faces: dict[str, NDArray[Any]] = {
            "frame": part.face_frame.astype(np.int64) + first_frame,
            "box_px": part.box_px,
            "score": part.score,
            "landmarks_px": part.landmarks_px,
            "track": part.track,
            "vector": part.face_vector,
        }
        if part.face_map is not None:
            faces["map"] = part.face_map
        for name, rows in frames.items():
            _put(self._file[f"frame/{name}"], first_frame, rows)
        for name, rows in faces.items():
            _put(self._file[f"face/{name}"], first_face, rows)
        for name, rows in part.streams.items():
            _put(self._file[f"stream/{name}"], first_frame, rows)
        self._disk.check()
        self._n_frames += part.n_frames
        self._n_faces += part.n_faces

    def close_clip(self, clip: ClipFeatures) -> None:
        """Make the rows since the last clip a clip. clip: any part of it, for what is not rows."""
        for name, value in _clip_row(clip, "ok" if self._n_faces else "no-face").items():
            self.columns[name].append(value)
        self.frame_offset.append(self.frame_offset[-1] + self._n_frames)
        self.face_offset.append(self.face_offset[-1] + self._n_faces)
        self._n_frames = self._n_faces = 0

    def drop_clip(self) -> None:
        """Forget the rows since the last clip: the next ones are written over them."""
        self._n_frames = self._n_faces = 0

    def finish(self) -> None:
        """Write the clip columns, make the file durable, give it its name. Raises OSError."""
        n_frames, n_faces = self.frame_offset[-1], self.face_offset[-1]
        for group, n_rows in (("frame", n_frames), ("face", n_faces), ("stream", n_frames)):
            for dataset in self._file.get(group, {}).values():
                dataset.resize(n_rows, axis=0)  # drops rows of no clip
        _write_columns(self._file, self.columns)
        self._file["clip/frame_offset"] = np.array(self.frame_offset, dtype=np.int64)
        self._file["clip/face_offset"] = np.array(self.face_offset, dtype=np.int64)
        self._file.close()
        self._reserve.unlink(missing_ok=True)
        self._disk.retry()
        self._disk.close()
        publish(self.partial, self.path)

    def abandon(self) -> None:
        """Remove the unfinished file. Never raises for want of disk space."""
        self._disk.discard()
        self._file.close()
        self._disk.close()
        self.partial.unlink(missing_ok=True)
        self._reserve.unlink(missing_ok=True)

    def _write_header(self, header: ShardHeader) -> None:
        attributes = self._file.attrs
        attributes["format"] = FORMAT_NAME
        attributes["format_version"] = FORMAT_VERSION
        attributes["fingerprint"] = header.fingerprint
        attributes["classes"] = json.dumps(list(header.classes), ensure_ascii=False)
        for name in ("config", "weights", "versions"):
            attributes[name] = json.dumps(dict(getattr(header, name)), sort_keys=True)


def rewrite_clip_columns(path: Path, updates: Mapping[str, Mapping[str, str]]) -> None:
    """Change text columns of some clips, by clip id, in a copy that then takes the shard's place.

    updates: clip id -> column -> value, for columns that decide no feature (label, subject ...).
    """
    index = read_shard_index(path)
    columns = {name: list(values) for name, values in index.columns.items()}
    for row, clip_id in enumerate(columns["id"]):
        for name, value in updates.get(clip_id, {}).items():
            columns[name][row] = value
    partial = partial_path(path)
    try:
        shutil.copyfile(path, partial)
        with h5py.File(partial, "r+") as file:
            for name in columns.keys() & file["clip"].keys():
                del file[f"clip/{name}"]
            _write_columns(file, columns)
        publish(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


class _CarefulFile(io.RawIOBase):
    """A file under HDF5 that keeps what the disk refuses instead of raising inside HDF5.

    HDF5 cannot close a file that it could not write, and may end the process. So from the first
    failure on what it writes is kept in memory, from where it reads it again, until ``retry``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._raw = path.open("w+b", buffering=0)
        self._error: OSError | None = None
        self._discarding = False
        self._kept: list[tuple[int, bytes]] = []
        """Place in the file, content; later ones lie over earlier ones."""

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self._error is not None:
            raise self._error

    def _keep(self, error: OSError) -> None:
        error.filename = str(self._path)  # Python names no file that was open already
        self._error = self._error or error

    def discard(self) -> None:
        """Write nothing to the disk from now on."""
        self._discarding = True

    def retry(self) -> None:
        """Write what was kept. Raises OSError."""
        try:
            for start, content in self._kept:
                self._raw.seek(start)
                left = memoryview(content)
                while left:
                    left = left[self._raw.write(left) :]
        except OSError as error:
            self._keep(error)
            raise
        self._kept, self._error = [], None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        try:
            while left and self._error is None and not self._discarding:
                left = left[self._raw.write(left) :]
        except OSError as error:
            self._keep(error)
        if left:
            start = self._raw.tell()
            self._kept.append((start, bytes(left)))
            self._raw.seek(start + len(left))
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        size = self._raw.tell() if size is None else size
        try:
            self._raw.truncate(size)
        except OSError as error:
            self._keep(error)
        self._kept = [(at, content[: size - at]) for at, content in self._kept if at < size]
        return size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._raw.tell()
        n_bytes = self._raw.readinto(view) or 0
        view[n_bytes:] = bytes(len(view) - n_bytes)
        for at, content in self._kept:
            first, end = max(at, start), min(at + len(content), start + len(view))
            if first < end:
                view[first - start : end - start] = content[first - at : end - at]
        self._raw.seek(start + len(view))
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            ends = [at + len(content) for at, content in self._kept]
            offset += max([self._raw.seek(0, io.SEEK_END), *ends])
            whence = io.SEEK_SET
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def flush(self) -> None:
        """Unbuffered: nothing to do."""

    def close(self) -> None:
        self._raw.close()
        super().close()


def _reserve_space(path: Path) -> None:
    """Set space aside with which a shard can be finished on a disk that is full by then."""
    with path.open("wb") as file, contextlib.suppress(OSError, AttributeError):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)


def _clip_row(clip: ClipFeatures, status: str) -> dict[str, Any]:
    return {
        "id": clip.clip_id,
        "label": clip.label,
        "split": clip.split,
        "subject": clip.subject,
        "source": clip.source,
        "sha256": clip.sha256,
        "status": status,
        "decoder": clip.decoder,
        "extra": json.dumps(dict(clip.extra), sort_keys=True, ensure_ascii=False),
        "notes": json.dumps(dict(clip.notes), sort_keys=True),
        "start_s": np.nan if clip.start_s is None else clip.start_s,
        "end_s": np.nan if clip.end_s is None else clip.end_s,
        "n_phases": clip.n_phases,
    }


def _write_columns(file: h5py.File, columns: Mapping[str, Sequence[Any]]) -> None:
    for name in _TEXT_COLUMNS:
        file.create_dataset(f"clip/{name}", data=columns[name], dtype=h5py.string_dtype("utf-8"))
    for name, dtype in NUMBER_COLUMNS.items():
        file[f"clip/{name}"] = np.array(columns[name], dtype=dtype)


def _create(file: h5py.File, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    row_bytes = dtype.itemsize * int(np.prod(shape))
    file.create_dataset(
        name,
        shape=(0, *shape),
        maxshape=(None, *shape),
        chunks=(max(1, min(4096, _CHUNK_BYTES // row_bytes)), *shape),
        dtype=dtype,
        fletcher32=True,
        **hdf5plugin.Zstd(clevel=3),
    )


def _put(dataset: h5py.Dataset, first: int, rows: NDArray[Any]) -> None:
    dataset.resize(first + len(rows), axis=0)
    dataset[first:] = rows
