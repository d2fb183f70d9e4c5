"""The driver of ``report``: run folders to report.md, report.html, tables/ and figures/."""

from __future__ import annotations

import base64
import logging
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from features.disk import write_atomically
from features.errors import RunError
from train.config import PRESETS
from train.report import tables
from train.report.figures import draw_confusion, draw_histories, draw_scores
from train.report.folds import collect_folds, tabulate_folds
from train.report.paper import PAPER_NOTE
from train.report.results import HeadResult, StoreResults, collect_results, warn_of_unknown
from train.report.shell_commands import join_command, list_changed, write_fit
from train.report.sweeps import collect_sweeps
from train.report.tick_labels import choose_tick_labels, isolate
from train.runs.folder import read_runs
from train.runs.pooled import find_pooled
from train.streams import ENSEMBLE

_log = logging.getLogger(__name__)

_OWN_FILES = re.compile(
    r"folds\d+\.csv|sweep-.+-(trials|importance)\.csv"
    r"|(store\d+-)?(table1|table2|ensembles|median_runs|classes|coverage|labels|expressions|settings|runs)\.csv"
    r"|(store\d+-)?(scores|histories|confusion-.+)\.(png|svg)"
)
"""Names that a report gives to its tables and figures."""

_MARKDOWN = re.compile(r"[\\`*<>$~|&]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
"""Characters that Markdown, and GitHub's, reads as more than themselves where they stand."""


def run_report(runs: Path, out: Path) -> Path:
    """Write the report of all runs in a folder; an older report there is replaced.

    Folds that are not all there yet are shown as far as they go, and what is missing is named.

    Args:
        runs: Folder of run folders.
        out: Folder for report.md, report.html (one file, nothing else needed), tables/*.csv, and
            figures/*.png and *.svg.

    Returns:
        Path of report.html.

    Raises:
        RunError: Nothing to show there, or newer code wrote it.
    """
    warn_of_unknown(runs)
    read = read_runs(runs)
    results, parts = collect_results(read), collect_folds(read, find_pooled(runs))
    sweeps = collect_sweeps(runs)
    if not results and not parts and not sweeps:
        raise RunError(f"{runs}: no run folder here. Train some with: cli.py fit --runs {runs}")
    for folder in (out / "tables", out / "figures"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if _OWN_FILES.fullmatch(file.name):
                file.unlink()
    chapters = []
    for number, of_store in enumerate(results, 1):
        prefix = "" if len(results) == 1 else f"store{number}-"
        alike = [r for r in results if r.store["fingerprint"] == of_store.store["fingerprint"]]
        note = _tell_others(of_store) if len(alike) > 1 else ""
        chapters.append(_make_chapter(of_store, runs, out, prefix, note))
    folds = [
        (part, _write_table(tabulate_folds(part), out, f"folds{number}"), part.list_commands(runs))
        for number, part in enumerate(parts, 1)
    ]
    for part in parts:
        for missing in part.missing:
            _log.warning("%s, not there yet: %s", part.title, missing)
    for sweep in sweeps:
        _write_table(sweep.trials, out, f"{sweep.name}-trials")
        _write_table(sweep.importance, out, f"{sweep.name}-importance")
    values = {
        "chapters": chapters,
        "folds": folds,
        "sweeps": sweeps,
        "paper_note": PAPER_NOTE,
        "report_command": join_command("report", "--runs", str(runs), "--out", str(out)),
    }
    for name in ("report.md", "report.html"):
        write_atomically(out / name, _render(f"{name}.jinja", values))
    return out / "report.html"


def _make_chapter(
    results: StoreResults, runs: Path, out: Path, prefix: str, note: str
) -> dict[str, Any]:
    """All that the pages say about one store; note: why another chapter is on the same features."""
    written = {name: tabulate(results) for name, tabulate in tables.TABLES.items()}
    for name, table in written.items():
        if len(table):
            _write_table(table, out, f"{prefix}{name}")

    figures = out / "figures"
    draw_scores(results, figures / f"{prefix}scores")
    pictures = {"scores": _read_picture(figures, f"{prefix}scores", "Val scores by head and seed")}
    trained = [result for result in results.heads if result.head != ENSEMBLE]
    if trained:  # else the members of an ensemble are gone, or scored on other clips since
        name = f"{prefix}histories"
        draw_histories(trained, figures / name)
        pictures["histories"] = _read_picture(figures, name, "Loss of the median runs")
    labels = choose_tick_labels(results.classes)
    for result in results.heads:
        draw_confusion(result, labels, figures / f"{prefix}confusion-{result.name}")
    return {
        "store": results.store,
        "note": note,
        "sources": _list_sources(results.store["sources"]),
        "rules": sorted({_tell_rule(result.select) for result in results.heads}),
        "comparison": tables.compare_streams(results),
        "commands": _list_commands(results, runs),
        "versions": _list_versions(results),
        "tables": written,
        "pictures": pictures,
        "confusions": [
            _read_picture(figures, f"{prefix}confusion-{result.name}", result.title)
            for result in results.heads
        ],
        # Where figures number the classes, as no font here has their names: each number's class.
        "class_numbers": labels.legend,
    }


def _write_table(table: pd.DataFrame, out: Path, name: str) -> pd.DataFrame:
    table.to_csv(out / "tables" / f"{name}.csv", index=False, lineterminator="\n")
    return table


def _tell_others(results: StoreResults) -> str:
    return (
        "Another chapter is on the same features, but on other clips, parts, labels or classes to "
        "learn from or to be scored on. Which run is of what the store holds now? The same fit "
        "again tells: it keeps such runs, scores again those whose test clips changed, and trains "
        f"the others. Clips of this chapter: {results.store['clips_sha256'][:12]}."
    )


def _tell_rule(select: str) -> str:
    return (
        f"Each run keeps the epoch with the highest {select} on val (ties: higher accuracy, then "
        f"lower loss, then the earlier epoch). Of a head's seeds the run with the median {select} "
        "on val is the one reported (of an even number, the lower of the two in the middle). "
        "Test is scored once a run, with the epoch that val chose, and takes part in no choice."
    )


def _list_sources(sources: dict[str, int]) -> str:
    named = [f"{name or 'no source given'} ({n} clips)" for name, n in sources.items()]
    return ", ".join(named) or "no clips"


def _list_versions(results: StoreResults) -> str:
    """Versions of every library that made features or runs, each once."""
    used: dict[str, set[str]] = {}
    for versions in (
        results.store["versions"],
        *(run.config["versions"] for result in results.heads for run in result.runs),
    ):
        for name, version in versions.items():
            used.setdefault(name, set()).add(str(version))
    return ", ".join(f"{name} {' and '.join(sorted(used[name]))}" for name in sorted(used))


def _list_commands(results: StoreResults, runs: Path) -> tuple[str, ...]:
    """The fit commands that train these heads again, one for each group of equal settings."""
    groups: dict[tuple[str, int, tuple[str, ...]], list[HeadResult]] = {}
    for result in results.heads:
        submitted = result.head in PRESETS["submitted"].heads and result.context == "7x7"
        preset = "submitted" if submitted else "table1"
        n_seeds = 1 + max(run.summary.seed for run in result.runs)
        key = (preset, n_seeds, list_changed(result.head, result.settings, preset))
        groups.setdefault(key, []).append(result)
    return tuple(
        write_fit(results.store, runs, preset, [one.head for one in heads], n_seeds, settings)
        for (preset, n_seeds, settings), heads in groups.items()
    )


def _read_picture(figures: Path, name: str, title: str) -> dict[str, str]:
    """A figure as the pages show it."""
    data = base64.b64encode((figures / f"{name}.svg").read_bytes()).decode()
    return {"title": title, "name": name, "data_uri": f"data:image/svg+xml;base64,{data}"}


def _render(template: str, values: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["pipes"] = _format_pipes
    environment.filters["plain"] = _escape_markdown
    environment.filters["isolate"] = isolate
    text = (files("train.report") / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


def _format_pipes(table: pd.DataFrame) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    cells = [[_escape_markdown(value) for value in row] for row in table.to_numpy()]
    titles = [_escape_markdown(name) for name in table.columns]
    rule = ["---"] + ["---:"] * (len(titles) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, rule, *cells])


def _escape_markdown(text: object) -> str:
    """A text on one line, in which no character means anything but itself."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(str(text).split()))
