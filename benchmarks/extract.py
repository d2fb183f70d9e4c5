"""Stage one against the peer pipeline (peer.py) on the same clips, in one run, by turns.

    pip install requests && pip install --no-deps facenet-pytorch       once, for the peer
    python benchmarks/extract.py CSV [CSV ...] [--clips N] [--rounds R] [--detect exact|tracked]

Takes every k-th clip of each manifest, as many of each, all as split ``test`` (five frames a
second), and sends them through both sides in groups; who goes first changes with every group. The
peer lives in a process of its own, with its networks loaded, and uses all cores; ours starts its
processes for each turn, as the command does.

Ours is the whole of ``run_extract``, face CNN and store included, from the moment its first process
is ready; what comes before, once per command, is told apart (``load``; it is in our CPU time, as is
the end of all processes). The peer's imports and networks are not counted. It computes no face
features and stores nothing. The floor is decoding alone: PyAV decodes all frames of the clips and
converts none. Times are wall time per sampled frame, the median over rounds; CPU
time counts all threads. Our steps may overlap: their sum can exceed the wall time. The peer gives
its detector a clip as one batch, cut where it has more than --peer-batch megapixels (8: four frames
of 1920x1080); 32 was 5% slower, 2, which is a frame of 1920x1080, a fifth faster.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import av
import click
from stage_one import Measured, mix_clips, read_clips, read_cpu_s, run_stage_one

from features.contracts import Clip


def measure_times(action: Callable[[], Measured]) -> Measured:
    """What an action counts, with the time it takes."""
    cpu_s, started_s = read_cpu_s(), time.perf_counter()
    measured = action()
    measured.wall_s, measured.cpu_s = time.perf_counter() - started_s, read_cpu_s() - cpu_s
    return measured


def run_peer(clips: list[Clip], batch_pixels: int) -> Measured:
    """In the peer's process."""
    peer = load_peer()
    return measure_times(lambda: peer.run(clips, batch_pixels))


@cache
def load_peer() -> Any:
    # As cli.py does for ours. Threads that wait actively gain a little on an idle machine, and make
    # torch several times slower beside other work: set OMP_WAIT_POLICY=ACTIVE to see.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from peer import Peer

    return Peer()


def run_floor(clips: list[Clip]) -> Measured:
    """In the peer's process: PyAV decodes every frame of the clips and converts none."""

    def decode() -> Measured:
        for clip in clips:
            with av.open(str(clip.path)) as container:
                container.streams.video[0].thread_type = "AUTO"
                deque(container.decode(video=0), maxlen=0)
        return Measured()

    return measure_times(decode)


def run_our_decoding(clips: list[Clip]) -> Measured:
    """In our process: decoding, choosing and converting the frames, and nothing else."""
    import cli  # noqa: F401
    from pipeline.decode.sampling import iter_chosen_frames

    frames = (frame for clip in clips for frame in iter_chosen_frames(clip, 1))
    return measure_times(lambda: Measured(n_frames=sum(1 for _ in frames)))


def measure(
    groups: list[list[Clip]], rounds: int, detect: str, batch_pixels: int
) -> dict[str, list[Measured]]:
    """What each side needs, summed over the groups, for each round."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[Measured]] = {name: [] for name in ("peer", "floor", "ours", "decoding")}
    with (
        ProcessPoolExecutor(1, mp_context=spawn) as peers,
        ProcessPoolExecutor(1, mp_context=spawn) as our,
    ):
        # Once over a group that is not counted: imports, memory, kernels, the files' pages.
        peers.submit(run_peer, groups[0][:2], batch_pixels).result()
        our.submit(run_stage_one, groups[0][:2], detect).result()
        for round_ in range(rounds):
            sums = {name: Measured() for name in found}
            for number, clips in enumerate(groups):
                turns = [
                    ("floor", lambda c=clips: peers.submit(run_floor, c).result()),
                    ("peer", lambda c=clips: peers.submit(run_peer, c, batch_pixels).result()),
                    ("decoding", lambda c=clips: our.submit(run_our_decoding, c).result()),
                    ("ours", lambda c=clips: our.submit(run_stage_one, c, detect).result()),
                ]
                for name, turn in turns if (number + round_) % 2 == 0 else reversed(turns):
                    sums[name].add(turn())
                where = f"round {round_ + 1}, group {number + 1} of {len(groups)}"
                click.echo(where, err=True)
            sums["floor"].n_frames = sums["peer"].n_frames
            for name, measured in sums.items():
                found[name].append(measured)
    return found


def median_ms(rounds: list[Measured], seconds: Callable[[Measured], float]) -> float:
    return statistics.median(m.ms(seconds(m)) for m in rounds)


def print_side(title: str, rounds: list[Measured]) -> None:
    first = rounds[0]
    print(
        f"{title}: {median_ms(rounds, lambda m: m.wall_s):.1f} ms/frame wall, "
        f"{median_ms(rounds, lambda m: m.cpu_s):.1f} CPU; {first.n_frames} frames, "
        f"{first.n_faces} faces; rounds " + " ".join(f"{m.ms(m.wall_s):.1f}" for m in rounds)
    )
    for step in first.step_s:
        print(f"    {step:12} {median_ms(rounds, lambda m, s=step: m.step_s[s]):7.2f}")


@click.command()
@click.argument("manifests", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--clips", "n_clips", default=24, show_default=True, help="Clips, of all together.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--group", default=12, show_default=True, help="Clips in each side's turn.")
@click.option(
    "--peer-batch", default=8.0, show_default=True, help="Megapixels of the peer's batches."
)
@click.option("--detect", type=click.Choice(["exact", "tracked"]), default="exact")
def main(
    manifests: tuple[Path, ...],
    n_clips: int,
    rounds: int,
    group: int,
    peer_batch: float,
    detect: str,
) -> None:
    """Milliseconds per sampled frame of stage one and of the peer pipeline."""
    clips = mix_clips(read_clips(manifests), n_clips)
    groups = [clips[start : start + group] for start in range(0, len(clips), group)]
    print(f"{len(clips)} clips of {', '.join(m.name for m in manifests)}, --detect {detect}")
    found = measure(groups, rounds, detect, int(peer_batch * 1e6))
    ours, peer, floor = found["ours"], found["peer"], found["floor"]
    print_side("peer", peer)
    print_side("ours", ours)
    load_ms = median_ms(ours, lambda m: m.load_s) * ours[0].n_frames / len(groups)
    decoding_ms = median_ms(found["decoding"], lambda m: m.wall_s)
    floor_ms = median_ms(floor, lambda m: m.wall_s)
    print(f"    processes ready, once per command: {load_ms / 1000:.2f} s")
    print(f"    our decoding and conversion alone: {decoding_ms:.2f}")
    print(f"floor, decoding alone: {floor_ms:.2f} ms/frame wall, ", end="")
    print(f"{median_ms(floor, lambda m: m.cpu_s):.2f} CPU")
    pairs = list(zip(peer, ours, strict=True))
    wall = [p.ms(p.wall_s) / o.ms(o.wall_s) for p, o in pairs]
    cpu = [p.ms(p.cpu_s) / o.ms(o.cpu_s) for p, o in pairs]
    shares = [f.wall_s / o.wall_s for f, o in zip(floor, ours, strict=True)]
    print(
        f"ratio peer / ours: {statistics.median(wall):.2f} wall (rounds "
        f"{min(wall):.2f} to {max(wall):.2f}), {statistics.median(cpu):.2f} CPU"
    )
    print(f"share of our wall time that decoding alone needs: {statistics.median(shares):.1%}")
    if peer[0].n_frames != ours[0].n_frames:
        print("the sides did not sample the same number of frames: see clips with odd time stamps")


if __name__ == "__main__":
    main()
