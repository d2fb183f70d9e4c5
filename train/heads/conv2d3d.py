"""The 2D-3D-CNN of section VI (Fig. 4): 3-D convolutions over a clip's feature maps.

The figure gives three facts: maps of the face CNN come in as a sequence, a 3-D convolutional
network learns from them in space and time, and adaptive pooling before the classifier takes clips
of any length. Layers and sizes are ours; docs/models.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import pad, relu

from train.heads.layers import Conv, Head, Linear, mask_steps

REDUCED = 32
"""Channels that a map's own are reduced to before time is looked at."""
WIDTHS = (32, 64)
"""Channels of the two 3-D convolutions."""
_FEWEST_STEPS = 3
"""Clips are padded to so many: over exactly two steps, the weight gradient of a 3-D convolution in
bfloat16 holds memory that nothing was written to (torch 2.15's oneDNN on an AVX-512 processor)."""


class Conv2d3d(Head):
    """Reduce each map's channels, convolve twice over space and time, average, classify.

    ::

        maps [T, 512, 7, 7] --1x1--> [T, 32, 7, 7] --3x3x3, /2--> [T, 32, 4, 4]
             --3x3x3, /2--> [T, 64, 2, 2] --mean over real steps and places--> [64] --> logits
    """

    def __init__(self, stream: str, map_shape: tuple[int, ...], n_classes: int) -> None:
        """map_shape: (channels, h, w) of the stream's maps; any h and w."""
        super().__init__()
        self.streams = (stream,)
        self.map_shape = map_shape
        self.reduce = Conv(map_shape[0], REDUCED, (1, 1))
        self.conv1 = Conv(REDUCED, WIDTHS[0], (3, 3, 3), stride=(1, 2, 2))
        self.conv2 = Conv(WIDTHS[0], WIDTHS[1], (3, 3, 3), stride=(1, 2, 2))
        self.classify = Linear(WIDTHS[1], n_classes)

    def read(self, streams: Mapping[str, Tensor], n_steps: Tensor) -> Tensor:
        maps = streams[self.streams[0]]  # [*runs, B, T, C h w]
        maps = pad(maps, (0, 0, 0, max(_FEWEST_STEPS - maps.shape[-2], 0)))
        *runs, n_clips, n_padded, _ = maps.shape
        x = maps.reshape(*runs, n_clips * n_padded, *self.map_shape)  # [*runs, B T, C, h, w]
        x = relu(self.reduce(x))  # [*runs, B T, 32, h, w]
        x = x.view(*runs, n_clips, n_padded, *x.shape[-3:]).transpose(-4, -3)
        # Padded steps are zero before every convolution over time, as what lies beyond a clip is.
        real = mask_steps(n_steps, n_padded).to(x.dtype)[..., None, :, None, None]
        x = relu(self.conv1(x * real)) * real  # [*runs, B, 32, T, h/2, w/2]
        x = relu(self.conv2(x)) * real  # [*runs, B, 64, T, h/4, w/4]
        pooled = x.mean((-2, -1)).float().sum(-1) / n_steps.unsqueeze(-1)  # [*runs, B, 64]
        logits: Tensor = self.classify(pooled)  # [*runs, B, K]
        return logits
