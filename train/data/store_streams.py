"""What heads read of stores: that every store has it, and has it the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import pandas as pd

from features.errors import ConfigError
from features.store.reader import Store
from train.config import FitConfig
from train.streams import ENSEMBLE, HEADS, MATRICES, Matrices, MatrixSpec

_CONTEXT = ("context_2x2", "context_7x7")
_NAMED = 5

_log = logging.getLogger(__name__)


def list_matrices(store: Store) -> dict[str, MatrixSpec]:
    """The feature matrices that a store has, by name: of every clip, or of all but a few."""
    header = store.header
    found = {name: MATRICES[name] for name in _CONTEXT if header.keeps_context}
    if header.keeps_face:
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


def find_lacking(
    heads: Iterable[str], config: FitConfig, stores: Sequence[Store]
) -> dict[str, str]:
    """The clips that lack a stream which one of some heads reads; they are logged.

    All heads that are trained together leave all of them out: their scores are of the same clips.

    Args:
        heads: As of ``choose_matrices``; an ensemble reads what its members do.
        config: Which streams they read.
        stores: One or more.

    Returns:
        Clip id -> such a stream.

    Raises:
        ConfigError: As ``choose_matrices``; or no clip of a split is left.
    """
    matrices = choose_matrices([head for head in heads if head != ENSEMBLE], config, stores)
    return find_lacking_of(matrices, stores)


def find_lacking_of(matrices: Matrices, stores: Sequence[Store]) -> dict[str, str]:
    """As ``find_lacking``, of what heads read."""
    lacking = {
        clip_id: name
        for store in stores
        for name in sorted(matrices.keys() & store.streams.keys())
        for clip_id in store.find_lacking(name)
    }
    if not lacking:
        return lacking
    names = ", ".join(sorted(set(lacking.values())))
    clips = pd.concat([store.clips for store in stores])
    for split, of_split in clips.groupby("split"):
        if of_split["clip_id"].isin(lacking).all():
            raise ConfigError(
                f"split {split}: all {len(of_split)} clip(s) lack a stream that a head reads "
                f"({names}). Run extract with its encoder where the clips' files are, or name "
                "other streams with --streams."
            )
    _log.warning(
        "%d of %d clip(s) lack a stream that a head reads (%s) and are left out of training and "
        "scores: %s%s. cli.py store failures tells why.",
        len(lacking),
        len(clips),
        names,
        ", ".join(list(lacking)[:_NAMED]),
        ", ..." if len(lacking) > _NAMED else "",
    )
    return lacking


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
        how = "" if store.header.keeps_face else ", without an encoder named face,"
        return (
            f"{store.path}: head {head} reads face maps, which the store does not keep. Run "
            f"extract with --face-map{how} into a new store, or name other heads with --head."
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
