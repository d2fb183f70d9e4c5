"""Compares two stores of the same clips: their boxes, and every row of features.

    python benchmarks/stores.py --against STORE --candidate STORE

Boxes of frames that both stores have: recall of the first store's faces with score >= 0.95 in the
second, and precision, by the rules of faces.py (``tracked`` against ``exact``). Features: the
cosine of each row of one store with its counterpart in the other, context by frame, face vectors
by matched face (reduced precision against float32). A row that is all zero in both counts as 1.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import numpy as np
import pandas as pd
from faces import PTS_TOLERANCE_S, SURE, Found, Tally, describe, match_boxes, print_differences
from numpy.typing import NDArray

from features.contracts import ClipFeatures
from features.store.reader import open_store


def cosines(a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.float64]:
    """[N, ...], [N, ...] -> [N] cosine of each row with its counterpart."""
    width = math.prod(a.shape[1:])
    x, y = (rows.reshape(len(rows), width).astype(np.float64) for rows in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    both_zero = ~x.any(axis=1) & ~y.any(axis=1)
    return np.where(both_zero, 1.0, (x * y).sum(axis=1) / np.maximum(norms, 1e-30))


def print_cosines(name: str, parts: list[NDArray[np.float64]]) -> None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    if not len(values):
        print(f"{name:12} no row in both stores")
        return
    print(
        f"{name:12} {len(values)} rows: cosine min {values.min():.6f}, 0.1% quantile "
        f"{np.quantile(values, 0.001):.6f}, median {np.median(values):.6f}, "
        f"{np.mean(values < 0.999):.2%} below 0.999"
    )


def pair_frames(a: ClipFeatures, b: ClipFeatures) -> list[tuple[int, int]]:
    """Rows of a and b that are the same frame in the same phase."""
    keys_a, keys_b = (
        list(zip((clip.pts_s / PTS_TOLERANCE_S).round(), clip.phase, strict=True))
        for clip in (a, b)
    )
    rows = {key: j for j, key in enumerate(keys_b)}
    return [(i, rows[key]) for i, key in enumerate(keys_a) if key in rows]


def faces_of(clip: ClipFeatures, row: int) -> tuple[Found, NDArray[np.intp]]:
    """The faces of a frame, and their rows."""
    rows = np.flatnonzero(clip.face_frame == row)
    return Found(box_px=clip.box_px[rows], score=clip.score[rows]), rows


@click.command()
@click.option("--against", required=True, type=click.Path(path_type=Path))
@click.option("--candidate", required=True, type=click.Path(path_type=Path))
def main(against: Path, candidate: Path) -> None:
    """Recall, precision and cosines of a candidate store against another of the same clips."""
    stores = open_store(against), open_store(candidate)
    ids, other_ids = (pd.Index(store.clips["clip_id"]) for store in stores)
    shared = ids.intersection(other_ids, sort=False)
    tally = Tally()
    found: dict[str, list[NDArray[np.float64]]] = {"context 7x7": [], "context 2x2": [], "face": []}
    missed, extra, n_unpaired = [], [], 0
    for clip_id in shared:
        a = stores[0].read_clip(ids.get_loc(clip_id), context_7x7=True)
        b = stores[1].read_clip(other_ids.get_loc(clip_id), context_7x7=True)
        pairs = pair_frames(a, b)
        n_unpaired += a.n_frames - len(pairs)
        rows_a, rows_b = (np.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
        found["context 7x7"].append(cosines(a.context_7x7[rows_a], b.context_7x7[rows_b]))
        found["context 2x2"].append(cosines(a.context_2x2[rows_a], b.context_2x2[rows_b]))
        for i, j in pairs:
            (ours, of_a), (theirs, of_b) = faces_of(a, i), faces_of(b, j)
            lost, added = tally.count(ours, theirs, SURE)
            where = f"{clip_id} {a.pts_s[i]:.3f} s"
            missed += [f"{where}: {describe(ours, k, theirs)}" for k in lost]
            extra += [f"{where}: {describe(theirs, k, ours)}" for k in added]
            matched = match_boxes(ours.box_px, theirs.box_px)
            vectors_a = a.face_vector[of_a[[k for k, _, _ in matched]]]
            vectors_b = b.face_vector[of_b[[k for _, k, _ in matched]]]
            found["face"].append(cosines(vectors_a, vectors_b))
    print(f"{len(shared)} clips in both; {n_unpaired} frames of {against} are not in {candidate}")
    print(f"boxes        {tally}")
    for name, parts in found.items():
        print_cosines(name, parts)
    print_differences(missed, f"score >= {SURE} in {against}, absent from {candidate}")
    print_differences(extra, f"score >= {SURE} in {candidate}, absent from {against}")


if __name__ == "__main__":
    main()
