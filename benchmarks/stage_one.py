"""What the benchmarks share: which clips, the manifest that lists them, and a run over them.

All clips count as split ``test``, so that the clock has one phase: five frames a second (IV-C).
"""

from __future__ import annotations

import csv
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from features.contracts import Clip
from pipeline.config import ExtractConfig
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
    chosen = (
        [group[i * len(group) // n] for i in range(n)]
        for group, n in zip(groups, shares, strict=True)
    )
    return [clip for turn in zip_longest(*chosen) for clip in turn if clip is not None]


def write_manifest(clips: Sequence[Clip], path: Path) -> Path:
    """A manifest of these clips, without labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "path", "label", "split", "start_s", "end_s"])
        for clip in clips:
            part = ["" if value is None else value for value in (clip.start_s, clip.end_s)]
            writer.writerow([clip.clip_id, clip.path, "", clip.split, *part])
    return path


@dataclass(kw_only=True)
class Measured:
    """What one side needed for a group of clips, or for several."""

    n_frames: int = 0
    n_faces: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    load_s: float = 0.0
    """Of the networks; not in ``wall_s``."""
    peak_mb: float = 0.0
    """Resident memory of the largest worker so far."""
    step_s: Counter[str] = field(default_factory=Counter)
    """Step -> seconds."""

    def add(self, other: Measured) -> None:
        for name in ("n_frames", "n_faces", "wall_s", "cpu_s", "load_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.peak_mb = max(self.peak_mb, other.peak_mb)
        self.step_s.update(other.step_s)

    def add_step(self, step: str, since_s: float) -> float:
        """Count the time from then to now. Returns now."""
        now_s = time.perf_counter()
        self.step_s.update({step: now_s - since_s})
        return now_s

    def ms(self, seconds: float) -> float:
        """Milliseconds per sampled frame."""
        return 1000 * seconds / self.n_frames


def run_stage_one(
    clips: list[Clip], detect: str, phases: int = 1, workers: int | None = None
) -> Measured:
    """The whole of stage one, into a store that is removed."""
    import cli  # noqa: F401  # sets what the command sets before torch is loaded
    from pipeline.extract import run_extract

    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(clips, Path(folder) / "clips.csv")
        called_s, called_cpu_s = time.perf_counter(), read_cpu_s()
        config = ExtractConfig(detect=detect, phases=phases)
        summary = run_extract(
            manifest, Path(folder) / "store", config, device="cpu", workers=workers
        )
        ended_s, ended_cpu_s = time.perf_counter(), read_cpu_s()
    if summary.clips_failed:
        raise SystemExit(f"{summary.clips_failed} clips failed: run extract on them to see why")
    return Measured(
        n_frames=summary.frames,
        n_faces=summary.faces,
        wall_s=ended_s - called_s - summary.step_s["load"],
        cpu_s=ended_cpu_s - called_cpu_s,
        load_s=summary.step_s["load"],
        peak_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        step_s=Counter(summary.step_s),
    )


def read_cpu_s() -> float:
    """CPU seconds of this process and its finished children, all threads."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
