"""The files that a manifest names: found under another spelling, missing, or in two splits."""

from __future__ import annotations

import contextlib
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from features.contracts import Clip
from pipeline.manifest.csv_rows import Problem

_log = logging.getLogger(__name__)


class FileFinder:
    """Finds the file that a cell means; reads each folder once at most."""

    def __init__(self, folder: Path) -> None:
        """folder: Where relative paths start."""
        self._folder = folder
        self._names: dict[Path, defaultdict[str, list[str]]] = {}
        """Folder -> normalised name -> names."""
        self._n_found: dict[str, int] = defaultdict(int)

    def find(self, cell: str) -> Path:
        """The path as the cell has it, if a file is there or none is under another spelling.

        Else ``clips\\\\a.mp4``, written on Windows, is ``clips/a.mp4``; and an accented letter that
        one system writes as one character and another as letter and accent is the same.
        """
        path = self._folder / cell
        if (cell.isascii() and "\\" not in cell) or os.path.lexists(path):
            return path
        slashed = cell.replace("\\", "/")
        if slashed != cell and (self._folder / slashed).exists():
            self._n_found["backslashes, read as slashes"] += 1
            return self._folder / slashed
        for text in (cell, slashed):
            found = self._find_normalised(text)
            if found is not None:
                self._n_found["letters with accents, found in their other form (NFC, NFD)"] += 1
                return found
        return path

    def log(self) -> None:
        """Say how many paths were found under another spelling."""
        for how, n in self._n_found.items():
            _log.info("%d paths have %s", n, how)

    def _find_normalised(self, text: str) -> Path | None:
        """The one path that reads the same; None where there is none, or more than one."""
        found = self._folder
        for part in Path(text).parts:
            if not os.path.lexists(found / part):
                names = self._list(found).get(unicodedata.normalize("NFC", part), [])
                if len(names) != 1:
                    return None
                part = names[0]
            found /= part
        return found

    def _list(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            names = self._names[folder] = defaultdict(list)
            with contextlib.suppress(OSError):  # no folder, or not readable: its files are missing
                for name in os.listdir(folder):  # noqa: PTH208 - names, not paths
                    names[unicodedata.normalize("NFC", name)].append(name)
        return self._names[folder]


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


def find_shared_files(clips: Sequence[Clip]) -> list[Problem]:
    """Clips that show a part of a file which a clip of another split shows too."""
    by_path: dict[Path, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_path[clip.path].append(clip)
    problems = []
    for same in by_path.values():
        seen: dict[str, Clip] = {}
        """Split -> the clip so far that ends last."""
        for clip in sorted(same, key=lambda clip: (clip.start_s or 0.0, clip.line)):
            for split, other in seen.items():
                if split != clip.split and (clip.start_s or 0.0) < _end_s(other):
                    message = (
                        f"clip {clip.clip_id!r} ({clip.split}) shows what {other.clip_id!r} "
                        f"({split}, line {other.line}) shows: {clip.path}. Scores would count what "
                        "training saw; give both the same split"
                    )
                    problems.append(Problem(line=clip.line, message=message))
            if clip.split not in seen or _end_s(clip) > _end_s(seen[clip.split]):
                seen[clip.split] = clip
    return sorted(problems, key=lambda problem: problem.line)


def _end_s(clip: Clip) -> float:
    return float("inf") if clip.end_s is None else clip.end_s
