"""Scores clips with trained heads, one run or several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from train.data.batches import gather_batch
from train.data.clips import ClipTable
from train.heads.layers import Head

SCORED_CLIPS = 32
"""Clips scored at a time, at most."""

SCORED_VALUES = 1 << 23
"""Feature values scored at a time, unless a single clip has more: 34 MB."""


def score_clips(
    head: Head,
    table: ClipTable,
    streams: Mapping[str, str],
    *,
    n_runs: int = 0,
    device: str = "cpu",
    precision: str = "float32",
) -> NDArray[np.float64]:
    """Class probabilities of all clips at their first phase.

    Args:
        head: With ``n_runs`` runs side by side, or plain where that is 0.
        table: The clips.
        streams: What the head reads, as ``train.streams.choose_streams`` gives it.
        n_runs: S.
        device: Where the head stands.
        precision: What is multiplied in, one of ``features.networks.runtime.PRECISIONS``.

    Returns:
        [*runs, N, K] Probabilities, in the table's order; N is 0 for a table without clips.
    """
    if len(table) == 0:
        n_classes = head.classify.bias.shape[-1]
        return np.empty((n_runs, 0, n_classes) if n_runs else (0, n_classes))
    lengths = np.array([len(phases[0].context) for phases in table.phases])
    by_length = np.argsort(-lengths, kind="stable")  # the longest first
    n_values = sum(table.features[matrix].shape[1] for matrix in streams.values())
    parts = []
    reduced = precision == "bfloat16"
    dtype = torch.bfloat16 if reduced and not head.standardise else torch.float32
    with (
        torch.no_grad(),
        torch.autocast(torch.device(device).type, torch.bfloat16, enabled=reduced),
    ):
        for clips in _cut(by_length, lengths * n_values):
            batch = gather_batch(table, clips, np.zeros_like(clips), streams)
            inputs = {name: x.to(device, dtype) for name, x in batch.streams.items()}
            n_steps = batch.n_steps.to(device)
            if n_runs:
                inputs = {name: x.expand(n_runs, *x.shape) for name, x in inputs.items()}
                n_steps = n_steps.expand(n_runs, -1)
            parts.append(torch.softmax(head.score(inputs, n_steps).double(), -1).cpu().numpy())
    scores = np.concatenate(parts, axis=-2)
    result = np.empty_like(scores)
    result[..., by_length, :] = scores
    return result


def _cut(clips: NDArray[np.intp], n_values: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Cut clips, those with most values first, into parts that are scored at a time."""
    begin = 0
    while begin < len(clips):
        size = max(1, min(SCORED_CLIPS, SCORED_VALUES // int(n_values[clips[begin]])))
        yield clips[begin : begin + size]
        begin += size
