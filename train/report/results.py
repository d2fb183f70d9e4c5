"""A folder of runs into results: runs of one head, one setting and one store belong together."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.report.paper import TITLES
from train.runs.folder import RUN_FORMAT, Run, find_runs, is_marked, list_missing
from train.runs.pooled import POOLED_FORMAT
from train.streams import (
    ENSEMBLE,
    HEADS,
    OWN,
    can_read,
    rank_head,
    split_members,
    split_streams,
)
from train.sweep.folder import find_sweeps

MOST_NAMED = 20
"""Unknown things that are named one by one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadResult:
    """All runs of one head with the same settings on the same clips, ordered by seed."""

    name: str
    """The head's name; with a number behind it where the head stands with several settings."""
    runs: tuple[Run, ...]

    @property
    def head(self) -> str:
        return self.runs[0].summary.head

    @property
    def title(self) -> str:
        return find_title(self.head, self.settings) + self.name.removeprefix(self.head)

    @property
    def context(self) -> str:
        """Pooling grid of the context features, ``2x2`` or ``7x7``."""
        return str(self.runs[0].config["context"])

    @property
    def settings(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = self.runs[0].config["settings"]
        return settings

    @property
    def streams(self) -> tuple[str, ...]:
        """As ``find_streams``, of the runs; of an ensemble, of any of its members."""
        if self.head != ENSEMBLE:
            return find_streams(self.head, self.settings)
        members = split_members(self.settings["members"])
        settings = _settings_of_members(self.settings)
        return next(filter(None, (find_streams(member, settings) for member in members)), ())

    @property
    def select(self) -> str:
        """The val metric that chose each run's epoch, and the median run."""
        return str(self.settings["select"])

    @property
    def median_run(self) -> Run:
        """The run with the median of the chosen val metric; of an even number the lower one."""
        ranked = sorted(self.runs, key=lambda r: (r.summary.val[self.select], r.summary.val["acc"]))
        return ranked[(len(ranked) - 1) // 2]

    @property
    def median_scores(self) -> dict[str, Mapping[str, Any]]:
        """Split -> the metrics of the median run, of val and of test where it has labels."""
        summary = self.median_run.summary
        return {"val": summary.val} | ({"test": summary.test} if summary.test else {})

    def val_values(self, metric: str) -> NDArray[np.float64]:
        """[seeds] One val metric of every run."""
        return np.array([run.summary.val[metric] for run in self.runs], dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreResults:
    """All that was trained on one set of clips and features. Never mixed with another's."""

    store: Mapping[str, Any]
    """What the runs' config.json tells of it."""
    heads: tuple[HeadResult, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.store["classes"])

    def find(self, names: Iterable[str], *, context: str) -> list[HeadResult]:
        """Results of some heads with one pooling grid, in the order of ``heads``."""
        wanted = set(names)
        return [r for r in self.heads if r.head in wanted and r.context == context]


def collect_results(runs: Iterable[Run]) -> list[StoreResults]:
    """Sort runs into their store, head and settings.

    Runs of folds are passed over: each has learned from other clips than the next.
    """
    by_store: dict[str, list[Run]] = {}
    for run in runs:
        if "fold" not in run.config:
            by_store.setdefault(key_store(run.config["store"]), []).append(run)
    return [
        StoreResults(store=of_store[0].config["store"], heads=_group_heads(of_store))
        for _, of_store in sorted(by_store.items())
    ]


def warn_of_unknown(runs: Path) -> None:
    """Log a line for each file or folder that fit and sweep did not write; not for hidden ones."""
    if not runs.is_dir():
        return
    known = {*find_runs(runs), *find_sweeps(runs)}
    unknown = [
        path
        for path in sorted(runs.iterdir())
        if not path.name.startswith(".")
        and path not in known
        and not is_marked(path / "pooled.json", POOLED_FORMAT)
    ]
    for path in unknown[:MOST_NAMED]:
        _log.warning("%s: passed over, %s", path, _describe(path))
    if len(unknown) > MOST_NAMED:
        _log.warning("%s: %d more are passed over", runs, len(unknown) - MOST_NAMED)


def _describe(path: Path) -> str:
    if not path.is_dir():
        return "a file, not a run folder"
    if is_marked(path / "config.json", RUN_FORMAT):
        return f"a run without {', '.join(list_missing(path))}: copy it again"
    if path.name.startswith("sweep-") and not (path / "sweep.json").exists():
        return "a sweep that is not finished: run the same sweep again"
    return "a folder that neither fit nor sweep wrote"


def key_store(store: Mapping[str, Any]) -> str:
    """The same for runs of the same features, classes, and clips to learn from and be scored on."""
    return " ".join([store["fingerprint"], store["clips_sha256"], json.dumps(store["classes"])])


def find_title(head: str, settings: Mapping[str, Any]) -> str:
    """How the paper calls a head, or what an ensemble or a cascade is made of."""
    if head == ENSEMBLE:
        of_members = _settings_of_members(settings)
        members = split_members(settings["members"])
        return " + ".join(find_title(member, of_members) for member in members)
    if streams := find_streams(head, settings):
        return f"{TITLES.get(head, head)} ({', '.join(streams)})"
    return TITLES.get(head, head)


def find_streams(head: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The streams that a network reads where they are not what it was published with; ``cascade``
    was not, so all it reads. Empty: its own."""
    if head not in HEADS:
        return ()
    own = HEADS[head].streams
    named = settings.get("streams", OWN)
    read = own if named == OWN or not can_read(head, named) else split_streams(named)
    return read if head == "cascade" or read != own else ()


def _settings_of_members(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of an ensemble: it writes a list of streams also where each member reads its own."""
    if split_streams(settings.get("streams", OWN)) == HEADS[ENSEMBLE].streams:
        return {**settings, "streams": OWN}
    return settings


def _group_heads(runs: Sequence[Run]) -> tuple[HeadResult, ...]:
    groups: dict[tuple[int, str, str, tuple[str, ...], str], list[Run]] = {}
    for run in runs:
        head, settings = run.summary.head, run.config["settings"]
        key = (
            rank_head(head),
            head,
            str(run.config["context"]),
            find_streams(head, settings),  # the head's own first
            json.dumps(settings, sort_keys=True),
        )
        groups.setdefault(key, []).append(run)
    results: list[HeadResult] = []
    for (_, head, *_), of_group in sorted(groups.items()):
        n_before = sum(result.head == head for result in results)
        results.append(
            HeadResult(
                name=head if n_before == 0 else f"{head}-{n_before + 1}",
                runs=tuple(sorted(of_group, key=lambda run: run.summary.seed)),
            )
        )
    return tuple(results)
