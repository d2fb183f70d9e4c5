"""How the cost of stage one grows: with frames, resolution and faces; memory; a run with no work.

    python benchmarks/scaling.py [--part frames|resolution|faces|memory|resume ...] [--clip FILE]

frames      one clip of 100, 1,000 and 10,000 sampled frames: milliseconds a frame, peak memory
resolution  the same scene with one face at 240p to 1080p
faces       640x360 with 0 to 8 faces
memory      peak resident memory of ``cli.py extract`` on 10 minutes of 1920x1080 (--minutes)
resume      a second ``cli.py extract`` over a finished store of 1,000 clips, each its own file name

Clips are generated: a still life with a face that drifts. --clip FILE takes another one in their
place, looped without re-encoding, for ``frames`` (its own size) and ``memory`` (1920x1080 tells
most). Times are from the first clip on, with networks loaded, the store written; every measurement
has a fresh process. Memory is that of the command with all its processes, read ten times a second.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import click
from stage_one import Measured, run_stage_one, write_manifest
from videos import RATE_HZ, loop_video, write_faces_video

from features.contracts import TICK_RATE_HZ, Clip

ROOT = Path(__file__).resolve().parents[1]
ALL_FRAMES = RATE_HZ // TICK_RATE_HZ
"""Phases with which every frame of a generated clip is sampled."""


def run_fresh(path: Path, detect: str, phases: int = 1) -> Measured:
    """Stage one over one clip, in a process of its own; a first short run warms it up."""
    clip = Clip(clip_id="clip", path=path, label="", split="train" if phases > 1 else "test")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        process.submit(run_stage_one, [replace(clip, end_s=1.0)], detect, phases).result()
        return process.submit(run_stage_one, [clip], detect, phases).result()


def describe(measured: Measured) -> str:
    faces = measured.n_faces / measured.n_frames
    return (
        f"{measured.n_frames:6d} frames, {faces:.2f} faces a frame: "
        f"{measured.ms(measured.wall_s):6.1f} ms/frame wall, {measured.ms(measured.cpu_s):6.1f} "
        f"CPU, peak {measured.peak_mb:.0f} MB"
    )


def measure_frames(folder: Path, clip: Path | None, detect: str, counts: Sequence[int]) -> None:
    short = write_faces_video(
        folder / "short.mp4", size=(240, 320), n_faces=1, n_frames=2 * RATE_HZ
    )
    for count in counts:
        # A given clip is sampled five times a second, as real ones are; ours at every frame.
        rate_hz = TICK_RATE_HZ if clip else RATE_HZ
        path = loop_video(clip or short, folder / f"{count}.mp4", count / rate_hz)
        text = describe(run_fresh(path, detect, 1 if clip else ALL_FRAMES))
        print(f"frames      {text}", flush=True)
        path.unlink()


def measure_scene(
    title: str, folder: Path, detect: str, *, size: tuple[int, int], n_faces: int, duration_s: int
) -> None:
    path = write_faces_video(
        folder / "scene.mp4", size=size, n_faces=n_faces, n_frames=duration_s * RATE_HZ
    )
    print(title, describe(run_fresh(path, detect, ALL_FRAMES)), flush=True)


def measure_memory(folder: Path, clip: Path | None, detect: str, minutes: float) -> None:
    if clip is None:
        clip = write_faces_video(
            folder / "scene.mp4", size=(1080, 1920), n_faces=1, n_frames=10 * RATE_HZ
        )
    path = loop_video(clip, folder / "long.mp4", 60 * minutes)
    manifest = write_manifest(
        [Clip(clip_id="long", path=path, label="", split="test")], folder / "long.csv"
    )
    wall_s, peak_mb = run_command(manifest, folder / "long_store", detect)
    print(f"memory      {minutes:g} minutes: peak {peak_mb:.0f} MB, {wall_s:.0f} s", flush=True)


def measure_resume(folder: Path, detect: str, n_clips: int) -> None:
    video = write_faces_video(folder / "tiny.mp4", size=(120, 160), n_faces=1, n_frames=5)
    clips = []
    for i in range(n_clips):
        path = folder / f"{i:05d}.mp4"
        os.link(video, path)
        clips.append(Clip(clip_id=path.stem, path=path, label="", split="test"))
    manifest = write_manifest(clips, folder / "many.csv")
    first_s, _ = run_command(manifest, folder / "many_store", detect)
    again_s = [run_command(manifest, folder / "many_store", detect)[0] for _ in range(3)]
    text = " ".join(f"{s:.2f}" for s in again_s)
    print(f"resume      {n_clips} clips: first run {first_s:.1f} s, again {text} s", flush=True)


def run_command(manifest: Path, store: Path, detect: str) -> tuple[float, float]:
    """Wall seconds and peak MB of a whole ``cli.py extract``."""
    command = [sys.executable, str(ROOT / "cli.py"), "extract", str(manifest)]
    command += ["--store", str(store), "--device", "cpu", "--json", "--detect", detect]
    started_s = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT)
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, read_resident_mb(process.pid))
            time.sleep(0.1)
        wall_s = time.perf_counter() - started_s
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read().decode()}")
    return wall_s, peak_mb


def read_resident_mb(pid: int) -> float:
    """Of a process and all its descendants; pages that they share count once for each (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = "".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children"))
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    own_mb = int(resident[0]) / 1024 if resident else 0.0
    return own_mb + sum(read_resident_mb(int(child)) for child in children.split())


SIZES_PX = ((240, 426), (360, 640), (480, 854), (720, 1280), (1080, 1920))
PARTS = ("frames", "resolution", "faces", "memory", "resume")


@click.command()
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Default: all.")
@click.option("--clip", type=click.Path(path_type=Path, exists=True), help="A video to loop.")
@click.option("--detect", type=click.Choice(["exact", "tracked"]), default="exact")
@click.option("--count", "counts", multiple=True, type=int, default=(100, 1000, 10000))
@click.option("--minutes", default=10.0, show_default=True, help="Length for the part memory.")
@click.option("--clips", "n_clips", default=1000, show_default=True, help="For the part resume.")
def main(
    parts: tuple[str, ...],
    clip: Path | None,
    detect: str,
    counts: tuple[int, ...],
    minutes: float,
    n_clips: int,
) -> None:
    """How the cost of stage one grows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in parts or PARTS:
            if part == "frames":
                measure_frames(folder, clip, detect, counts)
            elif part == "resolution":
                for height, width in SIZES_PX:
                    title = f"resolution  {width:4d}x{height:<4d}"
                    size = height, width
                    measure_scene(title, folder, detect, size=size, n_faces=1, duration_s=2)
            elif part == "faces":
                for n in (0, 1, 2, 4, 8):
                    title = f"faces       {n} drawn:"
                    measure_scene(title, folder, detect, size=(360, 640), n_faces=n, duration_s=4)
            elif part == "memory":
                measure_memory(folder, clip, detect, minutes)
            else:
                measure_resume(folder, detect, n_clips)


if __name__ == "__main__":
    main()
