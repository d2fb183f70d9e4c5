"""The ensemble of section VI: runs of several heads, their class probabilities weighed linearly.

The members stay as they were trained. On val is found, first, one temperature a member, so that the
weights compare what members know and not how sure they sound; then one weight a member, not below 0
and together 1. Test is scored once, with both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from features.errors import RunError, ShardError
from features.fingerprint import hash_file
from train.data.clips import ClipTable
from train.metrics import score_predictions
from train.runs.folder import Run, RunSummary
from train.runs.predictions import summarise_scores, tabulate_history, tabulate_predictions
from train.streams import ENSEMBLE
from train.training.loop import Epoch

PRIOR_CLIPS = 1.0
"""Imaginary val clips beside the real ones: for its weight, each member is taken to have found them
alone; for its temperature, to be as often right on them as it says."""

TEMPERATURES = (0.01, 100.0)
"""The least and the greatest."""

_MOST_ITERATIONS = 10_000
_TOLERANCE = 1e-10
_HALVINGS = 60


def find_temperature(probabilities: NDArray[np.floating], label: NDArray[np.intp]) -> float:
    """Find the temperature under which a member makes the labels likeliest.

    The mean negative log-likelihood is convex in 1 / T; its derivative, the mean over clips of what
    the scaled member expects of log p minus log p of the true class, is halved towards its zero.
    ``PRIOR_CLIPS`` are added whose classes are spread as the member says, which asks for T = 1: few
    clips that are all right, or all wrong, move it little.

    Args:
        probabilities: [N, K] A member's.
        label: [N] True classes.
    """
    log_p = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    true_class = np.take_along_axis(log_p, label[:, None], 1)[:, 0].sum()
    true_class += PRIOR_CLIPS * (probabilities * log_p).sum(1).mean()
    true_class /= len(label) + PRIOR_CLIPS
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        expected = (scale_probabilities(probabilities, 1 / middle) * log_p).sum(1).mean()
        low, high = (middle, high) if expected < true_class else (low, middle)
    return float(1 / (low * high) ** 0.5)


def scale_probabilities(
    probabilities: NDArray[np.floating], temperature: float
) -> NDArray[np.float64]:
    """[..., K] probabilities to the same at a temperature: softmax of log p / T."""
    log_p = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    scaled: NDArray[np.float64] = np.exp(log_p - log_p.max(-1, keepdims=True))
    scaled /= scaled.sum(-1, keepdims=True)
    return scaled


def find_member_weights(true_class: NDArray[np.floating]) -> NDArray[np.float64]:
    """Find the weights under which the mixed probabilities make the labels likeliest.

    Maximises the sum over clips of log(w . p) plus ``PRIOR_CLIPS`` times the sum of log(w), over
    weights that sum to 1: a concave function, so there is one answer, and expectation maximisation
    climbs to it. The second part draws few clips towards equal weights; many outvote it.

    Args:
        true_class: [M, N] Probability that each member gives to each clip's true class.

    Returns:
        [M] Weights.
    """
    n_members, n_clips = true_class.shape
    p = np.maximum(true_class.astype(np.float64), np.finfo(np.float64).tiny)
    weights = np.full(n_members, 1 / n_members)
    for _ in range(_MOST_ITERATIONS):
        before = weights
        shares = weights[:, None] * p  # [M, N]
        shares /= shares.sum(0)
        weights = shares.sum(1) + PRIOR_CLIPS
        weights /= n_clips + n_members * PRIOR_CLIPS
        if np.abs(weights - before).max() < _TOLERANCE:
            break
    return weights


def mix_probabilities(
    weights: NDArray[np.floating], probabilities: NDArray[np.floating]
) -> NDArray[np.float64]:
    """[M] weights and [M, N, K] probabilities to [N, K]: the ensemble's probabilities."""
    return np.tensordot(weights.astype(np.float64), probabilities, axes=1)


def make_ensemble(
    path: Path,
    members: Sequence[Run],
    clips: Mapping[str, ClipTable],
    settings: Mapping[str, Any],
) -> tuple[Run, bytes]:
    """Find the weights of an ensemble and score it; ``train.runs.folder.write_run`` writes both.

    Args:
        path: The run folder to be; its members stand beside it.
        members: Runs of one seed on the same clips.
        clips: ``val`` and ``test``, with labels and groups; no features are looked at.
        settings: For config.json.

    Returns:
        The run, and the content of weights.safetensors: ``member_weights`` and
        ``member_temperatures`` [M], in their order.

    Raises:
        RunError: Two members were not scored on the same clips.
        ShardError: No val clip has a label.
    """
    classes = tuple(members[0].config["store"]["classes"])
    tables = {split: clips[split] for split in ("val", "test")}
    scores = {
        split: np.stack([_read_scores(run, split, table, classes) for run in members])
        for split, table in tables.items()
    }  # [M, N, K]
    val = tables["val"]
    known = val.labelled
    if len(known) == 0:
        raise ShardError("split val: no clip with a label, so an ensemble has no weights.")
    temperatures = np.array(
        [find_temperature(member[known], val.label[known]) for member in scores["val"]]
    )
    scores = {
        split: np.stack(list(map(scale_probabilities, of_split, temperatures)))
        for split, of_split in scores.items()
    }
    weights = find_member_weights(scores["val"][:, known, val.label[known]])
    mixed = {split: mix_probabilities(weights, of_split) for split, of_split in scores.items()}
    metrics = score_predictions(val.label[known], mixed["val"][known])
    only_epoch = Epoch(epoch=1, train_loss=np.nan, val=metrics)  # nothing is trained
    summary = RunSummary(
        run=path.name,
        head=ENSEMBLE,
        seed=members[0].summary.seed,
        n_parameters=len(members) + sum(run.summary.n_parameters for run in members),
        best_epoch=1,
        val=summarise_scores(val, mixed["val"]),
        test=summarise_scores(tables["test"], mixed["test"]),
    )
    run = Run(
        path=path,
        config={
            **members[0].config,
            "head": ENSEMBLE,
            "n_epochs": 1,
            "streams": {k: v for run in members for k, v in run.config["streams"].items()},
            "settings": dict(settings),
            "members": [
                {
                    "head": run.summary.head,
                    "run": run.path.name,
                    "weights_sha256": hash_file(run.weights_path),
                    "temperature": float(temperature),
                    "weight": float(weight),
                }
                for run, temperature, weight in zip(members, temperatures, weights, strict=True)
            ],
        },
        summary=summary,
        history=tabulate_history([only_epoch]),
        predictions=tabulate_predictions(tables, mixed, classes),
    )
    return run, save({"member_weights": weights, "member_temperatures": temperatures})


def _read_scores(
    run: Run, split: str, table: ClipTable, classes: Sequence[str]
) -> NDArray[np.float64]:
    """[N, K] A member's probabilities of a split, in the table's order."""
    rows = run.predictions[run.predictions["split"] == split].set_index("clip_id")
    if list(rows.index) != list(table.clip_id):
        raise RunError(
            f"{run.path / 'predictions.csv'}: its {split} clips are not those of the store. "
            "Delete the run and fit again."
        )
    return rows[[f"p_{name}" for name in classes]].to_numpy(np.float64)
