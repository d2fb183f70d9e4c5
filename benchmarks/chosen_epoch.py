"""How far choosing the epoch on val flatters the val score of that epoch.

Simulates heads that are equally good after every epoch, so that all that the chosen epoch has above
the others is luck. The clips' classes are drawn evenly from eight; a clip's class is found with a
fixed chance, else another is named, evenly; each epoch anew, or kept from the epoch before with a
chance (what neighbouring epochs of a real run share). Needs no store:

    python -m benchmarks.chosen_epoch
"""

from __future__ import annotations

import click
import numpy as np
from numpy.typing import NDArray

from train.metrics import compute_map_mec

N_CLASSES = 8
ACCURACY = 0.5
N_RUNS = 400


def draw_map_mec(
    rng: np.random.Generator, n_clips: int, n_epochs: int, kept: float
) -> NDArray[np.float64]:
    """[n_epochs] map_mec of one run on val."""
    label = np.arange(n_clips) % N_CLASSES
    confusion = np.zeros((n_epochs, N_CLASSES, N_CLASSES), np.int64)
    predicted = label
    for epoch in range(n_epochs):
        missed = (label + rng.integers(1, N_CLASSES, n_clips)) % N_CLASSES
        fresh = np.where(rng.random(n_clips) < ACCURACY, label, missed)
        stays = (rng.random(n_clips) < kept) & (epoch > 0)
        predicted = np.where(stays, predicted, fresh)
        np.add.at(confusion[epoch], (label, predicted), 1)
    return compute_map_mec(confusion)


@click.command()
@click.option("--epochs", default=30, show_default=True)
def main(epochs: int) -> None:
    """Print the mean over runs of the best epoch's map_mec above the mean of all epochs.

    Behind +- stands the standard error of that mean.
    """
    for n_clips in (707, 240, 24):
        for kept in (0.0, 0.9):
            rng = np.random.default_rng([n_clips, int(10 * kept)])
            scores = np.stack([draw_map_mec(rng, n_clips, epochs, kept) for _ in range(N_RUNS)])
            gain = 100 * (scores.max(1) - scores.mean(1))
            error = gain.std() / N_RUNS**0.5
            print(
                f"{n_clips:4} clips, {kept:.0%} of the predictions kept from epoch to epoch: best "
                f"of {epochs} epochs +{gain.mean():.1f} points of map_mec (+-{error:.1f})"
            )


if __name__ == "__main__":
    main()
