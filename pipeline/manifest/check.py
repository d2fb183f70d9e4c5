"""The report of ``manifest check``; the checks themselves are in ``pipeline.manifest.reader``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.contracts import SPLITS
from pipeline.manifest.csv_rows import InvalidManifestError, Problem
from pipeline.manifest.reader import Manifest, ManifestOptions, read_manifest


@dataclass(frozen=True, kw_only=True)
class ManifestCheck:
    """A manifest that was checked."""

    path: Path
    manifest: Manifest | None
    """None where there are problems."""
    problems: tuple[Problem, ...]
    advice: str
    """What mends several problems at once; empty if nothing does."""
    text: str
    """For people."""

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values; counts and classes are null where there are problems."""
        listed = self.manifest
        return {
            "manifest": str(self.path),
            "n_clips": listed and len(listed.clips),
            "clips_by_split": listed and _count_splits(listed),
            "classes": listed and list(listed.classes),
            "classes_assumed": listed and listed.classes_assumed,
            "problems": [_as_json(problem) for problem in self.problems],
            "advice": self.advice,
            "warnings": [_as_json(warning) for warning in listed.warnings] if listed else [],
        }


def check_manifest(path: Path, options: ManifestOptions) -> ManifestCheck:
    """Read a manifest, whose files must be there.

    Raises:
        ManifestError: the file cannot be read.
    """
    try:
        listed = read_manifest(path, options, files_must_exist=True)
    except InvalidManifestError as error:
        return ManifestCheck(
            path=path,
            manifest=None,
            problems=error.problems,
            advice=error.advice,
            text=str(error),
        )
    text = _describe(listed)
    return ManifestCheck(path=path, manifest=listed, problems=(), advice="", text=text)


def _describe(listed: Manifest) -> str:
    counts = ", ".join(f"{n} {split}" for split, n in _count_splits(listed).items())
    assumed = " (taken from the labels; --classes declares them)" if listed.classes_assumed else ""
    lines = [
        f"{listed.path}: {len(listed.clips)} clips: {counts}",
        f"classes: {', '.join(listed.classes)}{assumed}",
        *(f"warning: {warning}" for warning in listed.warnings),
    ]
    return "\n".join(lines)


def _count_splits(listed: Manifest) -> dict[str, int]:
    return {split: sum(clip.split == split for clip in listed.clips) for split in SPLITS}


def _as_json(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "message": problem.message}
