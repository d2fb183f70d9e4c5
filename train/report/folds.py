"""The part of the report on folds: each fold, and all folds together; plain runs have no part."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.pooled import Pooled, find_pooled
from train.report.collect import find_title
from train.report.tables import format_interval, format_spread
from train.runs import Run, find_runs, read_run

METRICS = ("map_mec", "acc", "uar")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedHead:
    """One head and setting over all folds, ordered by seed."""

    pooled: tuple[Pooled, ...]
    runs: tuple[tuple[Run, ...], ...]
    """[seeds][folds]"""

    @property
    def median(self) -> Pooled:
        """The seed with the median of the metric that chose the epochs; of an even number the lower
        one. Test chooses nothing here: each seed is a result, and this is the middle one."""
        select = str(self.pooled[0].settings["select"])
        ranked = sorted(self.pooled, key=lambda one: (one.test[select], one.test["acc"]))
        return ranked[(len(ranked) - 1) // 2]


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldsPart:
    """All heads on one division of one set of clips."""

    title: str
    store: Mapping[str, Any]
    heads: tuple[FoldedHead, ...]


def collect_folds(runs: Path) -> list[FoldsPart]:
    """Read what was put together in a folder of runs, by division.

    Raises:
        RunError: Something cannot be read, or a fold's run is gone.
    """
    pooled = [one for one in find_pooled(runs) if one.test]
    named = {name for one in pooled for name in one.runs}
    of_folds = {path.name: read_run(path) for path in find_runs(runs) if path.name in named}
    parts: dict[str, dict[str, list[Pooled]]] = {}
    for one in pooled:
        gone = [name for name in one.runs if name not in of_folds]
        if gone:
            _log.warning(
                "%s: left out, as its run %s is gone. Run the same fit again.", one.pooled, gone[0]
            )
            continue
        division = f"{one.store['fingerprint']} {one.key}"
        head = json.dumps([one.head, one.context, one.settings], sort_keys=True)
        parts.setdefault(division, {}).setdefault(head, []).append(one)
    return [
        FoldsPart(
            title=_title_part(next(iter(heads.values()))[0]),
            store=next(iter(heads.values()))[0].store,
            heads=tuple(_make_head(of_head, of_folds) for of_head in heads.values()),
        )
        for _, heads in sorted(parts.items())
    ]


def tabulate_folds(part: FoldsPart) -> pd.DataFrame:
    """A row a fold, then one for all folds together, of each head.

    A fold's figures are the median over seeds (lowest-highest). Those of all folds together are of
    the seed in the middle, with 95% intervals.
    """
    rows = []
    titles: list[str] = []
    for head in part.heads:
        title = find_title(head.pooled[0].head, head.pooled[0].settings)
        n_before = titles.count(title)
        titles.append(title)
        title += f"-{n_before + 1}" if n_before else ""
        for fold in zip(*head.runs, strict=True):
            tests = [run.summary.test for run in fold if run.summary.test]
            if not tests:
                continue
            rows.append(
                {
                    "Model": title,
                    "Fold": str(fold[0].config["fold"]["name"]),
                    "Clips": str(tests[0]["n_clips"]),
                    "Seeds": str(len(tests)),
                    **{m: format_spread(np.array([t[m] for t in tests])) for m in METRICS},
                    "Never predicted": "",
                }
            )
        test = head.median.test
        rows.append(
            {
                "Model": title,
                "Fold": "all together",
                "Clips": str(test["n_clips"]),
                "Seeds": f"{head.median.seed} of {len(head.pooled)}",
                **{m: format_interval(test, m) for m in METRICS},
                "Never predicted": str(test["n_never_predicted"]),
            }
        )
    return pd.DataFrame(rows)


def _title_part(one: Pooled) -> str:
    if one.protocol == "source":
        return "each source left out once"
    return f"{len(one.runs)} folds by subject"


def _make_head(pooled: Sequence[Pooled], runs: Mapping[str, Run]) -> FoldedHead:
    by_seed = sorted(pooled, key=lambda one: one.seed)
    return FoldedHead(
        pooled=tuple(by_seed),
        runs=tuple(tuple(runs[name] for name in one.runs) for one in by_seed),
    )
