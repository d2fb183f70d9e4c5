"""Who decodes, for the fingerprint. Loads no torch: a finished store is told by it in no time."""

from __future__ import annotations

import av


def decoder_version() -> str:
    """Name and version of the decoder.

    The same wherever a clip is decoded: a GPU decodes only codecs whose standards say every bit of
    a frame (``pipeline.decode.nvdec``), and ``pipeline.decode.yuv`` makes of it the RGB that
    software does.
    """
    libavcodec = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return f"PyAV {av.__version__}, libavcodec {libavcodec}"
