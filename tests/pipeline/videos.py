"""Writes small videos for tests; the grey of a frame tells its number through a lossy codec."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from numpy.typing import NDArray

GREY_STEP = 5
"""Grey levels from one frame to the next, so that a level off by one is still the right frame."""
ONE_THREAD = "log-level=none:pools=none:frame-threads=1:wpp=0"
"""For x265, whose thread pools do not always survive many short encodings in one process."""
_CLOCK_HZ = 1000
_FINE = {
    "libx264": {"preset": "ultrafast", "qp": "0"},
    "libx265": {
        "preset": "ultrafast",
        "x265-params": f"{ONE_THREAD}:qp=4",
    },
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "0"},
    "mpeg4": {"qmin": "1", "qmax": "2"},
}
"""Encoder settings under which grey levels stay what they are."""


def grey_frames(n_frames: int, width: int = 64, height: int = 48) -> list[NDArray[np.uint8]]:
    """Frame i is all grey, level i * GREY_STEP."""
    return [np.full((height, width, 3), i * GREY_STEP, dtype=np.uint8) for i in range(n_frames)]


def frame_number(rgb: NDArray[np.uint8]) -> int:
    """The number that ``grey_frames`` painted into a decoded frame."""
    return round(float(rgb.mean()) / GREY_STEP)


def write_video(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    fps: float = 25,
    times_s: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    audio_s: float = 0,
    pixel_ratio: Fraction = Fraction(0),
) -> Path:
    """Encode RGB frames; ``times_s`` stamps them freely, ``audio_s`` adds a quiet sound track.

    pixel_ratio: Width of a pixel by its height; 0: not said.
    """
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.options = _FINE.get(codec, {}) if options is None else options
        stream.codec_context.thread_count = 1
        stream.codec_context.sample_aspect_ratio = pixel_ratio
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio_s else None
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, _CLOCK_HZ)
        for i, rgb in enumerate(frames):
            frame = VideoFrame.from_ndarray(rgb, format="rgb24")
            if times_s is not None:
                frame.pts = round(times_s[i] * _CLOCK_HZ)
                frame.time_base = Fraction(1, _CLOCK_HZ)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for i in range(int(audio_s * 16000 / 1024)):
            container.mux(sound.encode(_silence(i * 1024)))
        if sound is not None:
            container.mux(sound.encode())
    return path


def write_colours(
    path: Path, colours: Sequence[tuple[int, int, int]], *, colorspace: int, color_range: int
) -> Path:
    """A frame of one colour each, given as Y, Cb, Cr; the two tags as ITU-T H.273 numbers them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options=_FINE["libx264"])
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = colorspace
        stream.codec_context.color_range = color_range
        for colour in colours:
            frame = VideoFrame(64, 48, "yuv420p")
            frame.colorspace, frame.color_range = colorspace, color_range
            for plane, level in zip(frame.planes, colour, strict=True):
                plane.update(bytes([level]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path, *, codec: str = "aac", cover: bool = False) -> Path:
    """A second of sound, with a cover picture if asked for."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg")
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(VideoFrame.from_ndarray(grey_frames(1)[0])))
            container.mux(picture.encode())
        for i in range(16):
            container.mux(stream.encode(_silence(i * 1024)))
        container.mux(stream.encode())
    return path


def turn_display(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (a, b, c, d) into the video track header of an mp4.

    (0, 1, -1, 0) means: turn clockwise by 90 degrees for display (ISO 14496-12, tkhd).
    """
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version and flags, times, ids, volume: 40 bytes
    a, b, c, d = (value << 16 for value in matrix)
    for i, value in enumerate((a, b, 0, c, d, 0)):
        content[at + 4 * i : at + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(content)


def keep_first(path: Path, share: float) -> Path:
    """Cut the file off after a share of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def _silence(pts: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(
        np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate, frame.pts, frame.time_base = 16000, pts, Fraction(1, 16000)
    return frame


def remux(
    source: Path,
    target: Path,
    edit: Callable[[list[Packet[Any]]], Iterable[Packet[Any]]],
    **options: str,
) -> Path:
    """Copy a video's packets, as stored and without decoding, as ``edit`` gives them back.

    options: Of the muxer.
    """
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in edit([packet for packet in read.demux(video=0) if packet.size]):
            packet.stream = stream
            write.mux(packet)
    return target


def spoil(packet: Packet[Any]) -> Packet[Any]:
    """The same packet with bytes that no decoder takes for a picture."""
    spoilt = Packet(b"\xff" * packet.size)
    spoilt.pts, spoilt.dts, spoilt.duration = packet.pts, packet.dts, packet.duration
    spoilt.time_base, spoilt.is_keyframe = packet.time_base, packet.is_keyframe
    return spoilt


def write_ogm(path: Path, packets: Sequence[bytes], fps: int = 25) -> Path:
    """Motion JPEG packets of 64x48 in Ogg (OGM), where packets may be empty; one a page."""
    header = b"\1video\0\0\0MJPG" + struct.pack("<IqqIIHH", 56, 10**7 // fps, 1, 1, 0, 24, 0)
    pages = [header + struct.pack("<II", 64, 48), *(b"\x08" + packet for packet in packets)]
    content = b""
    for number, packet in enumerate(pages):
        laces = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        flags = 2 * (number == 0) + 4 * (number == len(packets))
        place = max(0, number - 1)
        page = struct.pack("<4sBBQIII", b"OggS", 0, flags, place, 1, number, 0)
        page += bytes([len(laces)]) + laces + packet
        content += page[:22] + struct.pack("<I", _ogg_checksum(page)) + page[26:]
    path.write_bytes(content)
    return path


def _ogg_checksum(page: bytes) -> int:
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum & 1 << 31 else 0)) & 0xFFFFFFFF
    return checksum
