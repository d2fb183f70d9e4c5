"""Batches of clips: which clips an epoch shows, in which order, padded to a batch's longest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.data.clips import UNLABELLED, ClipTable
from train.data.matrices import Matrix, gather_rows
from train.seeds import make_rng

WINDOW_BATCHES = 16
"""Clips are sorted by length among this many batches; where there are fewer, within each alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Clips padded to the longest among them."""

    streams: Mapping[str, Tensor]
    """Stream name -> [*runs, B, T, D], 16-bit floats, zeros behind a clip's end; in memory
    [*runs, T, B, D], the order in which heads read them."""
    n_steps: Tensor
    """[*runs, B] True lengths."""
    label: Tensor
    """[*runs, B] Class numbers."""


def draw_phases(table: ClipTable, seed: int, epoch: int) -> NDArray[np.intp]:
    """[N] Each clip's phase in this epoch: its random initial frame (IV-C)."""
    n_phases = np.array([len(phases) for phases in table.phases])
    rng = make_rng("phases", seed, epoch)
    drawn: NDArray[np.intp] = (rng.random(len(table)) * n_phases).astype(np.intp)
    return drawn


def draw_clips(label: NDArray[np.intp], sampling: str, seed: int, epoch: int) -> NDArray[np.intp]:
    """Draw the clips that an epoch shows, as a function of seed and epoch.

    Args:
        label: [N] Class number of each clip, ``UNLABELLED`` ones never drawn.
        sampling: ``shuffled``: each labelled clip once. ``balanced``: as many in all, and of each
            class that has a clip as many as of every other, up to one; its clips take turns.
        seed: Of the run.
        epoch: From 1.

    Returns:
        Positions, as many as there are labelled clips.
    """
    labelled = np.flatnonzero(label != UNLABELLED)
    if sampling == "shuffled":
        return labelled
    rng = make_rng("clips", seed, epoch)
    classes = rng.permutation(np.unique(label[labelled]))
    shares = np.array_split(np.arange(len(labelled)), len(classes))
    drawn = []
    for number, share in zip(classes, shares, strict=True):
        of_class = np.flatnonzero(label == number)
        n_turns = -(-len(share) // len(of_class))
        turns = [rng.permutation(of_class) for _ in range(n_turns)]
        drawn.append(np.concatenate([*turns, of_class[:0]])[: len(share)])
    return np.concatenate(drawn)


def order_batches(
    n_steps: NDArray[np.integer], batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.intp]]:
    """Shuffle clips into batches, as a function of seed and epoch.

    In a large set, clips of like length meet: the shuffled clips are cut into windows of
    ``WINDOW_BATCHES`` batches, the last of what is left, and each window is sorted by length;
    equals stay shuffled. The order of its batches is then shuffled by the epoch alone, so that runs
    trained side by side meet short and long batches at the same time; a smaller batch is the last
    one, of any clips. Within a batch the longest clip is first.

    Args:
        n_steps: [N] Length of each clip.
        batch_size: Clips a batch; the last of the epoch may have fewer.
        seed: Of the run.
        epoch: From 1.

    Returns:
        Positions of the clips, batch by batch; each clip once.
    """
    shuffled = make_rng("order", seed, epoch).permutation(len(n_steps))
    window = batch_size * WINDOW_BATCHES
    shared = make_rng("shared order", epoch)
    batches: list[NDArray[np.intp]] = []
    for begin in range(0, len(shuffled), window):
        part = shuffled[begin : begin + window]
        if len(shuffled) < window:
            batches += _cut(part, batch_size)
            continue
        n_full = len(part) // batch_size
        # A smaller batch at the end counts its clips for more: not always the shortest.
        full, rest = np.split(part, [n_full * batch_size])
        sorted_batches = _cut(_put_longest_first(full, n_steps), batch_size)
        batches += [sorted_batches[i] for i in shared.permutation(n_full)]
        batches += _cut(rest, batch_size)
    return [_put_longest_first(batch, n_steps) for batch in batches]


def gather_batch(
    table: ClipTable,
    clips: NDArray[np.intp],
    phases: NDArray[np.intp],
    streams: Mapping[str, str],
) -> Batch:
    """Gather some clips, each at a phase, padded to the longest.

    Args:
        table: Where they stand.
        clips: [B] or [S, B] Positions in the table.
        phases: The same shape: which of its phases.
        streams: Stream name -> feature matrix, for example ``context`` -> ``context_2x2``.
    """
    steps = [
        table.phases[clip][phase] for clip, phase in zip(clips.ravel(), phases.ravel(), strict=True)
    ]
    n_steps = np.array([len(s.context) for s in steps])
    rows = {
        stream: np.zeros((len(steps), n_steps.max()), np.int64)  # row 0 pads
        for stream in streams
    }
    for stream, at in rows.items():
        is_face = table.matrices[streams[stream]].rows == "face"
        for i, s in enumerate(steps):
            at[i, : n_steps[i]] = s.face if is_face else s.context
    return Batch(
        streams={
            stream: _gather_steps(table.features[streams[stream]], at.reshape(*clips.shape, -1))
            for stream, at in rows.items()
        },
        n_steps=torch.from_numpy(n_steps).view(clips.shape),
        label=torch.from_numpy(table.label[clips]),
    )


def _gather_steps(matrix: Matrix, rows: NDArray[np.int64]) -> Tensor:
    """[*runs, B, T] row numbers to [*runs, B, T, D]."""
    at = torch.from_numpy(rows).transpose(-1, -2)
    return gather_rows(matrix, at.flatten()).view(*at.shape, -1).transpose(-2, -3)


def _put_longest_first(clips: NDArray[np.intp], n_steps: NDArray[np.integer]) -> NDArray[np.intp]:
    """Equals keep their order."""
    return clips[np.argsort(-n_steps[clips].astype(np.int64), kind="stable")]


def _cut(clips: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    return [clips[begin : begin + size] for begin in range(0, len(clips), size)]
