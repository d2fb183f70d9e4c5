"""Checks shards that anybody may have written: how columns lie in the file, and what clips say.

A value is read only after its column has passed: all of it lies in this one file (no external or
soft link, no virtual or external storage), has the type and shape that FORMAT.md says, and unpacks
to no more than a file of this size explains. So a small file cannot ask for much memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.contracts import CLIP_ID, SPLITS
from features.json_records import build_record, parse_object

_ZSTD, _SHUFFLE, _FLETCHER32 = 32015, 2, 3
"""The filters that a shard may use; of each is known how much it unpacks to."""
_MOST_CHUNK_BYTES = 1 << 26
_MOST_UNPACKED, _UNPACKED_FREE = 256, 1 << 29
"""Columns unpack to at most 256 times the file's size, beyond half a gigabyte."""
_MOST_TEXT_BYTES, _MOST_TEXTS_BYTES = 1 << 20, 1 << 28
"""Of one text, and of all texts of a shard."""
_MOST_ATTRIBUTE_BYTES = 1 << 20
_TEXT_REFERENCE = np.dtype([("n_bytes", "<u4"), ("place", "V12")])
"""How HDF5 stores a text of variable length in a column: its length, and where it lies."""


class Columns:
    """The columns of an open shard, each checked when it is asked for. All raise ValueError.

    Through h5py's low-level calls, each group opened once: a shard has some 25 columns, and on
    small shards opening them is most of the time.
    """

    def __init__(self, file: h5py.File) -> None:
        if file.userblock_size:
            raise ValueError("the file begins with a user block")
        self._file = file
        self._groups: dict[str, Any] = {"": file.id}
        self._n_bytes = int(file.id.get_filesize())
        self._n_stored = self._n_unpacked = self._n_text = 0

    def list_names(self, group: str) -> list[str]:
        """What a group at the root holds; nothing where it is missing."""
        return list(h5py.Group(self._find_group(group))) if group in self._file.id else []

    def check(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """Check a column of numbers. shape: None stands for any size. Returns its shape."""
        return self._open(name, dtype, shape)[1]

    def read(self, name: str, dtype: str, n_rows: int | None) -> NDArray[Any]:
        """[n_rows] A column of numbers; None: of any size."""
        dataset, shape = self._open(name, dtype, (n_rows,))
        values = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values

    def read_texts(self, name: str, n_rows: int) -> list[str]:
        """[n_rows] A column of UTF-8 texts of variable length."""
        dataset = self._find_dataset(name)
        dtype, shape = dataset.dtype, dataset.shape
        if h5py.check_string_dtype(dtype) != ("utf-8", None) or shape != (n_rows,):
            raise ValueError(
                f"/{name} is {dtype} {shape}, expected UTF-8 of variable length ({n_rows},)"
            )
        if dataset.get_create_plist().get_layout() == h5py.h5d.CHUNKED:
            raise ValueError(f"/{name} is chunked, expected in one piece")
        self._check_storage(name, dataset, shape, _TEXT_REFERENCE.itemsize)
        if n_rows == 0:
            return []
        stored = self._read_bytes(dataset.get_offset(), n_rows * _TEXT_REFERENCE.itemsize)
        lengths = np.frombuffer(stored, _TEXT_REFERENCE)["n_bytes"].astype(np.int64)
        self._n_text += int(lengths.sum())
        if lengths.max() > _MOST_TEXT_BYTES or self._n_text > min(self._n_bytes, _MOST_TEXTS_BYTES):
            raise ValueError(f"/{name} has texts of {lengths.max()} bytes, too long for this file")
        texts = np.empty(n_rows, dtype)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, texts)
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise ValueError(f"/{name} has a text that is not UTF-8 ({error})") from error

    def _open(
        self, name: str, dtype: str, shape: tuple[int | None, ...]
    ) -> tuple[Any, tuple[int, ...]]:
        dataset = self._find_dataset(name)
        expected, found = np.dtype(dtype).newbyteorder("<"), dataset.shape
        if dataset.dtype != expected or not _fits(found, shape):
            raise ValueError(
                f"/{name} is {dataset.dtype} {found}, expected {expected} "
                f"{tuple('any' if n is None else n for n in shape)}"
            )
        self._check_storage(name, dataset, found, expected.itemsize)
        return dataset, found

    def _find_group(self, name: str) -> Any:
        if name not in self._groups:
            found = self._follow(self._file.id, name, name)
            if not isinstance(found, h5py.h5g.GroupID):
                raise ValueError(f"/{name} is no group")
            self._groups[name] = found
        return self._groups[name]

    def _find_dataset(self, name: str) -> Any:
        group, _, column = name.partition("/")
        found = self._follow(self._find_group(group), column, name)
        if not isinstance(found, h5py.h5d.DatasetID):
            raise ValueError(f"/{name} is no dataset")
        return found

    def _follow(self, group: Any, part: str, name: str) -> Any:
        """The object that a hard link leads to: no other file is opened."""
        try:
            link = group.links.get_info(part.encode())
        except KeyError:
            raise ValueError(f"/{name} is missing") from None
        if link.type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"/{name} is a link to elsewhere")
        return h5py.h5o.open(group, part.encode())

    def _check_storage(
        self, name: str, dataset: Any, shape: tuple[int, ...], value_bytes: int
    ) -> None:
        properties, n_bytes = dataset.get_create_plist(), math.prod(shape) * value_bytes
        layout = properties.get_layout()
        if layout == h5py.h5d.CHUNKED:
            self._check_chunks(name, dataset, properties, shape, value_bytes)
        elif layout == h5py.h5d.VIRTUAL or properties.get_external_count():
            raise ValueError(f"/{name} lies in other files")
        elif dataset.get_storage_size() != n_bytes:
            raise ValueError(f"/{name} has not stored all of its {n_bytes} bytes")
        else:
            self._n_stored += n_bytes
        self._n_unpacked += n_bytes
        if self._n_stored > self._n_bytes:
            raise ValueError(f"/{name}: its bytes are those of other columns, or not there")
        if self._n_unpacked > _MOST_UNPACKED * self._n_bytes + _UNPACKED_FREE:
            raise ValueError(f"/{name} claims {n_bytes} bytes, too many for this file")

    def _check_chunks(
        self, name: str, dataset: Any, properties: Any, shape: tuple[int, ...], value_bytes: int
    ) -> None:
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        strange = sorted(set(filters) - {_ZSTD, _SHUFFLE, _FLETCHER32})
        if strange or filters.count(_ZSTD) > 1:
            raise ValueError(
                f"/{name} is packed by the HDF5 filters {filters}, expected zstd ({_ZSTD}), "
                f"shuffle ({_SHUFFLE}) or Fletcher-32 ({_FLETCHER32})"
            )
        chunk_shape = properties.get_chunk()
        chunk_bytes = math.prod(chunk_shape) * value_bytes
        if chunk_bytes > _MOST_CHUNK_BYTES:
            raise ValueError(
                f"/{name} has chunks of {chunk_bytes} bytes, expected {_MOST_CHUNK_BYTES} at most"
            )
        n_chunks = math.prod(
            -(-size // chunk) for size, chunk in zip(shape, chunk_shape, strict=True)
        )
        if dataset.get_num_chunks() != n_chunks:
            raise ValueError(f"/{name} has not stored all of its {n_chunks} chunks")
        chunks: list[Any] = []
        dataset.chunk_iter(chunks.append)
        for chunk in chunks:
            self._n_stored += chunk.size
            packed = _ZSTD in filters and not chunk.filter_mask >> filters.index(_ZSTD) & 1
            unpacked = chunk.size
            if packed:
                unpacked = _read_zstd_size(self._read_bytes(chunk.byte_offset, 18))
            # Fletcher-32 adds four bytes, before or after packing.
            if unpacked > chunk_bytes + 4 or chunk.size > 2 * chunk_bytes + 1024:
                raise ValueError(
                    f"/{name} has a chunk that unpacks to {unpacked} bytes, expected {chunk_bytes}"
                )

    def _read_bytes(self, offset: int, n_bytes: int) -> bytes:
        return os.pread(self._file.id.get_vfd_handle(), n_bytes, offset)


def read_attribute(file: h5py.File, name: str, kind: type) -> Any:
    """A root attribute: one text, or one whole number. Raises ValueError, also where missing."""
    if not h5py.h5a.exists(file.id, name.encode()):
        raise ValueError(f"root attribute {name!r} is missing")
    attribute = h5py.h5a.open(file.id, name.encode())
    value = None
    if attribute.shape == () and attribute.get_storage_size() <= _MOST_ATTRIBUTE_BYTES:
        value = file.attrs[name]
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not kind:
        raise ValueError(f"root attribute {name!r} is not one {kind.__name__}")
    if isinstance(value, str):
        value.encode()  # h5py lets bytes through that are not UTF-8
        if len(value) > _MOST_ATTRIBUTE_BYTES:
            raise ValueError(f"root attribute {name!r} has {len(value)} characters")
    return value


def check_clip(values: Mapping[str, Any], classes: Sequence[str], n_faces: int) -> None:
    """Raise ValueError where a clip's column -> value are none that FORMAT.md allows."""
    is_right = {
        "id": CLIP_ID.fullmatch(values["id"]),
        "label": not values["label"] or values["label"] in classes,
        "split": values["split"] in SPLITS,
        "status": values["status"] == ("ok" if n_faces else "no-face"),
        "n_phases": values["n_phases"] >= 1,
        "start_s": not math.isinf(values["start_s"]),
        "end_s": not math.isinf(values["end_s"]),
    }
    for name, right in is_right.items():
        if not right:
            raise ValueError(f"/clip/{name} of clip {values['id']!r} is {values[name]!r}")
    for name, kind in (("extra", Mapping[str, str]), ("notes", Mapping[str, float])):
        if values[name] != "{}":
            build_record(kind, parse_object(values[name]), f"/clip/{name} of clip {values['id']!r}")


def check_offsets(offset: NDArray[np.int64], name: str) -> None:
    """Raise ValueError unless offsets start at 0 and do not fall."""
    if offset[0] != 0 or np.any(offset[1:] < offset[:-1]):
        raise ValueError(f"/{name} does not rise from 0")


def check_phases(phase: NDArray[np.int16], n_phases: int) -> None:
    """Raise ValueError unless every frame of a clip has a phase of its clock."""
    if np.any((phase < 0) | (phase >= n_phases)):
        raise ValueError(f"/frame/phase goes from {phase.min()} to {phase.max()}, P is {n_phases}")


def _fits(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(
        e in (None, f) for f, e in zip(found, expected, strict=True)
    )


def _read_zstd_size(head: bytes) -> int:
    """How many bytes a zstd frame says that it unpacks to (RFC 8878, 3.1.1.1)."""
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 5:
        raise ValueError("a chunk is no zstd frame")
    descriptor = head[4]
    one_segment = descriptor >> 5 & 1
    at = 5 + (not one_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = (one_segment, 2, 4, 8)[descriptor >> 6]
    if size == 0:
        raise ValueError("a chunk does not say how much it unpacks to")
    return int.from_bytes(head[at : at + size], "little") + (256 if size == 2 else 0)
