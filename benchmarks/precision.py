"""Do heads trained on one store score otherwise than on another, beyond what their seeds do?

    python cli.py fit --store float32 --runs runs-float32 --preset table1 --seeds 5
    python cli.py fit --store bfloat16 --runs runs-bfloat16 --preset table1 --seeds 5
    python benchmarks/precision.py --against runs-float32 --candidate runs-bfloat16

The stores hold the same clips (``extract --precision float32`` and ``bfloat16``). For each head the
mean and standard deviation over seeds, in percent, on either; a difference of means above the
spread, the root of the mean of both variances, is marked with ``!``.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd

from train.runs.folder import find_runs, read_summary

SCORES = {
    f"{split} {metric}": (split, metric)
    for split in ("val", "test")
    for metric in ("map_mec", "acc")
}


def read_scores(runs: Path) -> pd.api.typing.DataFrameGroupBy:
    """The scores of each run in percent, by head. Raises RunError where one cannot be read."""
    rows = []
    for run in map(read_summary, find_runs(runs)):
        scores = {name: 100 * getattr(run, s)[metric] for name, (s, metric) in SCORES.items()}
        rows.append({"head": run.head, **scores})
    return pd.DataFrame(rows).groupby("head", sort=False)


@click.command()
@click.option("--against", required=True, type=click.Path(path_type=Path))
@click.option("--candidate", required=True, type=click.Path(path_type=Path))
def main(against: Path, candidate: Path) -> None:
    """Compare the heads of two folders of runs, two seeds or more of each head."""
    sides = read_scores(against), read_scores(candidate)
    (a, b), (a_sd, b_sd) = (side.mean() for side in sides), (side.std() for side in sides)
    heads = a.index.intersection(b.index, sort=False)
    a, b, spread = a.loc[heads], b.loc[heads], ((a_sd**2 + b_sd**2) / 2).loc[heads] ** 0.5
    shares = ((a - b).abs() / spread).where(a != b, 0.0)
    print(f"| head | {' | '.join(SCORES)} |")
    print("|---" * (1 + len(SCORES)) + "|")
    for head in heads:
        cells = [
            f"{a[s][head]:.1f} ± {a_sd[s][head]:.1f}, {b[s][head]:.1f} ± {b_sd[s][head]:.1f}"
            + (" !" if shares[s][head] > 1 else "")
            for s in SCORES
        ]
        print(f"| `{head}` | {' | '.join(cells)} |")
    values = shares.to_numpy()
    print(
        f"\n{(values <= 1).sum()} of {values.size} differences are within the spread over seeds; "
        f"the greatest is {values.max():.2f} of it, the median {np.median(values):.2f}."
    )


if __name__ == "__main__":
    main()
