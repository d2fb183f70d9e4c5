"""What an extract has to do: which clips are new, changed or failed before. Loads no network."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from features.contracts import Clip
from features.errors import ClipError
from features.store.index import read_store_index
from features.store.reader import Store
from pipeline.config import ExtractConfig
from pipeline.decode.opening import MissingFileError
from pipeline.inputs import Inputs
from pipeline.manifest.reader import Manifest, ManifestOptions, read_manifest

_log = logging.getLogger(__name__)

_LABEL_COLUMNS = ("label", "split", "subject", "source", "extra")
"""What a manifest may change about a clip without touching its features."""
_NAMED = 5
_LONG_BYTES = 2_000_000_000
"""Of files to be hashed: some seconds."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of one run."""

    todo: tuple[Clip, ...]
    """In the manifest's order."""
    updates: Mapping[str, Mapping[str, str]]
    """Clip id -> column -> value, for done clips that have other labels now."""


def read_manifest_for(store: Path, manifest: Path, options: ManifestOptions) -> Manifest:
    """The manifest, read with the classes that the store declares if it exists."""
    if options.classes is None and (store / "store.json").is_file():
        options = replace(options, classes=read_store_index(store, relabelling=True).header.classes)
    listed = read_manifest(manifest, options)
    for warning in listed.warnings[:_NAMED]:
        _log.warning("%s: %s", manifest, warning)
    if len(listed.warnings) > _NAMED:
        _log.warning("%s: %d such clips in all", manifest, len(listed.warnings))
    if listed.classes_assumed:
        _log.warning(
            "%s: no label is one of MEC 2017's; the classes are taken to be %s. --classes declares "
            "them and their order.",
            manifest,
            ", ".join(listed.classes),
        )
    return listed


def plan_extract(
    clips: Sequence[Clip], store: Store, config: ExtractConfig, inputs: Inputs
) -> Plan:
    """Compare a manifest's clips with what a store holds."""
    done = {row["clip_id"]: row for row in store.clips.to_dict("records")}
    _tell_hashing({c.path for c in clips if c.clip_id in done}, inputs)
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
    return Plan(todo=tuple(todo), updates=updates)


def _tell_hashing(paths: Collection[Path], inputs: Inputs) -> None:
    """Log how much is to be hashed where that takes long: no clip is reported meanwhile."""
    sizes = [n_bytes for path in paths if (n_bytes := inputs.count_new_bytes(path))]
    if sum(sizes) > _LONG_BYTES:
        _log.info(
            "hashing %d files of done clips, as they are new here or were touched: %.1f GB",
            len(sizes),
            sum(sizes) / 1e9,
        )


def _is_current(row: dict[Any, Any], clip: Clip, config: ExtractConfig, inputs: Inputs) -> bool:
    same_part = all(
        row[name] == getattr(clip, name) or (row[name] != row[name] and getattr(clip, name) is None)
        for name in ("start_s", "end_s")
    )
    if not same_part or row["n_phases"] != config.n_phases(clip.split):
        return False
    try:
        found, _ = inputs.look_up(clip.path)
    except (OSError, MissingFileError):  # the file is out of reach, its features are not
        return True
    except ClipError:  # there is something else in its place
        return False
    inputs.remember(clip.path, found)
    return bool(row["sha256"] == found.sha256)
