"""Checks shards that anybody may have written: how columns lie in the file, and what clips say.

A value is read only after its column has passed: all of it lies in this one file (no external or
soft link, no virtual or external storage), has the type and shape that FORMAT.md says, and unpacks
to no more than a file of this size explains. So a small file cannot ask for much memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
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
_TEXT = h5py.string_dtype("utf-8")
_TEXT_STORED, _TEXT_READ = (h5py.h5t.py_create(_TEXT, logical=stored) for stored in (True, False))


class Columns:
    """The columns of an open shard, each checked before it is read. All raise ValueError.

    Through h5py's low-level calls, each object opened once: a shard has some 25 columns, and on
    small shards opening them is most of the time.
    """

    def __init__(self, file: h5py.h5f.FileID) -> None:
        if file.get_create_plist().get_userblock():
            raise ValueError("the file begins with a user block")
        self.file = file
        self._groups: dict[str, Any] = {"": file}
        self._datasets: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self._n_bytes = int(file.get_filesize())
        self._n_stored = self._n_unpacked = self._n_text = 0

    def list_names(self, group: str) -> list[str]:
        """What a group at the root holds; nothing where it is missing."""
        if group.encode() not in self.file:
            return []
        return [name.decode() for name in self._find_group(group)]

    def has(self, name: str) -> bool:
        """Whether a column is there, in a group that is."""
        group, _, column = name.rpartition("/")
        return column.encode() in self._find_group(group)

    def find_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a column that is not checked yet."""
        return self._find_dataset(name)[1]

    def check(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> int | None:
        """Check a column of numbers. shape: None stands for any size.

        Returns:
            Where in the file all of the column lies; None: not in one piece.
        """
        (dataset, found), (expected, stored) = self._find_dataset(name), _find_type(dtype)
        is_right = dataset.get_type().equal(stored) or dataset.dtype == expected
        fits = len(found) == len(shape) and all(
            e in (None, f) for f, e in zip(found, shape, strict=True)
        )
        if not is_right or not fits:
            raise ValueError(
                f"/{name} is {dataset.dtype} {found}, expected {expected} "
                f"{tuple('any' if n is None else n for n in shape)}"
            )
        return self._check_storage(name, dataset, found, expected.itemsize)

    def read(self, name: str, dtype: str, n_rows: int | None) -> NDArray[Any]:
        """[n_rows] A column of numbers, checked; None: of any size."""
        place = self.check(name, dtype, (n_rows,))
        shape = self.find_shape(name)
        if place is None:
            return self.read_rows(name, dtype, slice(0, *shape))
        n_bytes = shape[0] * np.dtype(dtype).itemsize
        return np.frombuffer(self._read_bytes(place, n_bytes), _find_type(dtype)[0])

    def read_rows(self, name: str, dtype: str, rows: slice) -> NDArray[Any]:
        """Rows of a column of numbers that was checked, now or when its shard was open before."""
        (dataset, whole), (number, stored) = self._find_dataset(name), _find_type(dtype)
        shape = (rows.stop - rows.start, *whole[1:])
        values = np.empty(shape, number)
        from_space = to_space = h5py.h5s.ALL
        if shape != whole and values.size:
            from_space, to_space = dataset.get_space(), h5py.h5s.create_simple(shape)
            from_space.select_hyperslab((rows.start, *[0] * (len(shape) - 1)), shape)
        if values.size:
            dataset.read(to_space, from_space, values, stored)
        return values

    def read_texts(self, name: str, n_rows: int) -> list[str]:
        """[n_rows] A column of UTF-8 texts of variable length, checked."""
        dataset, shape = self._find_dataset(name)
        if shape != (n_rows,) or not _is_text(dataset):
            raise ValueError(
                f"/{name} is {dataset.dtype} {shape}, expected UTF-8 of variable length ({n_rows},)"
            )
        if n_rows == 0:
            return []
        place = self._check_storage(name, dataset, (n_rows,), _TEXT_REFERENCE.itemsize)
        if place is None:
            raise ValueError(f"/{name} is chunked, expected in one piece")
        stored = self._read_bytes(place, n_rows * _TEXT_REFERENCE.itemsize)
        lengths = np.frombuffer(stored, _TEXT_REFERENCE)["n_bytes"].tolist()
        self._n_text += sum(lengths)
        if max(lengths) > _MOST_TEXT_BYTES or self._n_text > min(self._n_bytes, _MOST_TEXTS_BYTES):
            raise ValueError(f"/{name} has texts of {max(lengths)} bytes, too long for this file")
        texts = np.empty(n_rows, _TEXT)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, texts, _TEXT_READ)
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise ValueError(f"/{name} has a text that is not UTF-8 ({error})") from error

    def _find_group(self, name: str) -> Any:
        if name not in self._groups:
            found = self._follow(self.file, name, name)
            if not isinstance(found, h5py.h5g.GroupID):
                raise ValueError(f"/{name} is no group")
            self._groups[name] = found
        return self._groups[name]

    def _find_dataset(self, name: str) -> tuple[Any, tuple[int, ...]]:
        """A column and its shape."""
        if name not in self._datasets:
            group, _, column = name.rpartition("/")
            found = self._follow(self._find_group(group), column, name)
            if not isinstance(found, h5py.h5d.DatasetID):
                raise ValueError(f"/{name} is no dataset")
            self._datasets[name] = found, found.shape
        return self._datasets[name]

    def _follow(self, group: Any, part: str, name: str) -> Any:
        """The object that a hard link leads to: no other file is opened."""
        try:
            link = group.links.get_info(part.encode())
        except (KeyError, RuntimeError, ValueError):
            raise ValueError(f"/{name} is missing") from None
        if link.type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"/{name} is a link to elsewhere")
        return h5py.h5o.open(group, part.encode())

    def _check_storage(
        self, name: str, dataset: Any, shape: tuple[int, ...], value_bytes: int
    ) -> int | None:
        """Returns as ``check``."""
        n_bytes = math.prod(shape) * value_bytes
        place: int | None = dataset.get_offset()  # None: chunks, other files, or nothing stored
        properties = dataset.get_create_plist() if place is None else None
        if properties and properties.get_layout() == h5py.h5d.CHUNKED:
            self._check_chunks(name, dataset, properties, shape, value_bytes)
        elif properties and (
            properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count()
        ):
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
        return place

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

    def _read_bytes(self, place: int, n_bytes: int) -> bytes:
        return os.pread(self.file.get_vfd_handle(), n_bytes, place)


def has_attribute(file: h5py.h5f.FileID, name: str) -> bool:
    """Whether the root has an attribute of this name."""
    return bool(h5py.h5a.exists(file, name.encode()))


def read_attribute(file: h5py.h5f.FileID, name: str, kind: type) -> Any:
    """A root attribute: one text, or one whole number. Raises ValueError, also where missing."""
    try:
        attribute = h5py.h5a.open(file, name.encode())
    except KeyError:
        raise ValueError(f"root attribute {name!r} is missing") from None
    value = None
    if attribute.shape == () and attribute.get_storage_size() <= _MOST_ATTRIBUTE_BYTES:
        stored = np.empty((), attribute.dtype)
        attribute.read(stored)
        text = h5py.check_string_dtype(stored.dtype)
        value = stored.item().decode() if text and text.length is None else stored[()]
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not kind:
        raise ValueError(f"root attribute {name!r} is not one {kind.__name__}")
    if isinstance(value, str) and len(value) > _MOST_ATTRIBUTE_BYTES:
        raise ValueError(f"root attribute {name!r} has {len(value)} characters")
    return value


def check_clips(
    columns: Mapping[str, Sequence[Any]], classes: Sequence[str], n_faces: Sequence[int]
) -> None:
    """Raise ValueError where clip columns hold what FORMAT.md does not allow."""
    right: dict[str, Callable[[Any], Any]] = {
        "id": CLIP_ID.fullmatch,
        "label": {"", *classes}.__contains__,
        "split": SPLITS.__contains__,
        "n_phases": (1).__le__,
        "start_s": lambda seconds: not math.isinf(seconds),
        "end_s": lambda seconds: not math.isinf(seconds),
        "extra": lambda text: text == "{}" or _check_object(text, str),
        "notes": lambda text: text == "{}" or _check_object(text, float),
    }
    for name, is_right in right.items():
        for row, value in enumerate(columns[name]):
            try:
                problem = "" if is_right(value) else f"is {value!r}"
            except ValueError as error:
                problem = f"is wrong: {error}"
            if problem:
                raise ValueError(f"/clip/{name} of clip {columns['id'][row]!r} {problem}")
    for clip_id, status, n in zip(columns["id"], columns["status"], n_faces, strict=True):
        if status != ("ok" if n else "no-face"):
            raise ValueError(f"/clip/status of clip {clip_id!r} is {status!r}")


@lru_cache(maxsize=64)
def _check_object(text: str, kind: type) -> bool:
    """Raise ValueError unless a text is a JSON object of values of a kind."""
    build_record(Mapping[str, kind], parse_object(text))  # type: ignore[valid-type]
    return True


def check_offsets(offset: NDArray[np.int64], name: str) -> None:
    """Raise ValueError unless offsets start at 0 and do not fall."""
    if offset[0] != 0 or np.any(offset[1:] < offset[:-1]):
        raise ValueError(f"/{name} does not rise from 0")


def check_phases(phase: NDArray[np.int16], n_phases: int) -> None:
    """Raise ValueError unless every frame of a clip has a phase of its clock."""
    if np.any((phase < 0) | (phase >= n_phases)):
        raise ValueError(f"/frame/phase goes from {phase.min()} to {phase.max()}, P is {n_phases}")


@cache
def _find_type(dtype: str) -> tuple[np.dtype[Any], Any]:
    """A type of numbers as numpy has it, and as HDF5 stores it."""
    number = np.dtype(dtype).newbyteorder("<")
    return number, h5py.h5t.py_create(number)


def _is_text(dataset: Any) -> bool:
    stored = dataset.get_type()
    return bool(stored.equal(_TEXT_STORED)) or (
        h5py.check_string_dtype(stored.dtype) == ("utf-8", None)
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
