"""The demo set's scenes: photographs that the scikit-image wheel ships, cropped, tinted and lit.

Only files inside the installed wheel are read, nothing is downloaded. docs/demo.md names the source
and licence of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.io import imread
from torch import Tensor
from torch.nn import functional as F

from features.errors import ConfigError

STUDIO = "studio"
"""The right part of the astronaut's own photograph: backdrop and model shuttle, without her."""

WALL = "wall"
"""No photograph: a plain wall that falls off from light to shade."""

ANYWHERE = "anywhere"
"""The mood of scenes that go with no class."""

SCENES: Mapping[str, tuple[str, ...]] = {
    "happy": ("coffee.png", "chelsea.png"),
    "sad": ("brick.png",),
    "angry": ("gravel.png", "horse.png"),
    "surprise": ("rocket.jpg", "hubble_deep_field.jpg"),
    "disgust": ("ihc.png", "retina.jpg"),
    "worried": ("coins.png", "text.png"),
    "anxious": ("microaneurysms.png", "camera.png"),
    "neutral": ("grass.png", STUDIO),
    ANYWHERE: (WALL,),
}
"""The photographs that go with each class; that they do is a convention of the demo set."""

_LIGHT: Mapping[str, tuple[float, float, float]] = {
    "happy": (1.15, 1.00, 0.70),
    "sad": (0.60, 0.82, 1.25),
    "angry": (1.00, 0.42, 0.36),
    "surprise": (1.25, 1.20, 1.35),
    "disgust": (0.80, 1.05, 0.45),
    "worried": (0.95, 0.80, 0.55),
    "anxious": (0.60, 0.95, 0.92),
    "neutral": (1.00, 1.00, 0.98),
    ANYWHERE: (0.90, 0.90, 0.90),
}
"""Red, green and blue gain of each class's light."""

_STUDIO_PX = (300, 0, 512, 250)
"""Left, top, right, bottom of the studio in astronaut.png."""

_SHORT_SIDE_PX = 360
"""Pictures are scaled to this before they are viewed, so that a view never skips pixels."""


@dataclass(frozen=True, kw_only=True)
class SceneView:
    """One camera's look at a scene, drifting slowly from the first frame to the last."""

    mood: str
    """Class whose scene this is, not always the clip's; or ``ANYWHERE``."""
    picture: str
    zoom: float
    """At least 1: the view's height is the largest that fits the picture, over this."""
    x: float
    """Where the view lies in the room that the picture leaves it, 0 (left) to 1 (right)."""
    y: float
    """The same from top to bottom."""
    drift: float
    """How far the view moves in x over the clip, in the same measure."""
    flipped: bool
    gain: float
    """Brightness of the light, about 1."""
    hue: tuple[float, float, float]
    """This clip's own gain of red, green and blue, about 1 each."""

    def __post_init__(self) -> None:
        if self.mood not in SCENES or self.picture not in SCENES[self.mood]:
            raise ValueError(f"{self.picture} is not a scene of {self.mood!r}")
        if self.zoom < 1:
            raise ValueError(f"zoom {self.zoom} would look past the picture's edge")


def read_picture(name: str) -> NDArray[np.float32]:
    """Read a picture of the installed scikit-image: [H, W, 3] RGB, 0..1.

    Raises:
        ConfigError: The installed scikit-image does not ship it.
    """
    path = files("skimage") / "data" / name
    if not path.is_file():
        raise ConfigError(
            f"scikit-image/data/{name}: not in the installed package, but the demo set is rendered "
            "from it. Install scikit-image 0.24 or newer from its wheel."
        )
    pixels = np.asarray(imread(str(path)))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3], dtype=np.float32) / np.float32(255)


@lru_cache(maxsize=2)
def read_scene(picture: str) -> Tensor:
    """Read a scene, its contrast stretched, its shorter side 360: [3, H, W] RGB, 0..1."""
    if picture == WALL:
        rows, columns = _SHORT_SIDE_PX, _SHORT_SIDE_PX * 4 // 3
        shade = torch.linspace(0.85, 0.35, columns) + torch.linspace(0.1, -0.1, rows)[:, None]
        return shade.expand(3, rows, columns)
    if picture == STUDIO:
        left, top, right, bottom = _STUDIO_PX
        pixels = read_picture("astronaut.png")[top:bottom, left:right]
    else:
        pixels = read_picture(picture)
    darkest, brightest = np.percentile(pixels, (1, 99)).astype(np.float32)
    pixels = np.clip((pixels - darkest) / (brightest - darkest), 0, 1)
    scene = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    factor = _SHORT_SIDE_PX / min(pixels.shape[:2])
    size = [round(side * factor) for side in pixels.shape[:2]]
    return F.interpolate(scene, size, mode="bilinear", antialias=True)[0]


def view_scene(scene: Tensor, view: SceneView, size_px: tuple[int, int], progress: float) -> Tensor:
    """What the camera sees of a scene.

    Args:
        scene: [3, H, W] from ``read_scene``.
        view: Where it looks.
        size_px: Width and height of the frame.
        progress: 0 at the clip's first frame, 1 at its last.

    Returns:
        [3, height, width] RGB, about 0..1.
    """
    width_px, height_px = size_px
    _, scene_h, scene_w = scene.shape
    scale = min(scene_w / width_px, scene_h / height_px) / view.zoom
    view_w, view_h = scale * width_px, scale * height_px
    left = (scene_w - view_w) * min(max(view.x + view.drift * (progress - 0.5), 0.0), 1.0)
    top = (scene_h - view_h) * view.y
    xs = (left + (torch.arange(width_px) + 0.5) * scale) / scene_w * 2 - 1
    ys = (top + (torch.arange(height_px) + 0.5) * scale) / scene_h * 2 - 1
    if view.flipped:
        xs = xs.flip(0)
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)[None]
    sampled = F.grid_sample(scene[None], grid, align_corners=False)[0]
    return sampled * light_of(view)[:, None, None]


def light_of(view: SceneView) -> Tensor:
    """The scene's light: [3] gain of red, green and blue."""
    return torch.tensor(_LIGHT[view.mood]) * torch.tensor(view.hue) * view.gain
