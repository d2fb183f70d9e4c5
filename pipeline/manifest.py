"""Reads and checks the manifest: the CSV that names the clips, their labels and splits."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.contracts import MEC_CLASSES, SPLITS, Clip
from features.errors import ConfigError, ManifestError

REQUIRED_COLUMNS = ("clip_id", "path", "label", "split")
KNOWN_COLUMNS = (*REQUIRED_COLUMNS, "subject", "start_s", "end_s", "source")
_CLIP_ID = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a manifest."""

    line: int
    """Line of the file, the header being line 1."""
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The clips of a manifest that has no problem, and the classes that its labels are from."""

    path: Path
    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    classes_assumed: bool
    """True where the classes were neither given nor MEC's, but the labels of the whole file."""


def read_manifest(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    allow_subject_overlap: bool = False,
    files_must_exist: bool = False,
) -> Manifest:
    """Read a manifest, or say all that is wrong with it.

    Args:
        path: The CSV, UTF-8; its relative paths start at its folder.
        classes: Class names in order. Where absent: MEC's eight if any label is one of them or no
            clip is labelled, else all labels of the file, sorted.
        allow_subject_overlap: Let a subject stand in two splits.
        files_must_exist: Count a clip without a file as a problem; ``extract`` makes it a row of
            failures.csv instead.

    Raises:
        ManifestError: with every problem, a line each.
        ConfigError: ``classes`` are fewer than two, or one is empty or stands twice.
    """
    if classes is not None and (len(set(classes)) < max(2, len(classes)) or not all(classes)):
        raise ConfigError(f"classes {', '.join(classes)}: expected two or more different names")
    rows, problems = _read_rows(path)
    labels = {row["label"] for _, row in rows if row["label"]}
    lowered = {label.lower() for label in labels}
    assumed = classes is None and bool(labels) and lowered.isdisjoint(MEC_CLASSES)
    declared = tuple(classes) if classes else tuple(sorted(labels)) if assumed else MEC_CLASSES
    problems += _check_ids(rows)
    problems += _check_labels(rows, declared)
    clips = []
    for line, row in rows:
        clip_problems, clip = _read_clip(path.parent, line, row)
        problems += clip_problems
        if clip is not None:
            clips.append(clip)
    if not allow_subject_overlap:
        problems += _check_subjects(rows)
    if files_must_exist:
        problems += find_missing_files(clips)
    if not rows and not problems:
        problems.append(Problem(line=2, message="no clip follows the header"))
    if problems:
        listed = "\n".join(f"  {p}" for p in sorted(problems, key=lambda p: p.line))
        n = len(problems)
        raise ManifestError(f"{path}: {n} problem{'s' if n > 1 else ''}\n{listed}")
    return Manifest(path=path, clips=tuple(clips), classes=declared, classes_assumed=assumed)


def find_missing_files(clips: Sequence[Clip]) -> list[Problem]:
    """The clips whose file is not there."""
    problems = []
    for clip in clips:
        try:
            reason = "" if clip.path.is_file() else "no file"
        except OSError as error:  # a folder without permission, a name too long
            reason = f"cannot be read ({error.strerror})"
        if reason:
            message = f"clip {clip.clip_id!r}: {reason}: {clip.path}"
            problems.append(Problem(line=clip.line, message=message))
    return problems


def _read_rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[Problem]]:
    """Each row with its line number, cells stripped; raises where the file is no such CSV."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: no such file. Name a CSV with the columns {', '.join(REQUIRED_COLUMNS)}"
        ) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ManifestError(
            f"{path}: line {line} is not UTF-8 (byte {error.start}). Save the CSV as UTF-8."
        ) from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        return _split_rows(reader, _read_header(path, reader))
    except csv.Error as error:
        raise ManifestError(
            f"{path}: line {reader.line_num}: not CSV ({error}). Is a quotation mark left open?"
        ) from None


def _read_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if missing or repeated:
        twice = ", ".join(name or "the empty name" for name in repeated)
        what = f"lacks {', '.join(missing)}" if missing else f"repeats {twice}"
        raise ManifestError(
            f"{path}: line 1: the header {what}; found {', '.join(header) or 'nothing'}. "
            f"Expected commas between at least {', '.join(REQUIRED_COLUMNS)}"
        )
    return header


def _split_rows(
    reader: Iterator[list[str]], header: list[str]
) -> tuple[list[tuple[int, dict[str, str]]], list[Problem]]:
    rows: list[tuple[int, dict[str, str]]] = []
    problems = []
    line = 2
    for cells in reader:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                message = f"{len(cells)} cells, but the header has {len(header)}"
                problems.append(Problem(line=line, message=message))
            else:
                stripped = (cell.strip() for cell in cells)
                rows.append((line, dict(zip(header, stripped, strict=True))))
        line = reader.line_num + 1  # type: ignore[attr-defined]
    return rows, problems


def _check_ids(rows: list[tuple[int, dict[str, str]]]) -> list[Problem]:
    problems = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        clip_id = row["clip_id"]
        if not _CLIP_ID.fullmatch(clip_id):
            message = f"clip_id {clip_id!r}: expected letters, digits, '.', '_' or '-' only"
            problems.append(Problem(line=line, message=message))
        elif clip_id in first_line:
            message = f"clip_id {clip_id!r} stands already on line {first_line[clip_id]}"
            problems.append(Problem(line=line, message=message))
        first_line.setdefault(clip_id, line)
    return problems


def _check_labels(
    rows: list[tuple[int, dict[str, str]]], classes: tuple[str, ...]
) -> list[Problem]:
    names = ", ".join(classes)
    return [
        Problem(
            line=line,
            message=f"label {row['label']!r} is not one of {names} (--classes declares others)",
        )
        for line, row in rows
        if row["label"] and row["label"] not in classes
    ]


def _read_clip(folder: Path, line: int, row: dict[str, str]) -> tuple[list[Problem], Clip | None]:
    messages = []
    if not row["path"]:
        messages.append("path is empty")
    if row["split"] not in SPLITS:
        messages.append(f"split {row['split']!r} is not one of {', '.join(SPLITS)}")
    times: dict[str, float | None] = {}
    for name in ("start_s", "end_s"):
        cell = row.get(name, "")
        try:
            times[name] = float(cell) if cell else None
        except ValueError:
            times[name] = float("nan")
        value = times[name]
        if value is not None and not 0 <= value < float("inf"):
            messages.append(f"{name} {cell!r} is not a number of seconds, 0 or more")
            times[name] = None
    start_s, end_s = times["start_s"], times["end_s"]
    if end_s is not None and (start_s or 0.0) >= end_s:
        messages.append(f"start_s {start_s or 0.0:g} is not before end_s {end_s:g}")
    problems = [Problem(line=line, message=message) for message in messages]
    if problems:
        return problems, None
    return [], Clip(
        clip_id=row["clip_id"],
        path=folder / row["path"],
        label=row["label"],
        split=row["split"],
        subject=row.get("subject", ""),
        source=row.get("source", ""),
        start_s=start_s,
        end_s=end_s,
        line=line,
        extra={name: cell for name, cell in row.items() if name not in KNOWN_COLUMNS},
    )


def _check_subjects(rows: list[tuple[int, dict[str, str]]]) -> list[Problem]:
    first: dict[str, tuple[int, str]] = {}
    problems = []
    for line, row in rows:
        subject, split = row.get("subject", ""), row["split"]
        if not subject or split not in SPLITS:
            continue
        other_line, other_split = first.setdefault(subject, (line, split))
        if other_split != split:
            message = (
                f"subject {subject!r} stands in {split}, but in {other_split} on line "
                f"{other_line} (--allow-subject-overlap permits it)"
            )
            problems.append(Problem(line=line, message=message))
    return problems
