"""Do heads trained on one store score otherwise than on another, beyond what their seeds do?

    python cli.py fit --store float32 --runs runs-float32 --preset table1 --seeds 5
    python cli.py fit --store bfloat16 --runs runs-bfloat16 --preset table1 --seeds 5
    python benchmarks/precision.py --against runs-float32 --candidate runs-bfloat16

The stores hold the same clips (``extract --precision float32`` and ``bfloat16``). For each head the
mean and standard deviation over seeds, in percent, on either; a difference of means above the
spread, the root of the mean of both variances, is marked with ``!``.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import numpy as np

from train.runs.folder import RunSummary, find_runs, read_summary

SCORES = tuple((split, metric) for split in ("val", "test") for metric in ("map_mec", "acc"))


def read_heads(runs: Path) -> dict[str, list[RunSummary]]:
    """Head -> its runs. Raises RunError where one cannot be read."""
    heads: dict[str, list[RunSummary]] = {}
    for path in find_runs(runs):
        summary = read_summary(path)
        heads.setdefault(summary.head, []).append(summary)
    return heads


def find_scores(runs: list[RunSummary], split: str, metric: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds, in percent."""
    values = [100 * getattr(run, split)[metric] for run in runs]
    return float(np.mean(values)), float(np.std(values, ddof=1))


@click.command()
@click.option("--against", required=True, type=click.Path(path_type=Path))
@click.option("--candidate", required=True, type=click.Path(path_type=Path))
def main(against: Path, candidate: Path) -> None:
    """Compare the heads of two folders of runs, two seeds or more of each head."""
    one, other = read_heads(against), read_heads(candidate)
    heads = [head for head in one if head in other]
    print(f"| head | {' | '.join(f'{split} {metric}' for split, metric in SCORES)} |")
    print("|---" * (1 + len(SCORES)) + "|")
    shares = []
    for head in heads:
        cells = []
        for split, metric in SCORES:
            (a, a_sd), (b, b_sd) = (find_scores(x[head], split, metric) for x in (one, other))
            spread = math.sqrt((a_sd**2 + b_sd**2) / 2)
            shares.append(abs(a - b) / spread if a != b else 0.0)
            mark = " !" if shares[-1] > 1 else ""
            cells.append(f"{a:.1f} ± {a_sd:.1f}, {b:.1f} ± {b_sd:.1f}{mark}")
        print(f"| `{head}` | {' | '.join(cells)} |")
    print(
        f"\n{sum(share <= 1 for share in shares)} of {len(shares)} differences are within the "
        f"spread over seeds; the greatest is {max(shares):.2f} of it, the median "
        f"{np.median(shares):.2f}."
    )


if __name__ == "__main__":
    main()
