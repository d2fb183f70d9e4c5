"""The driver of stage one: manifest in, store out; the only file that sees the whole stage."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from features.context_cnn import find_context_weights_sha256
from features.contracts import Clip, ClipFeatures
from features.disk import write_atomically
from features.errors import ClipError, ConfigError, WeightsError
from features.face_cnn import SHIPPED_FACE_WEIGHTS
from features.face_network import read_face_network
from features.fingerprint import fingerprint, hash_file
from features.shards import FORMAT_VERSION, ShardHeader
from features.store import Store
from features.store_index import (
    FAILURE_COLUMNS,
    Failure,
    read_failures,
    read_store_index,
    write_failures,
)
from features.store_writer import StoreWriter
from features.weights import MTCNN_FILES
from pipeline.config import ExtractConfig
from pipeline.decode import decoder_version
from pipeline.manifest import Manifest, read_manifest
from pipeline.see import ClipSeer

_log = logging.getLogger(__name__)

_LABEL_COLUMNS = ("label", "split", "subject", "source", "extra")
"""What a manifest may change about a clip without touching its features."""


@dataclass(frozen=True, kw_only=True)
class ExtractProgress:
    """Told after each clip, and once before the first."""

    n_clips: int
    """Clips that this run has to do."""
    n_done: int
    n_failed: int
    n_frames: int


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What a run of extract did; the object that ``--json`` prints."""

    clips_done: int
    clips_skipped: int
    """Clips that were done before."""
    clips_failed: int
    frames: int
    faces: int
    wall_s: float
    fingerprint: str
    store: str


@dataclass(frozen=True, kw_only=True)
class ManifestOptions:
    """How a manifest is read; see ``read_manifest``."""

    classes: Sequence[str] | None = None
    allow_subject_overlap: bool = False


def run_extract(
    manifest: Path,
    store: Path,
    config: ExtractConfig,
    *,
    options: ManifestOptions = ManifestOptions(),
    face_weights: Path = SHIPPED_FACE_WEIGHTS,
    device: str = "auto",
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
        progress: Told before the first clip and after each.

    Raises:
        ManifestError: the manifest has problems; nothing was done.
        ConfigError: the store was made with other settings, or the device does not exist.
        WeightsError: pretrained weights are missing or not the expected ones.
        OSError: the store cannot be written (a full disk); finished shards are kept.
    """
    started_s = time.monotonic()
    torch_device = choose_device(device)
    listed = _read_manifest_for(store, manifest, options)
    header = make_header(config, listed.classes, face_weights)
    tally = _Tally()
    with StoreWriter(store, header) as writer:
        inputs = _InputHashes(store / "inputs.json")
        todo, updates = _plan(listed.clips, writer.open(), config, inputs)
        if updates:
            _log.info("%d clips have new labels in the manifest; their features stay", len(updates))
            writer.relabel(updates)
        failures = _Failures(store)
        failures.forget({clip.clip_id for clip in listed.clips} - {clip.clip_id for clip in todo})
        try:
            if todo:
                seer = ClipSeer(config, face_weights, torch_device)
                progress(tally.told(len(todo)))
            for clip in todo:
                seen = _see_or_fail(seer, clip, inputs)
                if isinstance(seen, Failure):
                    failures.add(seen)
                else:
                    writer.add(seen)
                    failures.forget({seen.clip_id})
                tally.count(seen)
                progress(tally.told(len(todo)))
        finally:
            failures.write()
            inputs.write()
    return ExtractSummary(
        clips_done=tally.n_done,
        clips_skipped=len(listed.clips) - len(todo),
        clips_failed=tally.n_failed,
        frames=tally.n_frames,
        faces=tally.n_faces,
        wall_s=round(time.monotonic() - started_s, 3),
        fingerprint=header.fingerprint,
        store=str(store),
    )


def make_header(config: ExtractConfig, classes: Sequence[str], face_weights: Path) -> ShardHeader:
    """What all shards that these settings make have in common."""
    if not face_weights.is_file():
        raise WeightsError(f"{face_weights}: no such file, expected weights of a face network")
    weights = {name: file.sha256 for name, file in MTCNN_FILES.items()}
    weights["context"] = find_context_weights_sha256(config.context_weights)
    weights["face"] = hash_file(face_weights)
    settings = json.loads(json.dumps(asdict(config)))  # tuples become lists, as when read back
    versions = {n: importlib.metadata.version(n) for n in ("torch", "torchvision", "av", "h5py")}
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
        face_map_shape=read_face_network(face_weights).map_shape if config.face_map else None,
    )


def choose_device(device: str) -> torch.device:
    """``auto`` is a CUDA device where there is one. Raises ConfigError for one that is not."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"--device {device}: expected auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {device}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return chosen


class _Tally:
    """Counts of one run."""

    def __init__(self) -> None:
        self.n_done = self.n_failed = self.n_frames = self.n_faces = 0

    def count(self, seen: ClipFeatures | Failure) -> None:
        if isinstance(seen, Failure):
            self.n_failed += 1
            _log.warning("clip %s: %s: %s", seen.clip_id, seen.step, seen.reason)
        else:
            self.n_done += 1
            self.n_frames += seen.n_frames
            self.n_faces += seen.n_faces

    def told(self, n_clips: int) -> ExtractProgress:
        return ExtractProgress(
            n_clips=n_clips,
            n_done=self.n_done,
            n_failed=self.n_failed,
            n_frames=self.n_frames,
        )


class _Failures:
    """failures.csv while clips are tried: a row goes when its clip is done, not before."""

    def __init__(self, store: Path) -> None:
        self._store = store
        rows = read_failures(store)[list(FAILURE_COLUMNS)].itertuples(index=False)
        self._rows = {
            row[0]: Failure(**dict(zip(FAILURE_COLUMNS, row, strict=True))) for row in rows
        }

    def add(self, failure: Failure) -> None:
        self._rows[failure.clip_id] = failure
        self.write()  # at once: a kill must not lose it

    def forget(self, clip_ids: set[str]) -> None:
        for clip_id in clip_ids:
            self._rows.pop(clip_id, None)

    def write(self) -> None:
        write_failures(self._store, list(self._rows.values()))


class _InputHashes:
    """SHA-256 of the clips' files; a file of unchanged size and time is not read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, list[Any]] = {}
        try:
            self._known = json.loads(path.read_bytes())
        except (OSError, ValueError):  # absent or damaged: files are hashed again
            self._known = {}

    def sha256(self, file: Path) -> str:
        """Raises OSError."""
        state = file.stat()
        key = str(file.resolve())
        known = self._known.get(key)
        if known is None or known[:2] != [state.st_size, state.st_mtime_ns]:
            self._known[key] = [state.st_size, state.st_mtime_ns, hash_file(file)]
        return str(self._known[key][2])

    def write(self) -> None:
        write_atomically(self.path, json.dumps(self._known, indent=0) + "\n")


def _read_manifest_for(store: Path, manifest: Path, options: ManifestOptions) -> Manifest:
    """The manifest, read with the classes that the store declares if it exists."""
    classes = options.classes
    if classes is None and (store / "store.json").is_file():
        classes = read_store_index(store)[0].classes
    listed = read_manifest(
        manifest, classes=classes, allow_subject_overlap=options.allow_subject_overlap
    )
    if listed.classes_assumed:
        _log.warning(
            "%s: no label is one of MEC 2017's; the classes are taken to be %s. --classes declares "
            "them and their order.",
            manifest,
            ", ".join(listed.classes),
        )
    return listed


def _plan(
    clips: Sequence[Clip], store: Store, config: ExtractConfig, inputs: _InputHashes
) -> tuple[list[Clip], dict[str, dict[str, str]]]:
    """Which clips to extract, and which done ones got new labels (id -> column -> value)."""
    done = {row["clip_id"]: row for row in store.clips.to_dict("records")}
    todo, updates = [], {}
    for clip in clips:
        row = done.pop(clip.clip_id, None)
        if row is None or not _is_current(row, clip, config, inputs):
            todo.append(clip)
        if row is None:
            continue
        # Also of a clip that is extracted again: should that fail, its old rows must not stand in
        # the wrong split.
        wanted = {name: getattr(clip, name) for name in _LABEL_COLUMNS[:-1]}
        wanted["extra"] = json.dumps(dict(clip.extra), sort_keys=True, ensure_ascii=False)
        if any(row[name] != wanted[name] for name in _LABEL_COLUMNS):
            updates[clip.clip_id] = wanted
    if done:
        _log.warning(
            "%d clips of the store are not in this manifest; they stay in the store (a new --store "
            "folder leaves them out)",
            len(done),
        )
    return todo, updates


def _is_current(
    row: dict[Any, Any], clip: Clip, config: ExtractConfig, inputs: _InputHashes
) -> bool:
    same_part = all(
        row[name] == getattr(clip, name) or (row[name] != row[name] and getattr(clip, name) is None)
        for name in ("start_s", "end_s")
    )
    if not same_part or row["n_phases"] != config.n_phases(clip.split):
        return False
    try:
        return bool(row["sha256"] == inputs.sha256(clip.path))
    except OSError:  # the file is gone or out of reach, its features are not
        return True


def _see_or_fail(seer: ClipSeer, clip: Clip, inputs: _InputHashes) -> ClipFeatures | Failure:
    """The features of a clip, or why there are none."""
    seer.step = "read"
    try:
        return seer.see(clip, inputs.sha256(clip.path) if clip.path.is_file() else "")
    except ClipError as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or type(error).__name__})"
    except Exception as error:  # the one broad except: whatever one clip does, the others go on
        _log.debug("clip %s", clip.clip_id, exc_info=True)
        reason = f"unexpected {type(error).__name__}: {error}"
    reason = reason.replace(str(clip.path), clip.path.name)  # reasons travel in bundles
    return Failure(clip_id=clip.clip_id, path=str(clip.path), step=seer.step, reason=reason)
