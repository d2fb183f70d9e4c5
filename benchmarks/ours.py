"""Runs stage one as the command does, and measures it."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from clips import write_manifest

from features.contracts import Clip
from pipeline.config import ExtractConfig


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
    step_s: dict[str, float] = field(default_factory=dict)

    def add(self, other: Measured) -> None:
        self.n_frames += other.n_frames
        self.n_faces += other.n_faces
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s
        self.load_s += other.load_s
        self.peak_mb = max(self.peak_mb, other.peak_mb)
        for step, step_s in other.step_s.items():
            self.step_s[step] = self.step_s.get(step, 0.0) + step_s

    def ms(self, seconds: float) -> float:
        """Milliseconds per sampled frame."""
        return 1000 * seconds / self.n_frames


def run_ours(
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
        step_s=dict(summary.step_s),
    )


def read_cpu_s() -> float:
    """CPU seconds of this process and its finished children, all threads."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
