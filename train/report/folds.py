"""The part of the report on folds: each fold, and all folds together; plain runs have no part."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.report.results import find_title, key_store
from train.report.shell_commands import list_changed, write_fit
from train.report.tables import format_interval, format_spread
from train.runs.folder import Run
from train.runs.pooled import Pooled
from train.streams import rank_head

METRICS = ("map_mec", "acc", "uar")

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class FoldedSeed:
    """The folds of one head, setting and seed that there are."""

    seed: int
    runs: dict[int, Run] = field(default_factory=dict)
    """Number of the fold -> its run."""
    pooled: Pooled | None = None
    """All folds together; None where some are missing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedHead:
    """One head and setting on one division into folds, ordered by seed."""

    seeds: tuple[FoldedSeed, ...]

    @property
    def first(self) -> Run:
        return next(iter(self.seeds[0].runs.values()))

    @property
    def title(self) -> str:
        return find_title(self.first.summary.head, self.first.config["settings"])

    @property
    def complete(self) -> list[FoldedSeed]:
        return [one for one in self.seeds if one.pooled is not None]

    @property
    def median(self) -> FoldedSeed:
        """Of the complete seeds the one with the median of the metric that chose the epochs, on
        val, the mean over folds; of an even number the lower one. Test chooses nothing."""
        select = str(self.first.config["settings"]["select"])

        def rate(one: FoldedSeed) -> list[float]:
            vals = [run.summary.val for run in one.runs.values()]
            return [float(np.mean([val[metric] for val in vals])) for metric in (select, "acc")]

        ranked = sorted(self.complete, key=rate)
        return ranked[(len(ranked) - 1) // 2]

    def list_missing(self, names: Mapping[int, str]) -> Iterator[str]:
        """A text for each seed that has not all folds. names: Number -> name, of every fold."""
        for one in self.seeds:
            if one.pooled is None:
                missing = [name for number, name in names.items() if number not in one.runs]
                left = f"fold {', '.join(missing)}" if missing else "all folds together"
                yield f"{self.title}, seed {one.seed}: {left}"


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldsPart:
    """All heads on one division of one set of clips."""

    store: Mapping[str, Any]
    fold: Mapping[str, Any]
    """What config.json tells of one of the folds."""
    heads: tuple[FoldedHead, ...]

    @property
    def title(self) -> str:
        if self.fold["protocol"] == "source":
            return "each source left out once"
        return f"{self.fold['n_folds']} folds by subject"

    @property
    def missing(self) -> list[str]:
        """What is not there yet: head, seed and folds."""
        return [text for head in self.heads for text in head.list_missing(self._name_folds())]

    def list_commands(self, runs: Path) -> list[str]:
        """The fits that make what is missing."""
        by_source = self.fold["protocol"] == "source"
        return [
            write_fit(
                self.store,
                runs,
                "table1",
                [head.first.summary.head],
                1 + max(one.seed for one in head.seeds),
                list_changed(head.first.summary.head, head.first.config["settings"], "table1"),
                folds="source" if by_source else str(self.fold["n_folds"]),
            )
            for head in self.heads
            if len(head.complete) < len(head.seeds)
        ]

    def _name_folds(self) -> dict[int, str]:
        n_folds = int(self.fold["n_folds"])
        if self.fold["protocol"] == "source":
            return dict(enumerate((name or "none" for name in sorted(self.store["sources"])), 1))
        return {number: f"{number}of{n_folds}" for number in range(1, n_folds + 1)}


def collect_folds(runs: Sequence[Run], pooled: Sequence[Pooled]) -> list[FoldsPart]:
    """Sort the runs of folds, and what was put together of them, by division and head."""
    by_name = {run.path.name: run for run in runs if "fold" in run.config}
    found: dict[tuple[str, int, str, str, int], FoldedSeed] = {}

    def place(division: str, run: Run) -> FoldedSeed:
        """Where a run of a fold belongs; made where it is the first there."""
        head, seed = run.summary.head, run.summary.seed
        settings = json.dumps([run.config["context"], run.config["settings"]], sort_keys=True)
        key = (division, rank_head(head), head, settings, seed)
        return found.setdefault(key, FoldedSeed(seed=seed))

    left = dict(by_name)
    for one in pooled:
        if not all(name in by_name for name in one.runs):
            continue  # what is missing is told below
        clips = one.store["clips_sha256"]
        current = [
            n for n in one.runs if by_name[n].config["fold"].get("clips_sha256", clips) == clips
        ]
        for name in current:
            left.pop(name, None)
        if len(current) < len(one.runs):
            _log.warning(
                "%s: left out, as some of its runs were scored on other clips since. Run the same "
                "fit again.",
                one.pooled,
            )
            continue
        for name in one.runs:
            run = by_name[name]
            seed = place(f"{key_store(one.store)} {one.key}", run)
            seed.runs[run.config["fold"]["number"]] = run
            seed.pooled = one
    for run in left.values():
        fold = run.config["fold"]
        store = run.config["store"] | {"clips_sha256": fold.get("clips_sha256", "")}
        seed = place(f"{key_store(store)} {fold['key']}", run)
        if seed.pooled is None:
            seed.runs[fold["number"]] = run
    parts = []
    for _, of_part in groupby(sorted(found), itemgetter(0)):
        heads = tuple(
            FoldedHead(seeds=tuple(found[key] for key in of_head))
            for _, of_head in groupby(of_part, itemgetter(1, 2, 3))
        )
        config = heads[0].first.config
        parts.append(FoldsPart(store=config["store"], fold=config["fold"], heads=heads))
    return parts


def tabulate_folds(part: FoldsPart) -> pd.DataFrame:
    """A row a fold, then one for all folds together, of each head; no row for what is missing.

    A fold's figures are the median over seeds (lowest-highest). Those of all folds together are of
    the median seed by val, with 95% intervals.
    """
    rows = []
    titles: list[str] = []
    for head in part.heads:
        n_before = titles.count(head.title)
        titles.append(head.title)
        title = f"{head.title}-{n_before + 1}" if n_before else head.title
        for number in sorted({number for one in head.seeds for number in one.runs}):
            fold = [one.runs[number] for one in head.seeds if number in one.runs]
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
        if head.complete and head.median.pooled is not None:
            test = head.median.pooled.test
            rows.append(
                {
                    "Model": title,
                    "Fold": "all together",
                    "Clips": str(test["n_clips"]),
                    "Seeds": f"{head.median.seed} of {len(head.complete)}",
                    **{m: format_interval(test, m) for m in METRICS},
                    "Never predicted": str(test["n_never_predicted"]),
                }
            )
    return pd.DataFrame(rows)
