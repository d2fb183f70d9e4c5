"""Protocols: which clip takes which split in a run, where that is not the manifest's own split.

::

    --store A --store B --test-store C   A and B give train and val, C gives test
    --folds 5                            five runs; each tests on a fifth of the subjects
    --folds source                       a run a source; each tests on that source
    sweep                                train and val alone

Pure tables: clip ids in, clip ids with splits out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.errors import ConfigError
from features.fingerprint import hash_json
from features.store.reader import Store

VAL_PARTS = 5
"""Of the clips that a fold does not test, the part that chooses the epoch is one in this many."""

_SMALLEST_FOLDS = 2


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold of a protocol: a run's splits."""

    protocol: str
    """``subject`` or ``source``."""
    name: str
    """``1of5``, or the source that is tested."""
    number: int
    """From 1."""
    n_folds: int
    splits: Mapping[str, str]
    """Clip id -> ``train``, ``val`` or ``test``."""
    key: str = ""
    """The same for all folds of one division of one set of clips, and for none else."""
    clips_sha256: str = ""
    """Of all clips that were divided, as ``train.naming.hash_clips`` gives it."""

    @property
    def place(self) -> str:
        """How a run's folder names it."""
        return f"fold{self.number}of{self.n_folds}"

    def describe(self) -> dict[str, Any]:
        """What config.json tells of it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "splits"}


def make_folds(clips: pd.DataFrame, folds: str) -> list[Fold]:
    """Divide clips into folds; the manifest's splits play no part.

    Every clip is tested in one fold. A subject is never in two splits of a fold by ``--folds N``;
    with ``source`` it is where it stands in two sources. A clip without a subject is a subject of
    its own. Of the clips that a fold does not test, one in ``VAL_PARTS``, whole subjects again,
    is val. All is a function of the clips' ids, labels, subjects and sources.

    Args:
        clips: clip_id, label, subject, source; of one or several stores.
        folds: A number of folds, or ``source``.

    Raises:
        ConfigError: Neither of the two, or fewer subjects or sources than folds.
    """
    clips = clips.sort_values("clip_id", kind="stable").reset_index(drop=True)
    subjects = clips["subject"].where(clips["subject"] != "", "\0" + clips["clip_id"])
    if folds == "source":
        sources = sorted(set(clips["source"]))
        if len(sources) < _SMALLEST_FOLDS:
            raise ConfigError(
                f"folds source: the clips come from {len(sources)} source(s), expected two or "
                "more. Fill the column source of the manifest and run extract again, or take "
                "folds by subject, for example --folds 5."
            )
        number = np.array([sources.index(source) for source in clips["source"]])
        protocol, names = "source", [source or "none" for source in sources]
    else:
        n_folds = _parse_number(folds)
        number = divide_groups(subjects, clips["label"], n_folds)
        protocol, names = "subject", [f"{i + 1}of{n_folds}" for i in range(n_folds)]
    made = [
        Fold(
            protocol=protocol,
            name=name,
            number=i + 1,
            n_folds=len(names),
            splits=_split_fold(clips, subjects, number == i, name),
        )
        for i, name in enumerate(names)
    ]
    key = hash_json([protocol, [sorted(fold.splits.items()) for fold in made]])
    return [replace(fold, key=key) for fold in made]


def divide_groups(
    groups: Sequence[str] | pd.Series[str], labels: Sequence[str] | pd.Series[str], n_parts: int
) -> NDArray[np.intp]:
    """Divide clips into parts of like size and like labels; groups stay whole.

    Greedy: groups go one by one, those with most clips first and equal ones by name, to the part
    that leaves the classes most evenly spread (least sum over classes of squared shares).

    Args:
        groups: [N] Subject of each clip.
        labels: [N] Label of each clip; empty is a class of its own.
        n_parts: K.

    Returns:
        [N] Part of each clip, 0..K-1; no part is empty.

    Raises:
        ConfigError: Fewer groups than parts.
    """
    names, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    kinds, label = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    if len(names) < n_parts:
        raise ConfigError(
            f"folds {n_parts}: the clips show {len(names)} subject(s), expected {n_parts} or "
            "more. Ask for fewer folds."
        )
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (group, label), 1)
    share = counts / counts.sum(axis=0)  # of its class's clips that a group has
    of_part = np.zeros((n_parts, len(kinds)))
    n_clips = np.zeros(n_parts)
    part = np.empty(len(names), np.intp)
    order = np.lexsort((np.arange(len(names)), -counts.sum(axis=1)))
    for place, one in enumerate(order):
        # |p + s|^2 - |p|^2 of each part, which is all that differs between the choices.
        rise = 2 * of_part @ share[one] + share[one] @ share[one]
        if len(order) - place <= (n_clips == 0).sum():
            rise[n_clips > 0] = np.inf  # the last groups go to parts that have none yet
        part[one] = np.lexsort((np.arange(n_parts), n_clips, np.round(rise, 9)))[0]
        of_part[part[one]] += share[one]
        n_clips[part[one]] += counts[one].sum()
    return part[group]


def split_test_stores(stores: Sequence[Store], test_stores: Sequence[Store]) -> list[Store]:
    """Train and val of some stores, test of others: views that ``fit`` reads as one set.

    The manifest's splits stand: test clips of ``stores`` are left out, and so are train and val
    clips of ``test_stores``.

    Raises:
        ConfigError: No test clip in ``test_stores``, or a clip id in both.
    """
    learned, tested = keep_splits(stores, "train", "val"), keep_splits(test_stores, "test")
    for store, whole in zip(tested, test_stores, strict=True):
        if len(store) == 0:
            raise ConfigError(
                f"{store.path}: no clip with the split test among its {len(whole)}. Give the clips "
                "to test on the split test in its manifest and run extract again: features are "
                "kept."
            )
    known = {clip_id: store.path for store in stores for clip_id in store.clips["clip_id"]}
    for store in tested:
        if twice := [clip_id for clip_id in store.clips["clip_id"] if clip_id in known]:
            raise ConfigError(
                f"clip {twice[0]}: stands in {known[twice[0]]} and in {store.path}, as "
                f"{len(twice)} clip(s) do, so that test might score what was trained on. Leave "
                "them out of one manifest, or give each clip an id of its own, and extract again."
            )
    return [*learned, *tested]


def keep_splits(stores: Sequence[Store], *splits: str) -> list[Store]:
    """Views of stores with the clips of some splits; of the others nothing is read."""
    return [_choose_clips(store, store.clips["split"].isin(splits)) for store in stores]


def leave_out_unlabelled(stores: Sequence[Store], splits: Collection[str]) -> list[Store]:
    """Views of stores without the clips of some splits that have no label."""
    return [
        _choose_clips(store, (store.clips["label"] != "") | ~store.clips["split"].isin(splits))
        for store in stores
    ]


def leave_out_clips(stores: Sequence[Store], clip_ids: Collection[str]) -> list[Store]:
    """Views of stores without some clips."""
    if not clip_ids:
        return list(stores)
    return [_choose_clips(store, ~store.clips["clip_id"].isin(clip_ids)) for store in stores]


def _choose_clips(store: Store, kept: pd.Series[bool]) -> Store:
    clips = store.clips[kept]
    return store.with_splits(dict(zip(clips["clip_id"], clips["split"], strict=True)))


def _parse_number(folds: str) -> int:
    if not folds.isdecimal() or int(folds) < _SMALLEST_FOLDS:
        raise ConfigError(
            f"folds {folds!r}: expected a number of folds by subject, {_SMALLEST_FOLDS} or more, "
            "or the word source."
        )
    return int(folds)


def _split_fold(
    clips: pd.DataFrame, subjects: pd.Series[str], tested: NDArray[np.bool_], name: str
) -> dict[str, str]:
    splits = np.where(tested, "test", "train").astype(object)
    labelled = ~tested & (clips["label"] != "").to_numpy()
    # Clips without a label teach nothing and choose nothing, but belong to somebody.
    n_subjects = subjects[labelled].nunique()
    if n_subjects < _SMALLEST_FOLDS:
        raise ConfigError(
            f"fold {name}: {n_subjects} subject(s) with a label are left to train on and to choose "
            "the epoch with, expected two or more. Ask for other folds, or add clips."
        )
    rest = np.flatnonzero(labelled)
    parts = divide_groups(
        subjects.iloc[rest], clips["label"].iloc[rest], min(VAL_PARTS, n_subjects)
    )
    of_val = set(subjects.iloc[rest[parts == 0]])
    splits[~tested & subjects.isin(of_val).to_numpy()] = "val"
    return dict(zip(clips["clip_id"], splits, strict=True))
