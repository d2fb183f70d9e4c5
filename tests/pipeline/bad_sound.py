"""Workers of sound that clips of certain names end: what a crash of FFmpeg does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline import sound_worker
from pipeline.decode.sound import iter_sound


def main(descriptor: int) -> None:
    """As ``pipeline.sound_worker.main``."""
    sound_worker.iter_sound = _iter_sound
    sound_worker.main(descriptor)


def die_at_once(descriptor: int) -> None:
    """Not even one clip is begun."""
    os._exit(3)


def _iter_sound(clip: Any, notes: Any, **options: Any) -> Iterator[np.ndarray]:
    if clip.clip_id == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if clip.clip_id == "hang":
        time.sleep(600)
    yield from iter_sound(clip, notes, **options)
