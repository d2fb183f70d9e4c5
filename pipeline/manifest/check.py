"""The report of ``manifest check``; the checks themselves are in ``pipeline.manifest.reader``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.contracts import SPLITS
from pipeline.manifest.csv_rows import InvalidManifestError
from pipeline.manifest.reader import ManifestOptions, read_manifest


def check_manifest(path: Path, options: ManifestOptions) -> tuple[dict[str, Any], str]:
    """Read a manifest, whose files must be there.

    Returns:
        Plain JSON values (docs/json.md), counts and classes null where there are problems; and the
        same as text.

    Raises:
        ManifestError: the file cannot be read.
    """
    result: dict[str, Any] = {"manifest": str(path)}
    result |= dict.fromkeys(("n_clips", "clips_by_split", "classes", "classes_assumed"))
    try:
        listed = read_manifest(path, options, files_must_exist=True)
    except InvalidManifestError as error:
        problems = [asdict(problem) for problem in error.problems]
        return result | {"problems": problems, "advice": error.advice, "warnings": []}, str(error)
    by_split = {split: sum(clip.split == split for clip in listed.clips) for split in SPLITS}
    result |= {
        "n_clips": len(listed.clips),
        "clips_by_split": by_split,
        "classes": list(listed.classes),
        "classes_assumed": listed.classes_assumed,
        "problems": [],
        "advice": "",
        "warnings": [asdict(warning) for warning in listed.warnings],
    }
    assumed = " (taken from the labels; --classes declares them)" if listed.classes_assumed else ""
    lines = [
        f"{path}: {len(listed.clips)} clips: {', '.join(f'{n} {s}' for s, n in by_split.items())}",
        f"classes: {', '.join(listed.classes)}{assumed}",
        *(f"warning: {warning}" for warning in listed.warnings),
    ]
    return result, "\n".join(lines)
