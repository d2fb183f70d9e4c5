"""Makes the videos that scaling is measured with: a picture with faces that drift, or a loop."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import skimage.data
from numpy.typing import NDArray
from skimage.transform import resize

RATE_HZ = 25
_FACE = (slice(20, 200), slice(130, 310))
"""Rows and columns of the astronaut's head; her face fills about half of it."""


def write_faces_video(
    path: Path, *, size: tuple[int, int], n_faces: int, n_frames: int, head: float = 0.4
) -> Path:
    """25 frames a second of a still life with the astronaut's head ``n_faces`` times, drifting.

    size: height and width. head: side of a head as a share of the height; smaller where
    ``n_faces`` would not fit. H.264, a key frame a second.
    """
    height, width = size
    background = _scaled(skimage.data.coffee(), size)
    columns = max(1, int(np.ceil(np.sqrt(n_faces * width / height))))
    rows = max(1, -(-n_faces // columns))
    side = int(min(head * height, 0.8 * height / rows, 0.8 * width / columns))
    face = _scaled(skimage.data.astronaut()[_FACE], (side, side))
    with av.open(str(path), "w") as container:
        options = {"crf": "22", "preset": "superfast", "g": str(RATE_HZ)}
        stream = container.add_stream("libx264", rate=RATE_HZ, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(n_frames):
            picture = background.copy()
            drift = 0.5 + 0.5 * np.sin(number / RATE_HZ)
            for k in range(n_faces):
                top = int(height / rows * (k // columns) + drift * (height / rows - side))
                left = int(width / columns * (k % columns) + drift * (width / columns - side))
                picture[top : top + side, left : left + side] = face
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def loop_video(source: Path, path: Path, duration_s: float) -> Path:
    """The video of a file again and again until it lasts ``duration_s``; nothing is re-encoded."""
    with av.open(str(source)) as first:
        template = first.streams.video[0]
        packets = [p for p in first.demux(template) if p.size]
        assert template.time_base is not None
        ends = [(p.pts or 0) + (p.duration or 0) for p in packets]
        span = max(ends) - min(p.pts or 0 for p in packets)
        n_loops = int(np.ceil(Fraction(duration_s) / (span * template.time_base)))
    with av.open(str(path), "w") as container:
        for loop in range(n_loops):
            with av.open(str(source)) as again:
                template = again.streams.video[0]
                if loop == 0:
                    stream = container.add_stream_from_template(template)
                for packet in again.demux(template):
                    if not packet.size:
                        continue
                    packet.pts += loop * span
                    packet.dts += loop * span
                    packet.stream = stream
                    container.mux(packet)
    return path


def _scaled(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    scaled = resize(picture, size, anti_aliasing=True, preserve_range=True)
    return np.ascontiguousarray(scaled.round().astype(np.uint8))
