"""Who may train a run: checked and locked before training, so that none is trained in vain.

A lock is a hidden file among the runs, held by ``flock``: it ends with its process, however that
ends. On a network file system it holds as far as that locks files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from features.errors import RunError

RUN_BYTES = 1 << 24
"""What a run takes at most, with a large head of the paper: 3.5 million weights, predictions."""

_log = logging.getLogger(__name__)


def check_writable(runs: Path) -> None:
    """Make the folder of runs. Raises RunError unless a folder as large as a run can be written."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=runs, prefix=".") as folder:
            (Path(folder) / "tried").write_bytes(bytes(RUN_BYTES))
    except OSError as error:
        raise RunError(
            f"{runs}: cannot be written ({error.strerror}), so nothing was trained. Name another "
            "folder with --runs, or mend this one."
        ) from error


@contextmanager
def lock_free(runs: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Lock what no other process is at, until the block ends.

    Args:
        runs: Folder of runs.
        names: Of locks; what has one name is trained by one process at a time.

    Yields:
        The names that are locked now.
    """
    with ExitStack() as held:
        free = []
        for name in names:
            file = runs / f".{name}.lock"
            try:
                held.enter_context(FileLock(file, timeout=0))
            except Timeout:
                continue
            except OSError as error:
                _log.warning(
                    "%s: cannot be locked (%s), so two fits at once may train a run twice",
                    file,
                    error.strerror,
                )
            free.append(name)
        try:
            yield free
        finally:
            for name in free:  # while it is held: whoever waits makes a file of its own
                with suppress(OSError):
                    (runs / f".{name}.lock").unlink()
