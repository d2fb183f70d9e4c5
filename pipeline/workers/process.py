"""A worker, seen from its parent: starts it, watches its memory, ends it, tells how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from features.disk import ENDING
from pipeline.workers.channel import Channel
from pipeline.workers.messages import Death, Start

_PACKAGES = ("features", "pipeline")
"""Whose log comes here."""
_END_S = 5.0
"""Until a process that was killed is gone; one that waits for a dead disk may stay for ever."""
_CODE = """
import sys
descriptor, parent, *sys.path = sys.argv[1:]
from pipeline.workers.parent import end_with_parent
end_with_parent(int(parent))
from pipeline.workers.worker import main
main(int(descriptor))
"""
_OWN_MEMORY = ("RssAnon:", "RssShmem:", "VmSwap:")


class WorkerProcess:
    """One process and the channel to it. It needs no main guard in the script that starts it."""

    def __init__(self, device: str, extractor: str) -> None:
        """Raises OSError where no process can be started. Arguments: see ``Start``."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", _CODE, str(theirs.fileno()), str(os.getpid())]
        command += [path or str(Path.cwd()) for path in sys.path]
        with theirs, _block_signals():
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # a library that prints must not spoil the parent's output
            )
        self.channel = Channel(ours)
        levels = {name: logging.getLogger(name).getEffectiveLevel() for name in _PACKAGES}
        with contextlib.suppress(OSError):  # it died: the channel tells
            self.channel.send(Start(device=device, log_levels=levels, extractor=extractor))

    def read_used_bytes(self) -> int:
        """Memory that it holds for itself, swapped out or not; 0 where the system does not tell."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text("ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_OWN_MEMORY))

    def kill(self) -> None:
        """End it, in whatever state it is; it has nothing to lose."""
        self._process.kill()
        self.channel.close()

    def wait(self) -> None:
        """Wait until it is gone, some seconds at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def describe_end(self) -> Death:
        """How it ended by itself; its channel is at its end."""
        self.wait()
        status = self._process.returncode
        if status is None:
            return Death(kind="silence", reason="closed its channel")
        if status >= 0:
            return Death(kind=f"status {status}", reason=f"ended with exit status {status}")
        name = signal.strsignal(-status) or "unknown"
        if -status == signal.SIGKILL:
            reason = f"was killed (signal 9, {name}), as the system does where memory is short"
        else:
            reason = f"crashed (signal {-status}, {name})"
        return Death(kind=name, reason=reason)


@contextlib.contextmanager
def _block_signals() -> Iterator[None]:
    """Processes started within never see what asks all to end: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
