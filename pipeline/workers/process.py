"""A worker, seen from its parent: its process, what it is at, when it takes too much."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.contracts import Clip
from features.disk import ENDING
from features.store.index import WORKER_STEP, Failure
from pipeline.workers.channel import Channel
from pipeline.workers.messages import Death, Start
from pipeline.workers.resources import ClipLimits

_PACKAGES = ("features", "pipeline")
"""Whose log comes here."""
TIME = "time"
"""The kind of death of a worker that took too long."""
_STOP_LIMITS = ClipLimits(still_s=10.0, total_s=math.inf)
"""Until a worker that is to stop says that it writes its last shard."""
_END_S = 5.0
"""Until a process that was killed is gone; one that waits for a dead disk may stay for ever."""
_CODE = """
import ctypes, os, sys
descriptor, parent, *sys.path = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: from now on it ends with its parent
if os.getppid() != int(parent):  # which ended before
    os._exit(1)
from pipeline.workers.worker import main
main(int(descriptor))
"""
_OWN_MEMORY = ("RssAnon:", "RssShmem:", "VmSwap:")


class WorkerProcess:
    """One process and the channel to it. It needs no main guard in the script that starts it."""

    def __init__(self, device: str, extractor: str) -> None:
        """Starts it.

        Args:
            device: See ``Start``.
            extractor: See ``Start``.

        Raises:
            OSError: no process can be started.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", _CODE, str(theirs.fileno()), str(os.getpid())]
        command += [path or str(Path.cwd()) for path in sys.path]
        # What asks all to end never reaches a process that is started so: its parent ends it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # a library that prints must not spoil the parent's output
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.channel = Channel(ours)
        levels = {name: logging.getLogger(name).getEffectiveLevel() for name in _PACKAGES}
        self.send(Start(device=device, log_levels=levels, extractor=extractor))

    def send(self, message: object) -> None:
        """To one that has died nothing is sent; its channel tells."""
        with contextlib.suppress(OSError):
            self.channel.send(message)

    def read_used_bytes(self) -> int:
        """Memory that it holds for itself, swapped out or not; 0 where the system does not tell."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text("ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_OWN_MEMORY))

    def kill(self) -> None:
        """End it, in whatever state it is; only its shard at hand is lost."""
        self._process.kill()

    def wait(self) -> None:
        """Wait until it is gone, some seconds at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def ended_well(self) -> bool:
        """Whether it ended as it was asked to; its channel is at its end."""
        self.wait()
        return self._process.returncode == 0

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


@dataclass(kw_only=True)
class Worker:
    """A worker at work. All times are those of the pool's clock."""

    number: int
    process: WorkerProcess
    inbox: deque[Any] = field(default_factory=deque)
    """What it said and nobody has looked at yet."""
    is_idle: bool = False
    """It has asked for a clip and got no answer yet."""
    is_stopping: bool = False
    """It was told to."""
    shard_name: str | None = None
    """Of the shard that it has at hand."""
    n_frames: int = 0
    """Of the clips in it."""
    writes_since_s: float | None = None
    """When it began to wait for the disk; None: it does not."""
    read_id: str | None = None
    """The clip that it reads; None where it holds none."""
    reads: Clip | None = None
    """The same, or in a second pass, where that is a shard, the clip of it."""
    limits: ClipLimits | None = None
    """Of that clip; None: those of a worker that holds none."""
    began_s: float
    """When it began to read it; later by the time in which it wrote."""
    progressed_s: float
    """When it last made progress."""

    def note_progress(self, now_s: float) -> None:
        """It waits no more for the disk, if it did; how long that took counts against no clip."""
        if self.writes_since_s is not None:
            self.began_s += now_s - self.writes_since_s
            self.writes_since_s = None
        self.progressed_s = now_s

    def describe_death(self, clip: Clip, death: Death) -> Failure:
        """The failure of a clip that it held when it died, or of the clip of a shard."""
        at = self.reads if self.reads and clip.clip_id == self.read_id else clip
        reason = f"its worker {death.reason}".replace(str(at.path), at.path.name)
        return Failure(clip_id=at.clip_id, path=str(at.path), step=WORKER_STEP, reason=reason)

    def find_excess(self, now_s: float, idle: ClipLimits, n_bytes: int | None) -> Death | None:
        """Whether it takes more time or memory (n_bytes, None: any) than it may.

        idle: Limits where it reads no clip, or writes.
        """
        if n_bytes is not None and self.process.read_used_bytes() > n_bytes:
            gigabytes = f"{n_bytes / 1e9:.2g} GB"
            return Death(
                kind="memory", reason=f"took more memory than {gigabytes} (--worker-memory)"
            )
        if self.is_idle:
            return None
        limits = self.limits or idle
        if self.writes_since_s is not None:
            limits = idle
        elif self.is_stopping:
            limits = _STOP_LIMITS
        if now_s - self.progressed_s > limits.still_s:
            reason = f"made no progress for {limits.still_s:.0f} s (--clip-timeout)"
            if self.writes_since_s is not None:
                reason = f"waited for the disk for {limits.still_s:.0f} s"
        elif now_s - self.began_s > limits.total_s:
            reason = f"was not done with it after {limits.total_s:.0f} s (--clip-timeout)"
        else:
            return None
        return Death(kind=TIME, reason=reason)
