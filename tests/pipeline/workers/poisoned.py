"""The true extractor with a decoder that some clips upset."""

from __future__ import annotations

from features.contracts import Clip
from pipeline.decode.sampling import Frames
from pipeline.workers.extractor import Extractor
from pipeline.workers.stream_extractor import StreamExtractor
from tests.pipeline.workers.poison import poison


class Poisoned(Extractor):
    def iter_frames(self, clip: Clip) -> Frames:
        poison(clip)
        if clip.clip_id == "odd":
            raise ValueError("odd")
        yield from super().iter_frames(clip)
        return {"clock_restarts": 2} if clip.clip_id == "joined" else {}


class PoisonedStreams(StreamExtractor):
    """The same in a second pass."""

    def iter_frames(self, clip: Clip) -> Frames:
        poison(clip)
        yield from super().iter_frames(clip)
        return {}
