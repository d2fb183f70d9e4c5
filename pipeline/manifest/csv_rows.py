"""The CSV of a manifest: its rows with their line numbers, or why it is none."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.errors import ManifestError

REQUIRED_COLUMNS = ("clip_id", "path", "label", "split")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "'|'"}
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a manifest."""

    line: int
    """Line of the file, the header being line 1."""
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class InvalidManifestError(ManifestError):
    """A manifest with problems; the message lists them in the order of lines."""

    def __init__(self, path: Path, problems: Sequence[Problem], advice: str = "") -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        self.advice = advice
        """What mends several problems at once, if anything does."""
        n = len(self.problems)
        lines = [f"{path}: {n} problem{'s' if n > 1 else ''}", *map(str, self.problems)]
        super().__init__("\n  ".join(lines) + (f"\n{advice}" if advice else ""))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the CSV."""

    line: int
    """Of its first line, the header being line 1."""
    cells: dict[str, str]
    """By column, stripped."""


def read_rows(path: Path) -> tuple[list[Row], list[Problem]]:
    """Every row that has a cell for each column, and what is wrong with the others.

    Raises:
        InvalidManifestError: the file is not UTF-8, not CSV, or lacks a column.
        ManifestError: it cannot be read.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    problems: list[Problem] = []
    line = 1
    try:
        header = _read_header(path, next(reader, []))
        line = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(header):
                    message = f"{len(cells)} cells, but the header has {len(header)}"
                    problems.append(Problem(line=line, message=message))
                else:
                    stripped = (cell.strip() for cell in cells)
                    named = dict(zip(header, stripped, strict=True))
                    rows.append(Row(line=line, cells=named))
            line = reader.line_num + 1
    except csv.Error as error:
        message = f"not CSV from here on ({error}). Is a quotation mark left open?"
        raise InvalidManifestError(path, [Problem(line=line, message=message)]) from None
    return rows, problems


def show(cell: str) -> str:
    """A cell as messages quote it, cut where it is long."""
    return repr(cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}...")


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: no such file. Name a CSV with the columns {', '.join(REQUIRED_COLUMNS)}"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        message = (
            f"not UTF-8 (byte {error.start}). Save the CSV as UTF-8; Excel calls it 'CSV UTF-8'."
        )
        raise InvalidManifestError(path, [Problem(line=line, message=message)]) from None


def _read_header(path: Path, cells: Sequence[str]) -> list[str]:
    header = [name.strip() for name in cells]
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if not missing and not repeated:
        return header
    faults = [f"lacks {', '.join(missing)}"] if missing else []
    if repeated:
        faults.append(f"repeats {', '.join(name or 'the empty name' for name in repeated)}")
    message = (
        f"the header {' and '.join(faults)}; found {', '.join(header) or 'nothing'}. "
        f"Expected commas between at least {', '.join(REQUIRED_COLUMNS)}"
    )
    for separator, name in _SEPARATORS.items():
        if set(REQUIRED_COLUMNS) <= {cell.strip() for cell in ",".join(header).split(separator)}:
            message += f"; found {name}. Save the CSV with commas."
            break
    raise InvalidManifestError(path, [Problem(line=1, message=message)])


def join_lines(lines: Sequence[int]) -> str:
    """Line numbers as messages list them: ``lines 2, 5, 9 and 12 more``."""
    named = ", ".join(map(str, lines[:3]))
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return f"line{'s' if len(lines) > 1 else ''} {named}{more}"


def iter_cells(rows: Sequence[Row], column: str) -> Iterator[tuple[int, str]]:
    """Line and cell of each row that has one in this column."""
    for row in rows:
        if row.cells.get(column):
            yield row.line, row.cells[column]
