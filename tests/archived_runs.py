"""What the runs in tests/archives/ are, and the command that writes them.

They stay as the release of their time wrote them: every later code must read them. Their weights
are zeroed, so that they compress to nothing; all else is as ``fit`` and ``sweep`` left it. Written
once, for a new format, with::

    python -m tests.archived_runs tests/archives/runs-v1.tar.xz
"""

from __future__ import annotations

import sys
import tarfile
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from features.store.writer import write_store
from tests.builders import clip_features
from tests.fits import fit_folds, fit_runs
from train.config import FitConfig
from train.runs.folder import find_runs
from train.sweep.batches import Sweep
from train.sweep.space import parse_grid
from train.sweep.sweep import run_sweep

CLASSES = ("happy", "sad")
CONFIG = FitConfig(
    epochs=2, min_updates=0, batch_size=8, precision="float32", members="face,context"
)


def write_archive(file: Path) -> None:
    """Two seeds of an ensemble and its members, a sweep, two folds, compressed by xz."""
    with TemporaryDirectory() as folder, tarfile.open(file, "w:xz") as archive, chdir(folder):
        store, runs = Path("store"), Path("runs")
        clips = [
            clip_features(
                f"c{i:02}",
                n_frames=2,
                label=CLASSES[i % 2],
                split=("train", "train", "val", "test")[i // 2 % 4],
                subject=f"s{i // 2}",
                source="archive",
            )
            for i in range(16)
        ]
        write_store(store, clips, classes=CLASSES, fingerprint="archive")
        fit_runs([store], runs, ["ensemble"], [0, 1], CONFIG)
        fit_folds([store], runs, ["face"], [0], CONFIG, folds="2")
        grid = parse_grid(["lr=1e-4,1e-3"], CONFIG)
        run_sweep([store], runs, Sweep(head="face", config=CONFIG, space=grid), [])
        for path in find_runs(runs):
            _zero_weights(path / "weights.safetensors")
        for storage in (*runs.glob("sweep-*/trials.db*"), *runs.glob("sweep-*/.lock")):
            storage.unlink()
        archive.add(runs, filter=_forget_owner)


def _zero_weights(file: Path) -> None:
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")  # behind the names and shapes
    file.write_bytes(data[:begin] + bytes(len(data) - begin))


def _forget_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
