"""What names a run: a hash of exactly what its training and its choice of epoch see.

Both see the train and val clips that have a label: their features, labels and order, which is that
of their ids. Neither sees a clip without a label, a test clip, or who a clip shows: where only
such things change, the run stays and is scored again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from features.fingerprint import hash_json
from train.config import FitConfig, describe_settings, name_as_stored
from train.streams import ENSEMBLE, Matrices, MatrixSpec, split_members

_FEATURES = ("sha256", "start_s", "end_s", "n_phases", "decoder", "n_frames", "n_faces")
"""What decides a clip's features beside the fingerprint, and how many rows came of it."""
_LEARNED = ("clip_id", "label", "split", *_FEATURES)
_SCORED = (*_LEARNED, "subject", "source")


def hash_learned_clips(clips: pd.DataFrame, classes: Sequence[str]) -> str:
    """The hash of what training and the choice of its epoch see of some clips.

    Args:
        clips: As ``features.store.reader.Store.clips`` has them, in any order.
        classes: As the store declares them.
    """
    seen = clips["split"].isin(["train", "val"]) & (clips["label"] != "")
    return _hash_columns(clips[seen], _LEARNED, classes)


def hash_clips(clips: pd.DataFrame, classes: Sequence[str]) -> str:
    """The hash of all that a run's predictions, metrics and counts of clips depend on."""
    return _hash_columns(clips, _SCORED, classes)


def hash_runs(
    heads: Sequence[str], config: FitConfig, store: Mapping[str, Any], matrices: Matrices
) -> dict[str, str]:
    """Head -> what names its runs beside head, fold and seed.

    Args:
        heads: An ensemble's members among them.
        config: ``precision`` resolved.
        store: ``train.data.stores.describe_stores`` of the stores.
        matrices: What the heads read of them.
    """
    keys = {}
    for head in heads:
        if head == ENSEMBLE:
            continue
        streams = {
            stream: [matrix, *_list_features(matrices[matrix])]
            for stream, matrix in config.choose_streams(head, matrices).items()
        }
        settings = name_as_stored(describe_settings(head, config))
        keys[head] = hash_json([settings, streams, store["fingerprint"], store["learned_sha256"]])
    if ENSEMBLE in heads:
        members = split_members(config.members)
        keys[ENSEMBLE] = hash_json([[member, keys[member]] for member in members])
    return keys


def _list_features(matrix: MatrixSpec) -> list[Any]:
    """What decides a matrix beside the stores' fingerprint."""
    shape = list(matrix.shape)
    return [shape, matrix.fingerprint] if matrix.fingerprint else [shape]


def _hash_columns(clips: pd.DataFrame, columns: Sequence[str], classes: Sequence[str]) -> str:
    # Of two stores one may have no clip with a start: its column then holds None, not NaN.
    table = clips.sort_values("clip_id", kind="stable")[list(columns)].astype(object)
    rows = table.where(table.notna(), None).to_numpy().tolist()
    return hash_json([list(classes), list(columns), rows])
