"""An extractor of sound that clips of certain names end: what a crash of FFmpeg does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from features.contracts import Clip
from pipeline.decode.notes import Notes
from pipeline.sound.extractor import SoundExtractor
from pipeline.stored_clip import StoredClip
from pipeline.workers.messages import Work


class BadSound(SoundExtractor):
    def _iter_rows(
        self, clip: Clip, stored: StoredClip, notes: Notes
    ) -> Iterator[NDArray[np.float16]]:
        if clip.clip_id.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if clip.clip_id.startswith("hang"):
            time.sleep(600)
        yield from super()._iter_rows(clip, stored, notes)


class NeverBegins(SoundExtractor):
    """Not even one clip is begun."""

    def __init__(self, work: Work) -> None:
        os._exit(3)
