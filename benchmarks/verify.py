"""What hashing a store costs its reader: every clip is read with it and without.

python -m benchmarks.verify STORE
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from features.store.reader import open_store

N_REPEATS = 3


def read_store(store: Path, *, verify: bool, context_7x7: bool) -> float:
    """Seconds."""
    start_s = time.perf_counter()
    for _ in open_store(store, verify=verify).iter_clips(context_7x7=context_7x7):
        pass
    return time.perf_counter() - start_s


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
def main(store: Path) -> None:
    """Print the least of some times: files are then in the system's memory."""
    n_bytes = sum(shard.n_bytes for shard in open_store(store).shards)
    for context_7x7 in (False, True):
        with_hash, without = (
            min(read_store(store, verify=verify, context_7x7=context_7x7) for _ in range(N_REPEATS))
            for verify in (True, False)
        )
        print(
            f"{n_bytes / 1e9:.2f} GB, context_{'7x7' if context_7x7 else '2x2'}: {without:.2f} s, "
            f"hashed first {with_hash:.2f} s ({n_bytes / 1e9 / (with_hash - without):.1f} GB/s)"
        )


if __name__ == "__main__":
    main()
