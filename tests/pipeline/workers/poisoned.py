"""The true extractor with a decoder that some clips upset."""

from __future__ import annotations

from features.contracts import Clip
from pipeline.decode.sampling import Frames
from pipeline.workers.extractor import Extractor
from tests.pipeline.workers.poison import poison


class Poisoned(Extractor):
    def iter_frames(self, clip: Clip) -> Frames:
        poison(clip)
        if clip.clip_id == "odd":
            raise ValueError("odd")
        yield from super().iter_frames(clip)
        return {"clock_restarts": 2} if clip.clip_id == "joined" else {}
