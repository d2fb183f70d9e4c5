"""Decodes on a GPU (NVDEC), and leaves the frames there: planes go to torch without a copy.

The decoder shares torch's CUDA context. It works on the default stream of the GPU, and so does the
conversion to RGB, which is over before a frame goes back to the decoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import FileIO

import torch
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.decode.opening import open_container
from pipeline.decode.yuv import ColourTags, convert_to_rgb

_EXACT_CODECS = frozenset({"h264", "hevc", "vp8", "vp9"})
"""Their standards say every bit of a decoded frame; others' leave room for rounding, so that a
GPU's frames would not be those of software."""

_PLANE_FORMATS = ("nv12", "p010le", "p016le")

_SITED_LEFT = ("h264", "hevc")
"""Codecs whose chroma lies where ``pipeline.decode.yuv`` takes it in more than 8 bits."""

_CONTEXT_OPTIONS: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
"""FFmpeg takes the context that is current in the calling thread. It could retain the GPU's
primary one by itself, but refuses where torch has set that up with other flags, as it does."""


class NoHardwareError(Exception):
    """The GPU cannot decode this; software may."""


class Nvdec:
    """The decoder of one GPU. Several threads may use it at once, each for a clip of its own."""

    name = "nvdec"

    def __init__(self, device: torch.device) -> None:
        """device: A CUDA device; without a number it is the current one."""
        self._device = device

    def open(self, file: FileIO) -> InputContainer:
        """Open a file so that its video is decoded on the GPU.

        Raises:
            NoHardwareError: there is no such GPU, or no decoder on it.
            FFmpegError: as ``open_container``; also where the GPU refuses.
        """
        try:
            with self._current_context():
                index = torch.cuda.current_device()
                hwaccel = HWAccel(
                    "cuda",
                    device=str(index),
                    allow_software_fallback=False,
                    options=_CONTEXT_OPTIONS,
                    is_hw_owned=True,
                )
                return open_container(file, hwaccel)
        except (NotImplementedError, RuntimeError) as error:
            raise NoHardwareError(f"no decoder on {self._device}: {error}") from error

    def check_codec(self, codec: str) -> None:
        """Raise NoHardwareError where frames may differ from those of software.

        codec: FFmpeg's name of it.
        """
        if codec not in _EXACT_CODECS:
            raise NoHardwareError(f"a GPU's {codec} frames may differ from those of software")

    def read_rgb(self, frame: VideoFrame, stream: VideoStream) -> Tensor:
        """The RGB of a frame, [H, W, 3] uint8 on the GPU, as stored; done when it returns.

        Raises:
            NoHardwareError: the frame is not on the GPU, or of a layout that is not read there.
        """
        if frame.format.name != "cuda":
            raise NoHardwareError(f"the decoder gave {frame.format.name} frames, not of the GPU")
        check_frame(frame, stream)
        try:
            with self._current_context():
                rgb = convert_planes(frame)
                torch.cuda.current_stream().synchronize()
        except RuntimeError as error:
            raise NoHardwareError(f"no RGB on {self._device}: {error}") from error
        return rgb

    @contextlib.contextmanager
    def _current_context(self) -> Iterator[None]:
        """Within it torch's context of the GPU is current in this thread, on the default stream.

        Raises NoHardwareError or RuntimeError where there is no such GPU, or it cannot be used.
        """
        if not torch.cuda.is_available():
            raise NoHardwareError("torch sees no CUDA device")
        stream = torch.cuda.default_stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            torch.zeros(1, device="cuda")  # the context is made by the first work, not before
            yield


def check_frame(frame: VideoFrame, stream: VideoStream) -> None:
    """Raise NoHardwareError where the picture to be shown is not read from a frame on the GPU.

    FFmpeg cuts such frames at the right and the bottom, where most streams pad their pictures; one
    that is to be cut at the left or the top stays larger than its stream says.
    """
    context = stream.codec_context
    layout = (frame.sw_format or frame.format).name
    if layout not in _PLANE_FORMATS or (layout != "nv12" and context.name not in _SITED_LEFT):
        raise NoHardwareError(f"{context.name} frames of {layout} are not read from the GPU")
    if frame.width % 2 or frame.height % 2:
        raise NoHardwareError("frames with an odd side are not read from the GPU")
    if (frame.width, frame.height) != (context.width, context.height):
        raise NoHardwareError(
            f"frames of {frame.width}x{frame.height} in a stream of {context.width}x"
            f"{context.height} are not read from the GPU"
        )


def convert_planes(frame: VideoFrame) -> Tensor:
    """The RGB of a frame of two planes, [H, W, 3] uint8, on the device of its planes."""
    # The capsule, not the plane: PyAV refuses the stream that torch would name.
    luma, chroma = (from_dlpack(plane.__dlpack__()) for plane in frame.planes)
    tags = ColourTags(matrix=frame.colorspace, color_range=frame.color_range)
    return convert_to_rgb(luma, chroma, tags)
