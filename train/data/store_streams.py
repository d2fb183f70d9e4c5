"""What heads read of stores: that every store has it, and has it the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from features.errors import ConfigError
from features.store.reader import Store
from train.config import FitConfig
from train.streams import HEADS, MATRICES, MatrixSpec

_CONTEXT = ("context_2x2", "context_7x7")


def list_matrices(store: Store) -> dict[str, MatrixSpec]:
    """The feature matrices that a store has of every clip, by name."""
    header = store.header
    found = {name: MATRICES[name] for name in _CONTEXT if header.keeps_context}
    found["face"] = MatrixSpec(shape=(header.face_vector_size,), rows="face")
    if header.face_map_shape is not None:
        found["face_map"] = MatrixSpec(shape=header.face_map_shape, rows="face")
    for name, stream in store.streams.items():
        is_added = name not in header.streams
        found[name] = MatrixSpec(
            shape=(stream.size,),
            rows=stream.rows,
            fingerprint=stream.fingerprint if is_added else "",
        )
    return found


def choose_matrices(
    heads: Iterable[str], config: FitConfig, stores: Sequence[Store]
) -> dict[str, MatrixSpec]:
    """The feature matrices that some heads read; all else that stores have may differ.

    Args:
        heads: Names of ``train.streams.NETWORKS``.
        config: Which streams they read.
        stores: One or more.

    Raises:
        ConfigError: A store lacks one, or has another one of its name than the first store; or a
            head reads maps, and one holds vectors.
    """
    by_store = [list_matrices(store) for store in stores]
    chosen: dict[str, MatrixSpec] = {}
    for head in heads:
        for stream, name in config.choose_streams(head, by_store[0]).items():
            for store, found in zip(stores, by_store, strict=True):
                own = config.choose_streams(head, found)[stream]
                if own not in found:
                    raise ConfigError(_tell_missing(store, head, stream, found))
                expected = chosen.setdefault(name, found[own])
                if found[own] != expected:
                    raise ConfigError(_tell_other(store, stores[0], stream, found[own], expected))
            if HEADS[head].reads_maps and len(chosen[name].shape) != 3:
                raise ConfigError(
                    f"head {head} reads maps (channels, height, width), and the stream {stream!r} "
                    f"has {chosen[name].shape[0]} values without places. It can read face_map and "
                    "context; name other heads with --head."
                )
    return chosen


def _tell_missing(store: Store, head: str, stream: str, found: dict[str, MatrixSpec]) -> str:
    if stream == "face_map":
        return (
            f"{store.path}: head {head} reads face maps, which the store does not keep. Run "
            "extract with --face-map into a new store, or name other heads with --head."
        )
    names = dict.fromkeys("context" if name in _CONTEXT else name for name in found)
    has = f"It has: {', '.join(names)}."
    if stream in store.streams_beside.listed:
        return (
            f"{store.path}: head {head} reads the stream {stream!r}, which "
            f"{len(store.find_lacking(stream))} of {len(store)} clip(s) lack. {has} Go on with the "
            f"stream's encoder: extract --store {store.path} --encoder FILE."
        )
    return (
        f"{store.path}: head {head} reads the stream {stream!r}, which the store does not have. "
        f"{has} Name some of these with --streams, or add it: extract --store {store.path} "
        "--encoder FILE; for sound, --audio."
    )


def _tell_other(
    store: Store, first: Store, stream: str, found: MatrixSpec, expected: MatrixSpec
) -> str:
    if found.shape != expected.shape:
        differs = f"has the shape {found.shape}, expected {expected.shape}"
    elif found.rows != expected.rows:
        differs = f"has a row a {found.rows}, expected a row a {expected.rows}"
    else:
        one, other = (spec.fingerprint[:12] or "of the store" for spec in (found, expected))
        differs = f"has the fingerprint {one}, expected {other}"
    return (
        f"{store.path}: the stream {stream} {differs} as in {first.path}: they were made "
        "differently. Extract both with the same networks and settings, or name other streams."
    )
