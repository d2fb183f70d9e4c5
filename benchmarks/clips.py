"""What the benchmarks share: which clips, and the manifest that lists them.

All clips count as split ``test``, so that the clock has one phase: five frames a second (IV-C).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from features.contracts import Clip
from pipeline.manifest.reader import ManifestOptions, read_manifest


def read_clips(manifests: Sequence[Path]) -> list[list[Clip]]:
    """The clips of each manifest, with absolute paths and split ``test``."""
    groups = []
    for path in manifests:
        listed = read_manifest(path, ManifestOptions(allow_subject_overlap=True))
        groups.append(
            [replace(c, path=c.path.resolve(), split="test", subject="") for c in listed.clips]
        )
    ids = [clip.clip_id for group in groups for clip in group]
    if len(set(ids)) < len(ids):
        raise SystemExit("two clips of these manifests have one clip_id: rename one")
    return groups


def mix_clips(groups: Sequence[Sequence[Clip]], n_clips: int) -> list[Clip]:
    """About as many clips of each group: every k-th, so that all of it is seen; groups alternate.

    A group with fewer clips than its share gives all it has, and the others more.
    """
    shares = [0] * len(groups)
    for _ in range(min(n_clips, sum(len(group) for group in groups))):
        open_groups = [g for g in range(len(groups)) if shares[g] < len(groups[g])]
        shares[min(open_groups, key=lambda g: shares[g])] += 1
    chosen = [
        [group[i * len(group) // n] for i in range(n)]
        for group, n in zip(groups, shares, strict=True)
    ]
    longest = max(shares)
    return [group[i] for i in range(longest) for group in chosen if i < len(group)]


def write_manifest(clips: Sequence[Clip], path: Path) -> Path:
    """A manifest of these clips, without labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "path", "label", "split", "start_s", "end_s"])
        for clip in clips:
            part = ["" if value is None else value for value in (clip.start_s, clip.end_s)]
            writer.writerow([clip.clip_id, clip.path, "", clip.split, *part])
    return path
