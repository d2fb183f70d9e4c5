"""Renders the demo set: ``demo_clips()`` as files of h264 and AAC, and the manifest of them.

What it is and what it can show: docs/demo.md. Nothing is downloaded; the pictures come with
scikit-image. The same versions of the libraries give the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from features.disk import partial_path, publish, write_atomically
from pipeline.demo.expressions import Expression
from pipeline.demo.faces import CANVAS_PX, FACE_CENTRE_PX, FaceRig
from pipeline.demo.plan import FRAME_RATE_HZ, Actor, DemoClip, demo_clips
from pipeline.demo.scenes import light_of, read_scene, view_scene
from pipeline.demo.voices import VOICE_RATE_HZ, hum

SOURCE = "demo (synthetic)"

_RENDERER_VERSION = 1
"""Goes up with any change to how a plan becomes pixels, so that older files are drawn again."""
_PHOTOGRAPH_ROWS = 240
"""Rows of the photograph that fill a frame's height at an actor's scale of 1."""
_LEVELS = 16
"""Steps between rest and an expression's height; a face is drawn once for each step it takes."""


def render_demo_set(folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Render every clip that is not there yet, one on each core, and write the manifest.

    A clip is there when its file is whole and says that it was drawn from this plan.

    Args:
        folder: Gets ``clips/<clip_id>.mp4`` and ``data_manifest.csv``; made where it is missing.
        progress: Called with clips done and clips in all, after each clip.

    Returns:
        Path of the manifest.

    Raises:
        ConfigError: The installed scikit-image lacks a picture.
        OSError: The folder cannot be written.
    """
    clips = demo_clips()
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the threads below are enough
    pool = ThreadPoolExecutor(n_threads)
    try:
        rendered = pool.map(partial(_render, folder / "clips", FaceRig()), clips)
        for n_done, _ in enumerate(rendered, start=1):
            if progress is not None:
                progress(n_done, len(clips))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)
    manifest = folder / "data_manifest.csv"
    write_atomically(manifest, manifest_csv(clips))
    return manifest


def manifest_csv(clips: Iterable[DemoClip], *, clip_folder: str = "clips") -> str:
    """The manifest of some clips that lie in ``clip_folder`` beside or below it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip_id", "path", "label", "split", "source"])
    for clip in clips:
        path = f"{clip_folder}/{clip.clip_id}.mp4"
        writer.writerow([clip.clip_id, path, clip.label, clip.split, SOURCE])
    return text.getvalue()


def render_clip(clip: DemoClip, rig: FaceRig) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a clip: ``n_frames`` of [H, W, 3] RGB."""
    scene = read_scene(clip.scene.picture)
    light = light_of(clip.scene)
    faces: dict[tuple[int, int, float], Tensor] = {}
    background = view_scene(scene, clip.scene, clip.size_px, 0.0)
    for index in range(clip.n_frames):
        # In a still stretch time stands; afterwards it goes on from where it stood.
        first, last = clip.still
        moment = index if index <= first else max(first, index - (last - first))
        if clip.scene.drift:
            progress = moment / (clip.n_frames - 1)
            background = view_scene(scene, clip.scene, clip.size_px, progress)
        frame = background
        for number, actor in enumerate(clip.actors):
            level, lids = _pose(actor, moment / FRAME_RATE_HZ)
            key = (number, level, lids)
            if key not in faces:
                expression = actor.expression * (level / _LEVELS) + Expression(closed_lids=lids)
                faces[key] = _light_face(rig.draw(expression), actor, light)
            frame = _place(frame, faces[key], actor, moment / FRAME_RATE_HZ)
        pixels: NDArray[np.uint8] = (
            (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        )
        yield pixels


def render_sound(clip: DemoClip) -> NDArray[np.float32]:
    """The sound of a clip, as long as its frames: [N] at 16 kHz; empty where it has none."""
    if clip.sound is None:
        return np.zeros(0, dtype=np.float32)
    return hum(
        clip.sound.voice,
        onset_s=clip.sound.onset_s,
        duration_s=clip.n_frames / FRAME_RATE_HZ,
        room=clip.sound.room,
        seed=clip.sound.seed,
    )


def _render(folder: Path, rig: FaceRig, clip: DemoClip) -> None:
    """Write a clip's file unless it is there, whole."""
    path = folder / f"{clip.clip_id}.mp4"
    if not _is_rendered(path, clip):
        unfinished = partial_path(path)
        _write_clip(unfinished, clip, render_clip(clip, rig))
        publish(unfinished, path)


def _pose(actor: Actor, time_s: float) -> tuple[int, float]:
    """How far the expression has come, 0..``_LEVELS``, and how far a blink closes the lids."""
    t = min(max((time_s - actor.onset_s) / actor.rise_s, 0.0), 1.0)
    level = round(_LEVELS * (0.06 + 0.94 * t * t * (3 - 2 * t)))
    away = round(abs(time_s - actor.blink_s) * FRAME_RATE_HZ)
    return level, {0: 1.0, 1: 0.9, 2: 0.4}.get(away, 0.0)


def _place(frame: Tensor, face: Tensor, actor: Actor, time_s: float) -> Tensor:
    """Lay a cut-out (4, rows, columns) from ``_light_face`` over a frame (3, H, W)."""
    height, width = frame.shape[1:]
    swing = 2 * math.pi * time_s / actor.sway_s
    centre_x = actor.x * width + actor.sway * height * math.sin(swing)
    centre_y = actor.y * height + 0.5 * actor.sway * height * math.sin(2 * swing)
    tilt = math.radians(actor.tilt_deg + 120 * actor.sway * math.sin(swing + 1))
    rows_per_px = _PHOTOGRAPH_ROWS / (actor.scale * height)
    columns_per_px = rows_per_px / actor.width * (-1 if actor.flipped else 1)
    left, top, right, bottom = CANVAS_PX
    x_unit, y_unit = 2 / (right - left), 2 / (bottom - top)

    # From the frame to the photograph, both running from -1 to 1 as grid_sample has them.
    cos, sin = math.cos(tilt), math.sin(tilt)
    away_x, away_y = width / 2 - centre_x, height / 2 - centre_y
    x_row = [cos * width / 2, sin * height / 2, cos * away_x + sin * away_y]
    y_row = [-sin * width / 2, cos * height / 2, cos * away_y - sin * away_x]
    x_row = [value * columns_per_px * x_unit for value in x_row]
    y_row = [value * rows_per_px * y_unit for value in y_row]
    x_row[2] += (FACE_CENTRE_PX[0] - left) * x_unit - 1
    y_row[2] += (FACE_CENTRE_PX[1] - top) * y_unit - 1
    grid = F.affine_grid(torch.tensor([[x_row, y_row]]), [1, 1, height, width], align_corners=False)
    sampled = F.grid_sample(face[None], grid, align_corners=False)[0]
    return torch.addcmul(sampled[:3], frame, 1 - sampled[3:])


def _light_face(face: Tensor, actor: Actor, light: Tensor) -> Tensor:
    """A drawn face in its own tone and a share of the scene's light, premultiplied by its alpha."""
    gain = torch.tensor(actor.tone) * (0.75 + 0.25 * light)
    return torch.cat([face[:3] * gain[:, None, None] * face[3:], face[3:]])


def _write_clip(path: Path, clip: DemoClip, frames: Iterable[NDArray[np.uint8]]) -> None:
    options = {"fflags": "+bitexact"}
    # "file:", else a colon in the name of a folder makes FFmpeg look for a protocol.
    with av.open(f"file:{path}", "w", format="mp4", options=options) as container:
        container.metadata["comment"] = _digest(clip)
        # One thread and a fixed rate of key frames: x264 then gives the same bytes each time.
        settings = {"crf": "22", "preset": "superfast", "g": str(FRAME_RATE_HZ), "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAME_RATE_HZ, options=settings)
        if not isinstance(stream, VideoStream):
            raise ValueError("libx264 gave a stream that is not video")
        stream.width, stream.height = clip.size_px
        stream.pix_fmt = "yuv420p"
        voice = None
        if clip.sound is not None:
            voice = container.add_stream("aac", rate=VOICE_RATE_HZ, layout="mono", bit_rate=32_000)
            if not isinstance(voice, AudioStream):
                raise ValueError("aac gave a stream that is not sound")
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if voice is not None:
            for heard in _cut_sound(render_sound(clip), voice.frame_size):
                container.mux(voice.encode(heard))
            container.mux(voice.encode())


def _cut_sound(sound: NDArray[np.float32], n_samples: int) -> Iterator[av.AudioFrame]:
    for first in range(0, len(sound), n_samples):
        piece = sound[None, first : first + n_samples]
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = VOICE_RATE_HZ, first
        frame.time_base = Fraction(1, VOICE_RATE_HZ)
        yield frame


def _is_rendered(path: Path, clip: DemoClip) -> bool:
    """Whether a whole file of this very plan is there; an mp4 cut short does not open."""
    if not path.is_file():
        return False
    try:
        with av.open(f"file:{path}") as container:
            return container.metadata.get("comment") == _digest(clip)
    except av.FFmpegError:
        return False


def _digest(clip: DemoClip) -> str:
    """Which plan a file was drawn from, and by which renderer."""
    return hashlib.sha256(f"{_RENDERER_VERSION} {clip!r}".encode()).hexdigest()[:16]
