"""Labels of a manifest against the declared classes: what is none, and which class it spells."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from features.errors import ConfigError
from pipeline.manifest.csv_rows import Problem, Row, iter_cells, join_lines, show

_SYNONYMS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "happy happiness",
        "sad sadness",
        "angry anger",
        "surprise surprised",
        "disgust disgusted",
        "worried worry",
        "anxious anxiety",
        "fear fearful afraid",
    )
)
"""Words for one emotion. Only such as nobody would tell apart: fear is not MEC's *anxious*."""


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """Take texts like ``anger=angry`` apart.

    Raises:
        ConfigError: not of that form, or one label goes to two classes.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        label, equals, name = (part.strip() for part in pair.rpartition("="))
        if not (label and equals and name):
            raise ConfigError(f"--map-label {pair}: expected LABEL=CLASS, for example anger=angry")
        if mapping.setdefault(label, name) != name:
            raise ConfigError(f"--map-label {pair}: {label} goes to {mapping[label]} already")
    return mapping


def map_labels(rows: Sequence[Row], mapping: Mapping[str, str]) -> None:
    """Replace labels as the mapping says, in place."""
    for row in rows:
        row.cells["label"] = mapping.get(row.cells["label"], row.cells["label"])


def check_labels(rows: Sequence[Row], classes: Sequence[str]) -> tuple[list[Problem], str]:
    """Find labels that are no class, and the class that each most likely means.

    Returns:
        A problem for each such label, at its first line; and the options that accept those which
        spell a class otherwise, empty where none does.
    """
    lines: dict[str, list[int]] = {}
    for line, label in iter_cells(rows, "label"):
        if label not in classes:
            lines.setdefault(label, []).append(line)
    mapping = {label: name for label in lines if (name := _find_class(label, classes))}
    names = ", ".join(classes)
    problems = []
    for label, where in lines.items():
        spelt = f"; it spells {mapping[label]} otherwise" if label in mapping else ""
        also = f" (so {join_lines(where[1:])})" if len(where) > 1 else ""
        problems.append(
            Problem(
                line=where[0],
                message=f"label {show(label)} is not one of {names}{also}{spelt} "
                "(--classes declares others)",
            )
        )
    pairs = (shlex.quote(f"{label}={name}") for label, name in mapping.items())
    options = " ".join(f"--map-label {pair}" for pair in pairs)
    return problems, options and f"To read them as the classes that they spell, add: {options}"


def merge_spellings(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes that labels stand for where none is declared: of labels that differ only in case,
    white space or word form, the commonest; sorted."""
    by_meaning: dict[object, list[str]] = {}
    for label in labels:
        by_meaning.setdefault(_find_meaning(label), []).append(label)
    spelt = (max(sorted(set(same)), key=same.count) for same in by_meaning.values())
    return tuple(sorted(spelt))


def _find_class(label: str, classes: Sequence[str]) -> str:
    """The one class of the same meaning; empty where there is none, or more than one."""
    found = [name for name in classes if _find_meaning(name) == _find_meaning(label)]
    return found[0] if len(found) == 1 else ""


def _find_meaning(label: str) -> object:
    """Equal for labels that mean the same."""
    folded = " ".join(label.split()).casefold()
    return next((names for names in _SYNONYMS if folded in names), folded)
