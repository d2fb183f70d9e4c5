"""Writes shards and files of streams; changes the clip columns of shards (FORMAT.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.contracts import ClipFeatures
from features.disk import partial_path, publish, sync_folder
from features.store.hdf5_files import Hdf5Output
from features.store.shard_checks import check_phases
from features.store.shard_format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    LACKING_STREAM_VERSION,
    NUMBER_COLUMNS,
    OPTIONAL_COLUMNS,
    STREAM_FORMAT_NAME,
    STREAM_FORMAT_VERSION,
    TEXT_COLUMNS,
    Lack,
    ShardHeader,
    StreamHeader,
)
from features.store.shard_reader import read_shard_index

_TEXT_COLUMNS = (*TEXT_COLUMNS, *OPTIONAL_COLUMNS)
_ZERO_ROWS = 1024
"""Written at once."""


class ShardWriter:
    """Writes one shard beside its final name; ``finish`` gives it that name."""

    def __init__(self, path: Path, header: ShardHeader) -> None:
        """Raises OSError where the file cannot be made."""
        self.path = path
        self.columns: dict[str, list[Any]] = {c: [] for c in (*_TEXT_COLUMNS, *NUMBER_COLUMNS)}
        self.frame_offset, self.face_offset = [0], [0]
        self._n_frames = self._n_faces = 0
        """Rows of the clip at hand."""
        self._streams = dict(header.streams)
        self._expressions = header.expressions
        self._frame_columns = tuple(header.frame_columns)
        self._vector_size = header.face_vector_size if header.keeps_face else None
        self._output = Hdf5Output(path)
        self._file = self._output.file
        self._write_header(header)
        streams = {name: ("f2", (size,)) for name, size in header.streams.items()}
        tables: dict[str, Mapping[str, tuple[str, tuple[int, ...]]]] = {
            "frame": header.frame_columns,
            "face": header.face_columns,
            "stream": streams,
        }
        for group, table in tables.items():
            for name, (dtype, shape) in table.items():
                self._output.create_column(f"{group}/{name}", dtype, shape)

    def append(self, clip: ClipFeatures) -> None:
        """Add a clip after the others. Raises OSError (a full disk), ValueError (parts missing)."""
        self.drop_clip()
        self.add_rows(clip)
        self.close_clip(clip)

    def add_rows(self, part: ClipFeatures) -> None:
        """Write rows of the clip at hand, which becomes part of the shard by ``close_clip``.

        Args:
            part: Frames of the clip that follow those before, with their faces. Its expressions
                are left out where the header names none.

        Raises:
            OSError: a full disk. ValueError: parts are missing.
        """
        for name in self._frame_columns:
            if getattr(part, name) is None:
                raise ValueError(f"clip {part.clip_id}: {name} is missing")
        self._check_faces(part)
        check_phases(part.phase, part.n_phases)
        sizes = {name: values.shape[1] for name, values in part.streams.items()}
        if sizes != self._streams:
            raise ValueError(
                f"clip {part.clip_id}: its streams are {sizes}, the header's {self._streams}"
            )
        first_frame = self.frame_offset[-1] + self._n_frames
        first_face = self.face_offset[-1] + self._n_faces
        frames: dict[str, NDArray[Any]] = {n: getattr(part, n) for n in self._frame_columns}
        faces: dict[str, NDArray[Any]] = {
            "frame": part.face_frame.astype(np.int64) + first_frame,
            "box_px": part.box_px,
            "score": part.score,
            "landmarks_px": part.landmarks_px,
            "track": part.track,
        }
        if part.face_vector is not None and self._vector_size is not None:
            faces["vector"] = part.face_vector
        if part.face_map is not None:
            faces["map"] = part.face_map
        if part.face_expression is not None and self._expressions:
            faces["expression"] = part.face_expression
        for name, rows in frames.items():
            self._output.put_rows(f"frame/{name}", first_frame, rows)
        for name, rows in faces.items():
            self._output.put_rows(f"face/{name}", first_face, rows)
        for name, rows in part.streams.items():
            self._output.put_rows(f"stream/{name}", first_frame, rows)
        self._output.check()
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
        self._output.publish()

    def abandon(self) -> None:
        """Remove the unfinished file. Never raises for want of disk space."""
        self._output.abandon()

    def _check_faces(self, part: ClipFeatures) -> None:
        """Raise ValueError where what is kept of faces is not what the header says."""
        if ("face/map" in self._file) != (part.face_map is not None):
            raise ValueError(f"clip {part.clip_id}: face_map does not fit the header")
        n_values = None if part.face_vector is None else part.face_vector.shape[1]
        if self._vector_size not in (None, n_values):
            raise ValueError(
                f"clip {part.clip_id}: face_vector has {n_values} values a face, "
                f"the header says {self._vector_size}"
            )
        n_kept = 0 if part.face_expression is None else part.face_expression.shape[1]
        if self._expressions and n_kept != len(self._expressions):
            raise ValueError(
                f"clip {part.clip_id}: face_expression has {n_kept} values a face, the header "
                f"names the expressions {', '.join(self._expressions)}"
            )
        if part.face_streams:
            raise ValueError(
                f"clip {part.clip_id}: streams of faces ({', '.join(part.face_streams)}) stand "
                "beside the shards: give their headers"
            )

    def _write_header(self, header: ShardHeader) -> None:
        attributes = self._file.attrs
        attributes["format"] = FORMAT_NAME
        attributes["format_version"] = FORMAT_VERSION
        attributes["fingerprint"] = header.fingerprint
        attributes["classes"] = json.dumps(list(header.classes), ensure_ascii=False)
        if header.expressions:
            attributes["expressions"] = json.dumps(list(header.expressions), ensure_ascii=False)
        for name in ("config", "weights", "versions", *(["licences"] if header.licences else [])):
            attributes[name] = json.dumps(dict(getattr(header, name)), sort_keys=True)


class StreamShardWriter:
    """Writes the file of a stream that belongs to one shard; ``finish`` gives it its name."""

    def __init__(self, store: Path, header: StreamHeader, shard_name: str) -> None:
        """The clips and rows to be written are those of this shard, in its order.

        Args:
            store: The store's folder.
            header: Of the stream.
            shard_name: ``shards/0007.h5``, which need not be there yet.

        Raises:
            OSError: The file cannot be made.
        """
        self.header = header
        self.path = store / name_stream_file(header.name, shard_name)
        if not self.path.parent.is_dir():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(self.path.parent.parent)
        self._clips: list[tuple[str, str]] = []
        self.lacks: list[Lack] = []
        """Of the clips so far."""
        self._row_offset = [0]
        self._n_rows = 0
        """Of the clip at hand."""
        self._output = Hdf5Output(self.path)
        attributes = self._output.file.attrs
        attributes["format"] = STREAM_FORMAT_NAME
        attributes["format_version"] = STREAM_FORMAT_VERSION
        attributes["name"] = header.name
        attributes["rows"] = header.rows
        attributes["fingerprint"] = header.fingerprint
        attributes["encoder"] = json.dumps(
            dict(header.encoder), sort_keys=True, ensure_ascii=False, allow_nan=False
        )
        self._output.create_column("values", "f2", (header.size,))

    def add_rows(self, values: NDArray[np.float16]) -> None:
        """Write rows of the clip at hand, which ``close_clip`` makes part of the file.

        values: float16 [n, D], the rows that follow those before.

        Raises:
            OSError: a full disk. ValueError: another type or shape.
        """
        if values.dtype != np.float16 or values.shape[1:] != (self.header.size,):
            raise ValueError(
                f"stream {self.header.name}: rows are {values.dtype} {values.shape}, expected "
                f"float16 (n, {self.header.size})"
            )
        self._output.put_rows("values", self._row_offset[-1] + self._n_rows, values)
        self._output.check()
        self._n_rows += len(values)

    def add_zeros(self, n_rows: int) -> None:
        """As ``add_rows``, for rows that nobody reads. Raises OSError."""
        for first in range(0, n_rows, _ZERO_ROWS):
            n = min(_ZERO_ROWS, n_rows - first)
            self.add_rows(np.zeros((n, self.header.size), dtype=np.float16))

    def close_clip(self, clip_id: str, sha256: str, lacks: Lack = Lack.NO) -> None:
        """Make the rows since the last clip a clip.

        Args:
            clip_id: Its id.
            sha256: Of its file, as in the shard.
            lacks: Whether it lacks the stream: then its rows are zeros.
        """
        self._clips.append((clip_id, sha256))
        self.lacks.append(lacks)
        self._row_offset.append(self._row_offset[-1] + self._n_rows)
        self._n_rows = 0

    def drop_clip(self) -> None:
        """Forget the rows since the last clip: the next ones are written over them."""
        self._n_rows = 0

    def finish(self) -> None:
        """Write the columns of clips, make the file durable, give it its name. Raises OSError."""
        file = self._output.file
        file["values"].resize(self._row_offset[-1], axis=0)  # drops rows of no clip
        for i, name in enumerate(("id", "sha256")):
            texts = [clip[i] for clip in self._clips]
            file.create_dataset(f"clip/{name}", data=texts, dtype=h5py.string_dtype("utf-8"))
        file["row_offset"] = np.array(self._row_offset, dtype=np.int64)
        if any(self.lacks):
            file.attrs["format_version"] = LACKING_STREAM_VERSION
            file["clip/lacks"] = np.array(self.lacks, dtype=np.uint8)
        self._output.publish()

    def abandon(self) -> None:
        """Remove the unfinished file. Never raises for want of disk space."""
        self._output.abandon()


def name_stream_file(name: str, shard_name: str) -> str:
    """The path inside a store of a stream's file for a shard."""
    return f"streams/{name}/{Path(shard_name).name}"


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
