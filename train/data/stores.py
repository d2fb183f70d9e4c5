"""What ``fit`` takes from stores: that they fit together, what they hold, and their features."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from features.contracts import SPLITS
from features.errors import ConfigError, ShardError
from features.store.reader import Store
from train.config import FitConfig
from train.data.clips import ClipTable, TableBuilder, number_label, read_matrix
from train.data.memory import choose_limit, choose_on_disk
from train.naming import hash_clips, hash_learned_clips
from train.streams import Matrices

_BYTES_PER_VALUE = 2  # of float16 and bfloat16 alike
_NAMED = 5

_log = logging.getLogger(__name__)


def check_stores(stores: Sequence[Store]) -> None:
    """Raise ConfigError unless stores may be mixed: same fingerprint and classes, no clip twice.

    Subjects and files that stand in two splits are logged as a warning: such scores flatter.
    """
    if not stores:
        raise ConfigError("no store given. Name one with --store DIR.")
    first = stores[0]
    for other in stores[1:]:
        if other.fingerprint != first.fingerprint:
            raise ConfigError(
                f"{other.path}: fingerprint {other.fingerprint[:12]}, expected "
                f"{first.fingerprint[:12]} as in {first.path}: their features were made "
                "differently. Extract both with the same settings and versions."
            )
        if other.classes != first.classes:
            raise ConfigError(
                f"{other.path}: classes {', '.join(other.classes)}; expected "
                f"{', '.join(first.classes)} as in {first.path}. "
                "Extract both with the same classes."
            )
    clips = _join_clips(stores)
    _warn_of_shared_subjects(clips)
    _warn_of_shared_files(clips)
    ids = clips["clip_id"]
    twice = sorted(set(ids[ids.duplicated()]))
    if twice:
        raise ConfigError(
            f"clip {twice[0]}: stands in two of the stores, as {len(twice)} clip(s) do. "
            "Give each clip an id of its own in the manifests and extract again."
        )


def describe_stores(stores: Sequence[Store], n_lacking: int = 0) -> dict[str, Any]:
    """What a run's config.json tells of its stores, as plain JSON values.

    With the fingerprint, ``learned_sha256`` decides every number that training and the choice of
    its epoch see, and ``clips_sha256`` all that is told of a run beside.

    Args:
        stores: With the clips that the run has.
        n_lacking: Clips that were left out, as they lack a stream.
    """
    clips = _join_clips(stores)
    header = stores[0].header
    return {
        "paths": [str(store.path) for store in stores],
        "fingerprint": header.fingerprint,
        "clips_sha256": hash_clips(clips, header.classes),
        "learned_sha256": hash_learned_clips(clips, header.classes),
        "classes": list(header.classes),
        "splits": {
            split: _describe_split(clips[clips["split"] == split], header.classes)
            for split in SPLITS
        },
        "sources": {
            str(source): int(n) for source, n in clips["source"].value_counts().sort_index().items()
        },
        "n_failed": sum(len(store.failures) for store in stores),
        "n_lacking": n_lacking,
        "expressions": _average_expressions(stores),
        "extract_config": dict(header.config),
        "weights": dict(header.weights),
        "versions": dict(header.versions),
    }


def list_clips(stores: Sequence[Store]) -> dict[str, ClipTable]:
    """The clips of each split without any feature: enough to score predictions of them."""
    clips = _join_clips(stores).sort_values("clip_id", kind="stable")
    tables = {}
    for split in SPLITS:
        of_split = clips[clips["split"] == split]
        tables[split] = ClipTable(
            clip_id=tuple(of_split["clip_id"]),
            label=np.array(
                [
                    number_label(label, stores[0].classes, f"clip {clip_id}")
                    for clip_id, label in zip(of_split["clip_id"], of_split["label"], strict=True)
                ],
                np.intp,
            ),
            group=tuple(of_split["subject"].where(of_split["subject"] != "", of_split["clip_id"])),
            phases=(),
            features={},
            matrices={},
        )
    return tables


def read_tables(
    stores: Sequence[Store],
    config: FitConfig,
    matrices: Matrices,
    *,
    memory_gb: float | None = None,
    scratch: Path | None = None,
) -> dict[str, ClipTable]:
    """Read all clips once: split -> its clips with their features.

    Matrices that exceed the memory are unpacked into files without a name, from which each batch
    takes its rows: the numbers of training are the same.

    Args:
        stores: Checked by ``check_stores``.
        config: ``precision`` resolved; train rows are kept in bfloat16 where training multiplies in
            it and nothing comes before, everything else as stored, in float16.
        matrices: What heads read, as ``train.data.store_streams.choose_matrices`` gives it.
        memory_gb: What features may take of it, in 10^9 bytes; None: three quarters of the free.
        scratch: Folder for the rest; made where it is missing. None: the system's.

    Raises:
        ShardError: A store is damaged, or has features that are not finite.
        ConfigError: A label that the stores do not declare, or no room in the scratch folder.
    """
    clips = _join_clips(stores)
    n_bytes = _count_bytes(clips, matrices)
    on_disk = choose_on_disk(n_bytes, choose_limit(memory_gb))
    if on_disk:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        _check_disk(sum(n_bytes[key] for key in on_disk), scratch)
    builders = {}
    for split in SPLITS:
        of_split = clips[clips["split"] == split]
        # What is standardised is rounded to bfloat16 after that, else a large mean eats the rest.
        in_bfloat16 = (split, config.precision, config.standardise) == ("train", "bfloat16", "off")
        builders[split] = TableBuilder(
            n_frames=int(of_split["n_frames"].sum()),
            n_faces=int(of_split["n_faces"].sum()),
            matrices=matrices,
            dtype=torch.bfloat16 if in_bfloat16 else torch.float16,
            on_disk=[name for of, name in on_disk if of == split],
            scratch=scratch,
        )
    for store in stores:
        broken = []
        for clip in store.iter_clips(
            context_7x7="context_7x7" in matrices,
            face_map="face_map" in matrices,
            streams=store.streams.keys() & matrices.keys(),
        ):
            values = {name: torch.from_numpy(read_matrix(clip, name)) for name in matrices}
            if names := [name for name, v in values.items() if not v.isfinite().all()]:
                broken.append(f"{clip.clip_id} ({', '.join(names)})")
            label = number_label(clip.label, store.classes, f"{store.path}: clip {clip.clip_id}")
            builders[clip.split].add(
                clip, label, faces=config.faces, max_time_steps=config.max_time_steps
            )
        if broken:
            more = ", ..." if len(broken) > _NAMED else ""
            raise ShardError(
                f"{store.path}: {len(broken)} clip(s) with features that are not finite numbers: "
                f"{', '.join(broken[:_NAMED])}{more}. Mend what made them and write the store "
                "again, or extract the other clips into a new store."
            )
    return {split: builder.finish() for split, builder in builders.items()}


def _join_clips(stores: Sequence[Store]) -> pd.DataFrame:
    return pd.concat([store.clips for store in stores], ignore_index=True)


def _warn_of_shared_subjects(clips: pd.DataFrame) -> None:
    known = clips[clips["subject"] != ""]
    n_splits = known.groupby("subject")["split"].nunique()
    shared = sorted(n_splits.index[n_splits > 1])
    if shared:
        more = ", ..." if len(shared) > _NAMED else ""
        _log.warning(
            "%d subject(s) stand in more than one split: %s%s. Scores on val and test then count "
            "people that training saw; give each subject one split in the manifests.",
            len(shared),
            ", ".join(shared[:_NAMED]),
            more,
        )


def _warn_of_shared_files(clips: pd.DataFrame) -> None:
    known = clips[clips["sha256"] != ""]
    same = known.groupby(["sha256", "start_s", "end_s"], dropna=False)
    n_splits = same["split"].transform("nunique")
    in_two_splits = known.loc[n_splits > 1].sort_values(["sha256", "clip_id"], kind="stable")
    shared = list(zip(in_two_splits["clip_id"], in_two_splits["split"], strict=True))
    if shared:
        _log.warning(
            "%d clips are the same files as clips of another split, under other ids: %s%s. Scores "
            "on val and test then count what training saw. Give all of one file the same split in "
            "the manifests and run extract again (to leave a clip out of the manifest does not "
            "take it from the store).",
            len(shared),
            ", ".join(f"{id_} ({split})" for id_, split in shared[:_NAMED]),
            ", ..." if len(shared) > _NAMED else "",
        )


def _count_bytes(clips: pd.DataFrame, matrices: Matrices) -> dict[tuple[str, str], int]:
    """(split, matrix) -> its size."""
    n_bytes = {}
    for split in SPLITS:
        of_split = clips[clips["split"] == split]
        for name, matrix in matrices.items():
            n_rows = int(of_split[f"n_{matrix.rows}s"].sum())
            n_bytes[split, name] = n_rows * math.prod(matrix.shape) * _BYTES_PER_VALUE
    return n_bytes


def _check_disk(needed: int, scratch: Path | None) -> None:
    """Raise ConfigError where the scratch folder has no room for what memory does not hold."""
    folder = scratch or Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"{folder}: features that exceed the memory need {needed / 1e9:.1f} GB of disk here "
            f"while training runs, and {free / 1e9:.1f} GB are free. Free some, raise fit's "
            "--memory, or set context=2x2."
        )
    _log.info("%.1f GB of features are read from disk in every epoch.", needed / 1e9)


def _average_expressions(stores: Sequence[Store]) -> dict[str, dict[str, float]]:
    """Class -> expression -> its mean probability over the faces of all clips of that class.

    Classes without a face are left out; empty where a store has no expressions, or others.
    """
    names = stores[0].header.expressions
    if not names or any(store.header.expressions != names for store in stores):
        return {}
    sums = np.concatenate([store.sum_expressions() for store in stores])
    clips = _join_clips(stores)
    averages = {}
    for label in stores[0].classes:
        of_label = (clips["label"] == label).to_numpy()
        if n_faces := int(clips["n_faces"][of_label].sum()):
            mean = sums[of_label].sum(axis=0) / n_faces
            averages[label] = dict(zip(names, mean.round(6).tolist(), strict=True))
    return averages


def _describe_split(clips: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "n_clips": len(clips),
        "n_labelled": int((clips["label"] != "").sum()),
        "n_no_face": int((clips["status"] == "no-face").sum()),
        "n_frames": int(clips["n_frames"].sum()),
        "n_faces": int(clips["n_faces"].sum()),
        "labels": {name: int((clips["label"] == name).sum()) for name in classes},
    }
