"""Reads and checks the manifest: the CSV that names the clips, their labels and splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from features.contracts import CLIP_ID, MEC_CLASSES, SPLITS, Clip
from features.errors import ConfigError
from pipeline.manifest.csv_rows import (
    REQUIRED_COLUMNS,
    InvalidManifestError,
    Problem,
    Row,
    iter_cells,
    read_rows,
    show,
)
from pipeline.manifest.files import FileFinder, find_missing_files, find_shared_files
from pipeline.manifest.labels import check_labels, map_labels, merge_spellings

KNOWN_COLUMNS = (*REQUIRED_COLUMNS, "subject", "start_s", "end_s", "source")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The clips of a manifest that has no problem, and the classes that its labels are from."""

    path: Path
    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    classes_assumed: bool
    """True where the classes were neither given nor MEC's, but the labels of the whole file."""
    warnings: tuple[Problem, ...] = ()
    """What is allowed and yet most likely wrong."""


@dataclass(frozen=True, kw_only=True)
class ManifestOptions:
    """How a manifest is read."""

    classes: Sequence[str] | None = None
    """Class names in order. Where absent: MEC's eight if any label is one of them or no clip is
    labelled, else all labels of the file, sorted."""
    allow_subject_overlap: bool = False
    """Let a subject stand in two splits."""
    label_mapping: Mapping[str, str] = field(default_factory=dict)
    """Label of the file -> the class that it means."""

    def __post_init__(self) -> None:
        """Raises ConfigError: the classes are fewer than two, or one is empty or stands twice."""
        given = self.classes
        if given is not None and (len(set(given)) < max(2, len(given)) or not all(given)):
            raise ConfigError(f"classes {', '.join(given)}: expected two or more different names")


DEFAULT_OPTIONS = ManifestOptions()


def read_manifest(
    path: Path, options: ManifestOptions = DEFAULT_OPTIONS, *, files_must_exist: bool = False
) -> Manifest:
    """Read a manifest, or say all that is wrong with it.

    Args:
        path: The CSV, UTF-8; its relative paths start at its folder.
        options: How it is read.
        files_must_exist: Count a clip without a file as a problem; ``extract`` makes it a row of
            failures.csv instead.

    Raises:
        InvalidManifestError: with every problem, a line each.
        ManifestError: the file cannot be read.
    """
    rows, problems = read_rows(path)
    map_labels(rows, options.label_mapping)
    declared, assumed = _choose_classes(rows, options.classes)
    label_problems, advice = check_labels(rows, declared)
    problems += [*_check_ids(rows), *label_problems]
    finder = FileFinder(path.parent)
    clips = []
    for row in rows:
        row_problems, clip = _read_clip(finder, row)
        problems += row_problems
        if clip is not None:
            clips.append(clip)
    finder.log()
    if not options.allow_subject_overlap:
        problems += _check_subjects(rows)
    if files_must_exist:
        problems += find_missing_files(clips)
    if not rows and not problems:
        problems.append(Problem(line=2, message="no clip follows the header"))
    if problems:
        raise InvalidManifestError(path, problems, advice)
    return Manifest(
        path=path,
        clips=tuple(clips),
        classes=declared,
        classes_assumed=assumed,
        warnings=tuple(find_shared_files(clips)),
    )


def _choose_classes(
    rows: Sequence[Row], given: Sequence[str] | None
) -> tuple[tuple[str, ...], bool]:
    """The classes, and whether they are but assumed from the labels."""
    if given is not None:
        return tuple(given), False
    labels = [label for _, label in iter_cells(rows, "label")]
    if not labels or not {label.lower() for label in labels}.isdisjoint(MEC_CLASSES):
        return MEC_CLASSES, False
    return merge_spellings(labels), True


def _check_ids(rows: Sequence[Row]) -> list[Problem]:
    problems = []
    first_line: dict[str, int] = {}
    for row in rows:
        clip_id = row.cells["clip_id"]
        line = first_line.setdefault(clip_id, row.line)
        message = f"clip_id {show(clip_id)} stands already on line {line}"
        if not CLIP_ID.fullmatch(clip_id):
            message = f"clip_id {show(clip_id)}: expected letters, digits, '.', '_' or '-' only"
        elif line == row.line:
            continue
        problems.append(Problem(line=row.line, message=message))
    return problems


def _read_clip(finder: FileFinder, row: Row) -> tuple[list[Problem], Clip | None]:
    cells, messages = row.cells, []
    if not cells["path"]:
        messages.append("path is empty")
    if "\0" in cells["path"]:
        messages.append(f"path {show(cells['path'])} holds a NUL character, which no file name has")
    if cells["split"] not in SPLITS:
        messages.append(f"split {show(cells['split'])} is not one of {', '.join(SPLITS)}")
    times: dict[str, float | None] = {}
    for name in ("start_s", "end_s"):
        cell = cells.get(name, "")
        try:
            times[name] = float(cell) if cell else None
        except ValueError:
            times[name] = float("nan")
        value = times[name]
        if value is not None and not 0 <= value < float("inf"):
            messages.append(f"{name} {show(cell)} is not a number of seconds, 0 or more")
            times[name] = None
    start_s, end_s = times["start_s"], times["end_s"]
    if end_s is not None and (start_s or 0.0) >= end_s:
        messages.append(f"start_s {start_s or 0.0:g} is not before end_s {end_s:g}")
    if messages:
        return [Problem(line=row.line, message=message) for message in messages], None
    return [], Clip(
        clip_id=cells["clip_id"],
        path=finder.find(cells["path"]),
        label=cells["label"],
        split=cells["split"],
        subject=cells.get("subject", ""),
        source=cells.get("source", ""),
        start_s=start_s,
        end_s=end_s,
        line=row.line,
        extra={name: cell for name, cell in cells.items() if name not in KNOWN_COLUMNS},
    )


def _check_subjects(rows: Sequence[Row]) -> list[Problem]:
    first: dict[str, tuple[int, str]] = {}
    problems = []
    for row in rows:
        subject, split = row.cells.get("subject", ""), row.cells["split"]
        if not subject or split not in SPLITS:
            continue
        other_line, other_split = first.setdefault(subject, (row.line, split))
        if other_split != split:
            message = (
                f"subject {show(subject)} stands in {split}, but in {other_split} on line "
                f"{other_line} (--allow-subject-overlap permits it)"
            )
            problems.append(Problem(line=row.line, message=message))
    return problems
