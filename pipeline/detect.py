"""Finds faces: the MTCNN cascade in torch, batched over the frames of a chunk.

The ``mtcnn`` package's own engine is the reference: patches by plain bilinear sampling, and its
suppression, in which a box falls to any better box that overlaps it, even to one that has itself
fallen. Only the pyramid is made in another way: see ``_shrunk``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from features.contracts import Faces
from pipeline.mtcnn_networks import ONet, PNet, RNet

_PYRAMID_FACTOR = 0.709
_WINDOW_PX = 12
_STRIDE_PX = 2
_PATCH_BATCH = 512


class FaceDetector:
    """Holds the three networks on one device."""

    def __init__(
        self,
        *,
        min_face_px: int = 20,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8),
        device: torch.device | str = "cpu",
    ) -> None:
        """min_face_px: smallest face side sought; thresholds: least score after each network."""
        self.min_face_px = min_face_px
        self.thresholds = thresholds
        self.device = torch.device(device)
        self.pnet = PNet().to(self.device).to(memory_format=torch.channels_last)
        self.rnet = RNet().to(self.device).to(memory_format=torch.channels_last)
        self.onet = ONet().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def find_faces(self, rgb: Tensor) -> Faces:
        """Find the faces of some frames of one size.

        Args:
            rgb: [F, H, W, 3] uint8 on the detector's device.

        Returns:
            The faces, ordered by frame, then area, largest first.
        """
        boxes = self._propose(rgb)
        images = _normalised(rgb.permute(0, 3, 1, 2)).contiguous()  # (F, 3, H, W)
        boxes = self._refine(images, boxes)
        boxes, landmarks = self._finish(images, boxes)
        return _ordered_faces(boxes, landmarks)

    def _propose(self, rgb: Tensor) -> Tensor:
        """P-Net over the pyramid. Returns square boxes [N, 6]: frame, x1, y1, x2, y2, score."""
        height, width = rgb.shape[1:3]
        found = []
        for number, frame in enumerate(rgb):  # one by one: a level's maps then fit a CPU's cache
            level = frame.permute(2, 0, 1)[None]  # (1, 3, H, W) uint8
            for scale in pyramid_scales(height, width, self.min_face_px):
                level = _shrunk(level, (int(height * scale), int(width * scale)))
                offsets, scores = self.pnet(_normalised(level))
                boxes = _window_boxes(offsets, scores, self.thresholds[0])
                boxes[:, 0] = number
                boxes[:, 1:5] /= scale
                found.append(_suppress(boxes, 0.5, _iou_union))
        proposals = torch.cat(found) if found else rgb.new_zeros((0, 6), dtype=torch.float32)
        return _squared(_suppress(proposals, 0.7, _iou_union))

    def _refine(self, images: Tensor, boxes: Tensor) -> Tensor:
        """R-Net. boxes: [N, 6] square. Returns the survivors [M, 6], square again."""
        offsets, scores = [], []
        for patches in _iter_patches(images, boxes, 24):
            batch = self.rnet(patches)
            offsets.append(batch[0])
            scores.append(batch[1])
        if not offsets:
            return boxes
        boxes = _adjusted(boxes, torch.cat(offsets), torch.cat(scores))
        boxes = boxes[boxes[:, 5] > self.thresholds[1]]
        return _squared(_suppress(boxes, 0.7, _iou_union))

    def _finish(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """O-Net. boxes: [N, 6] square. Returns boxes [A, 6] and landmarks [A, 5, 2] in pixels."""
        outputs = [self.onet(patches) for patches in _iter_patches(images, boxes, 48)]
        if not outputs:
            return boxes, boxes.new_zeros((0, 5, 2))
        offsets, landmarks, scores = (torch.cat(part) for part in zip(*outputs, strict=True))
        side = boxes[:, 3:5] - boxes[:, 1:3] + 1  # (N, 2) width, height
        points = landmarks.view(-1, 2, 5).transpose(1, 2)  # (N, 5, 2)
        points = points * side[:, None] + boxes[:, None, 1:3] - 1
        boxes = _adjusted(boxes, offsets, scores)
        rows = torch.cat([boxes, points.flatten(1)], dim=1)
        rows = _suppress(rows[rows[:, 5] > self.thresholds[2]], 0.7, _iou_min)
        return rows[:, :6], rows[:, 6:].view(-1, 5, 2)


def pyramid_scales(height: int, width: int, min_face_px: int) -> list[float]:
    """The pyramid's scales; their number depends on the frame only, as in the ``mtcnn`` package."""
    shorter = min(height, width)
    n_scales = round(-(math.log(shorter / _WINDOW_PX) / math.log(_PYRAMID_FACTOR) + 1))
    largest = _WINDOW_PX / min_face_px
    scales = [largest * _PYRAMID_FACTOR**i for i in range(max(n_scales, 0))]
    return [s for s in scales if int(shorter * s) >= _WINDOW_PX]


def _shrunk(level: Tensor, size: tuple[int, int]) -> Tensor:
    """[1, 3, H, W] uint8 -> [1, 3, *size] uint8, antialiased: each level from the one before.

    The ``mtcnn`` package averages areas of the full frame for every level. The difference moves
    boxes by a pixel or so and costs a thirtieth of the time.
    """
    if level.device.type == "cpu":
        return F.interpolate(level, size=size, mode="bilinear", antialias=True)
    scaled = F.interpolate(level.float(), size=size, mode="bilinear", antialias=True)
    return scaled.round_().to(torch.uint8)


def _normalised(images: Tensor) -> Tensor:
    """0..255 -> about -1..1, as all three networks expect."""
    return (images.float() - 127.5) / 128


def _window_boxes(offsets: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """P-Net's output at one scale -> boxes [N, 6] in pixels of that scale."""
    frame, row, column = torch.nonzero(scores > threshold, as_tuple=True)
    offset = offsets[frame, :, row, column]  # (N, 4)
    left_top = torch.stack([column, row], dim=1) * _STRIDE_PX + 1
    corners = torch.cat([left_top, left_top + _WINDOW_PX - 1], dim=1)  # (N, 4)
    boxes = corners + offset * (_WINDOW_PX - 1)
    return torch.cat(
        [frame[:, None].to(boxes.dtype), boxes, scores[frame, row, column][:, None]], dim=1
    )


def _suppress(rows: Tensor, threshold: float, overlap: Callable[[Tensor], Tensor]) -> Tensor:
    """Per frame, drop each row that any better-scored row overlaps by more than ``threshold``.

    rows: [N, >=6]: frame, box, score, anything. Returns the kept rows, best first in each frame.
    """
    kept = []
    rows = rows[torch.argsort(rows[:, 5], descending=True, stable=True)]
    for frame in torch.unique(rows[:, 0]):
        of_frame = rows[rows[:, 0] == frame]
        # Above the diagonal: row i is better than column j.
        beaten = (overlap(of_frame[:, 1:5]) > threshold).triu_(diagonal=1).any(dim=0)
        kept.append(of_frame[~beaten])
    return torch.cat(kept) if kept else rows


def _iou_union(boxes: Tensor) -> Tensor:
    """[N, 4] -> [N, N] intersection over union."""
    inter, area = _intersections(boxes)
    return inter / (area[:, None] + area[None] - inter)


def _iou_min(boxes: Tensor) -> Tensor:
    """[N, 4] -> [N, N] intersection over the smaller box."""
    inter, area = _intersections(boxes)
    return inter / torch.minimum(area[:, None], area[None])


def _intersections(boxes: Tensor) -> tuple[Tensor, Tensor]:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left_top = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    right_bottom = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return (right_bottom - left_top).clamp(min=0).prod(dim=2), area


def _squared(boxes: Tensor) -> Tensor:
    """The shorter side grown to the longer about the centre."""
    side = boxes[:, 3:5] - boxes[:, 1:3]
    longest = side.amax(dim=1, keepdim=True)
    left_top = boxes[:, 1:3] + side / 2 - longest / 2
    return torch.cat([boxes[:, :1], left_top, left_top + longest, boxes[:, 5:]], dim=1)


def _adjusted(boxes: Tensor, offsets: Tensor, scores: Tensor) -> Tensor:
    """Boxes moved by a network's offsets, which count in box sides, with its scores."""
    side = (boxes[:, 3:5] - boxes[:, 1:3] + 1).repeat(1, 2)  # (N, 4)
    return torch.cat([boxes[:, :1], boxes[:, 1:5] + offsets * side, scores[:, None]], dim=1)


def _iter_patches(images: Tensor, boxes: Tensor, size: int) -> Iterator[Tensor]:
    """Yields [b, 3, size, size] patches of the boxes, in the boxes' order."""
    height, width = images.shape[2:]
    step = torch.linspace(0, 1, size, device=images.device)
    limit = boxes.new_tensor([width - 1, height - 1])
    scale = limit / boxes.new_tensor([width, height])
    for start in range(0, len(boxes), _PATCH_BATCH):
        batch = boxes[start : start + _PATCH_BATCH]
        first, last = batch[:, 1:3] * scale, batch[:, 3:5] * scale  # (b, 2)
        points = first[:, None] + step[None, :, None] * (last - first)[:, None]  # (b, size, 2)
        inside = (points >= 0) & (points <= limit)
        grid = points / limit * 2 - 1
        patches = images.new_empty((len(batch), 3, size, size))
        for frame in torch.unique(batch[:, 0]):
            rows = torch.nonzero(batch[:, 0] == frame).flatten()
            x = grid[rows, None, :, 0].expand(-1, size, -1)
            y = grid[rows, :, None, 1].expand(-1, -1, size)
            sampled = F.grid_sample(
                images[int(frame)][None],
                torch.stack([x, y], dim=3).reshape(1, -1, size, 2),
                align_corners=True,
                padding_mode="border",
            )  # (1, 3, n * size, size)
            patches[rows] = sampled[0].view(3, len(rows), size, size).transpose(0, 1)
        mask = inside[:, None, None, :, 0] & inside[:, None, :, None, 1]
        yield patches * mask


def _ordered_faces(boxes: Tensor, landmarks: Tensor) -> Faces:
    rows = boxes.cpu().numpy().astype(np.float32)
    area = (rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2])
    order = np.lexsort((-area, rows[:, 0]))
    return Faces(
        frame=rows[order, 0].astype(np.int32),
        box_px=rows[order, 1:5],
        score=rows[order, 5],
        landmarks_px=landmarks.cpu().numpy().astype(np.float32)[order],
    )
