"""Finds faces: the MTCNN cascade, batched over the frames of a chunk.

The ``mtcnn`` package's own engine is the reference: patches by plain bilinear sampling, and its
suppression, in which a box falls to any better box that overlaps it, even to one that has itself
fallen. Only the pyramid is made in another way (``pipeline.detect.pyramid``), and on a CPU what
shows no contrast is left out (``pipeline.detect.packing``).

Which boxes there are is decided in float32: of windows that nearly overlap the best one wins, so
that a rounding of scores moves boxes by pixels. In bfloat16 P-Net only tells a CPU that
multiplies it natively which windows may be faces (``benchmarks/screen.py`` measures the gain).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.contracts import Faces
from features.networks.runtime import Network, choose_precision, compile_network, run_padded
from pipeline.detect.boxes import Boxes, iou, overlap_over_smaller, suppress
from pipeline.detect.networks import ONet, PNet, RNet, sample_patches
from pipeline.detect.packing import STRIDE_PX, Windows, cut_windows, find_windows, pack_pyramids
from pipeline.detect.pyramid import WINDOW_PX, make_pyramid, pyramid_scales

_SCREEN_SLACK = 0.5
"""How far P-Net's margin in bfloat16 is trusted; measured, the two differ by at most 0.31."""
_WINDOW_BATCH = 256
_MOST_GATHERED = 16 * _WINDOW_BATCH
"""Windows that wait for P-Net in float32."""
_PATCH_BATCH = 64
"""Patches that are sampled and judged together: what bounds the memory of a busy picture."""


class FaceDetector:
    """Holds the three networks on one device; several threads may use it at once."""

    def __init__(
        self,
        *,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8),
        device: torch.device | str = "cpu",
        precision: str = "float32",
        n_threads: int = 1,
    ) -> None:
        """thresholds: least score after each network; for the others see ``compile_network``."""
        self.thresholds = thresholds
        self._least_margin = torch.tensor(thresholds[0], dtype=torch.float64).logit().item()
        self.device = torch.device(device)
        pyramid = torch.zeros((1, 64, 96, 3), dtype=torch.uint8)

        compile_for = partial(compile_network, device=self.device, n_threads=n_threads)
        # Where a CPU does not multiply bfloat16 itself, it would be another pass in float32.
        is_native = choose_precision("auto", self.device) == "bfloat16"
        screens = self.device.type == "cpu" and precision == "bfloat16" and is_native
        self.screen = compile_for(PNet(), pyramid, precision=precision) if screens else None
        self.pnet = compile_for(PNet(), pyramid)
        self.rnet = compile_for(RNet(), torch.zeros((2, 3, 24, 24)))
        self.onet = compile_for(ONet(), torch.zeros((2, 3, 48, 48)))

    def find_faces(self, rgb: Tensor, min_face_px: int = 20) -> Faces:
        """Find the faces of some frames of one size.

        Args:
            rgb: [F, H, W, 3] uint8 on the detector's device.
            min_face_px: Smallest face side sought, at least 12.

        Returns:
            The faces, ordered by frame, then area, largest first.
        """
        return self.refine(rgb, self._run_pnet(rgb, min_face_px))

    @torch.inference_mode()
    def refine(self, rgb: Tensor, boxes: Boxes) -> Faces:
        """The faces among some proposed boxes, as R-Net and O-Net decide.

        Args:
            rgb: [F, H, W, 3] uint8 on the detector's device.
            boxes: A table of square boxes; their scores do not matter.
        """
        boxes, landmarks_px = self._run_onet(rgb, self._run_rnet(rgb, boxes))
        area = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
        order = np.lexsort((-area, boxes[:, 0]))
        return Faces(
            frame=boxes[order, 0].astype(np.int32),
            box_px=boxes[order, 1:5],
            score=boxes[order, 5],
            landmarks_px=landmarks_px[order],
        )

    @torch.inference_mode()
    def _run_pnet(self, rgb: Tensor, min_face_px: int) -> Boxes:
        """P-Net over the pyramid. Returns a table of square boxes."""
        height, width = rgb.shape[1:3]
        scales = pyramid_scales(height, width, min_face_px)
        levels = make_pyramid(rgb, scales) if len(rgb) else []
        if rgb.is_cuda:
            scan = self._scan_levels
        else:
            scan = self._scan_canvases if self.screen is None else self._screen_canvases
        windows = np.concatenate([np.zeros((0, 7), dtype=np.float32), *scan(levels)])
        level = windows[:, 6].astype(np.intp)
        windows[:, 1:5] /= np.array(scales, dtype=np.float32)[level, None]
        frame_and_level = windows[:, 0] * len(scales) + windows[:, 6]
        boxes = suppress(windows[:, :6], 0.5, iou, group=frame_and_level)
        return _make_square(suppress(boxes, 0.7, iou))

    def _scan_levels(self, levels: Sequence[Tensor]) -> Iterator[Boxes]:
        """Tables of a row's level, after all else, whose boxes are in pixels of that level."""
        for number, level in enumerate(levels):
            output = self.pnet(level)[0]  # (F, 5, h, w)
            place = torch.nonzero(output[:, 4] > self._least_margin)  # (N, 3)
            values = output[place[:, 0], :, place[:, 1], place[:, 2]].cpu().numpy()  # (N, 5)
            frame, row, column = place.cpu().numpy().T
            yield _read_windows(Windows(frame, np.full_like(row, number), row, column), values)

    def _scan_canvases(self, levels: Sequence[Tensor]) -> Iterator[Boxes]:
        """The same, of what shows any contrast."""
        for found in _search_canvases(self.pnet, levels, self._least_margin):
            yield _read_windows(found.at, found.values)

    def _screen_canvases(self, levels: Sequence[Tensor]) -> Iterator[Boxes]:
        """The same, of what the screen lets through."""
        assert self.screen is not None
        least = self._least_margin - _SCREEN_SLACK
        for found in _gather(_search_canvases(self.screen, levels, least)):
            pixels = torch.from_numpy(found.pixels)
            (output,) = run_padded(self.pnet, pixels, batch=_WINDOW_BATCH, multiple=64)
            values = output.flatten(1).numpy()  # (N, 5)
            sure = values[:, 4] > self._least_margin
            yield _read_windows(Windows(*(axis[sure] for axis in found.at)), values[sure])

    def _run_rnet(self, rgb: Tensor, boxes: Boxes) -> Boxes:
        """R-Net. boxes: square. Returns the survivors, square again."""
        if not len(boxes):
            return boxes
        offsets, scores = _run_on_patches(self.rnet, rgb, boxes, side=24, multiple=16)
        boxes = _apply_offsets(boxes, offsets, scores)
        boxes = boxes[boxes[:, 5] > self.thresholds[1]]
        return _make_square(suppress(boxes, 0.7, iou))

    def _run_onet(self, rgb: Tensor, boxes: Boxes) -> tuple[Boxes, NDArray[np.float32]]:
        """O-Net. boxes: square. Returns boxes and landmarks [A, 5, 2] in pixels."""
        if not len(boxes):
            return boxes, np.zeros((0, 5, 2), dtype=np.float32)
        offsets, landmarks, scores = _run_on_patches(self.onet, rgb, boxes, side=48, multiple=4)
        side = boxes[:, 3:5] - boxes[:, 1:3] + 1  # (N, 2) width, height
        points = landmarks.reshape(-1, 2, 5).transpose(0, 2, 1)  # (N, 5, 2)
        points = points * side[:, None] + boxes[:, None, 1:3] - 1
        boxes = _apply_offsets(boxes, offsets, scores)
        rows = np.concatenate([boxes, points.reshape(-1, 10)], axis=1)
        rows = suppress(rows[rows[:, 5] > self.thresholds[2]], 0.7, overlap_over_smaller)
        return rows[:, :6], rows[:, 6:].reshape(-1, 5, 2)


class _Found(NamedTuple):
    """N windows of a canvas."""

    at: Windows
    pixels: NDArray[np.uint8]
    """[N, 12, 12, 3]"""
    values: NDArray[np.float32]
    """[N, 5] P-Net's outputs for them: box offsets, margin."""

    def choose(self, rows: slice) -> _Found:
        """Some of them."""
        at = Windows(*(axis[rows] for axis in self.at))
        return _Found(at=at, pixels=self.pixels[rows], values=self.values[rows])


def _search_canvases(network: Network, levels: Sequence[Tensor], least: float) -> Iterator[_Found]:
    """The windows with contrast, of a pyramid on the CPU, whose margin is more than ``least``."""
    for canvas in pack_pyramids([level.numpy() for level in levels]):
        output = network(torch.from_numpy(canvas.rgb[None]))[0][0].numpy()  # (5, h, w)
        place = np.flatnonzero(output[4] > least)
        row, column = np.divmod(place, output.shape[2])
        at, real = find_windows(canvas, row, column)
        row, column = row[real], column[real]
        if len(row):
            yield _Found(at, cut_windows(canvas, row, column), output[:, row, column].T)


def _gather(parts: Iterator[_Found]) -> Iterator[_Found]:
    """The same windows in larger parts, all but the last of whole batches.

    So a window's batch, and with it the last bit of its score, does not depend on how many wait.
    """
    waiting: list[_Found] = []
    for part in parts:
        waiting.append(part)
        n = sum(len(found.pixels) for found in waiting)
        if n >= _MOST_GATHERED:
            joined, whole = _join(waiting), n - n % _WINDOW_BATCH
            yield joined.choose(slice(whole))
            waiting = [joined.choose(slice(whole, None))] if whole < n else []
    if waiting:
        yield _join(waiting)


def _join(parts: Sequence[_Found]) -> _Found:
    return _Found(
        at=Windows(*np.concatenate([part.at for part in parts], axis=1)),
        pixels=np.concatenate([part.pixels for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def _run_on_patches(
    network: Network, rgb: Tensor, boxes: Boxes, *, side: int, multiple: int
) -> list[NDArray[np.float32]]:
    """Outputs of R-Net or O-Net for N boxes: [N, ...] each; side: of its patches."""
    parts = []
    for first in range(0, len(boxes), _PATCH_BATCH):
        patches = sample_patches(rgb, boxes[first : first + _PATCH_BATCH], side)
        parts.append(run_padded(network, patches, batch=_PATCH_BATCH, multiple=multiple))
    return [torch.cat(outputs).cpu().numpy() for outputs in zip(*parts, strict=True)]


def _read_windows(at: Windows, values: NDArray[np.float32]) -> Boxes:
    """P-Net's outputs for N windows, [N, 5], as a table of boxes with their level: [N, 7]."""
    left_top = np.stack([at.column, at.row], axis=1) * STRIDE_PX + 1
    corners = np.concatenate([left_top, left_top + WINDOW_PX - 1], axis=1)
    boxes = corners + values[:, :4] * (WINDOW_PX - 1)
    scores = 1 / (1 + np.exp(-values[:, 4]))
    return np.column_stack([at.frame, boxes, scores, at.level]).astype(np.float32)


def _make_square(boxes: Boxes) -> Boxes:
    """The shorter side grown to the longer about the centre."""
    side = boxes[:, 3:5] - boxes[:, 1:3]
    longest = side.max(axis=1, keepdims=True)
    left_top = boxes[:, 1:3] + side / 2 - longest / 2
    return np.concatenate([boxes[:, :1], left_top, left_top + longest, boxes[:, 5:]], axis=1)


def _apply_offsets(
    boxes: Boxes, offsets: NDArray[np.float32], scores: NDArray[np.float32]
) -> Boxes:
    """Boxes moved by a network's offsets, which count in box sides, with its scores."""
    side = np.tile(boxes[:, 3:5] - boxes[:, 1:3] + 1, 2)  # (N, 4)
    return np.concatenate([boxes[:, :1], boxes[:, 1:5] + offsets * side, scores[:, None]], axis=1)
