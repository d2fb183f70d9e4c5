"""The peer that stage one is compared with: what a user would write today from well-known parts.

PyAV in a plain loop, facenet-pytorch's MTCNN (smallest face 20 pixels, all faces, landmarks, a
clip's frames as one batch) and torchvision's SqueezeNet 1.1 in float32 on 224x224 crops. No face
CNN, nothing is stored. facenet-pytorch pins an old torch, so it is installed without its pins::

    pip install requests && pip install --no-deps facenet-pytorch

Its weights come with it. SqueezeNet runs with this project's weights: the time is the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import av
import numpy as np
import torch
from numpy.typing import NDArray
from stage_one import Measured
from torch.nn import functional as F
from torchvision.models import squeezenet1_1
from torchvision.transforms.v2 import functional as transforms

from features.contracts import TICK_RATE_HZ, Clip
from features.networks.context_cnn import read_squeezenet_state

CONTEXT_BATCH = 32


class Peer:
    """Holds the peer's networks."""

    def __init__(self) -> None:
        try:
            from facenet_pytorch import MTCNN
        except ImportError as error:
            raise SystemExit(
                f"the peer pipeline cannot be loaded ({error}). Install it: "
                "pip install requests && pip install --no-deps facenet-pytorch"
            ) from error
        self.mtcnn = MTCNN(min_face_size=20, keep_all=True).eval()
        squeezenet = squeezenet1_1()
        squeezenet.load_state_dict(read_squeezenet_state())
        self.context_cnn = squeezenet.features.eval()

    @torch.inference_mode()
    def run(self, clips: Sequence[Clip], batch_pixels: int) -> Measured:
        """All that the peer does with some clips; batch_pixels: of a batch to detect faces in."""
        times = Measured()
        for clip in clips:
            since_s = time.perf_counter()
            frames = np.stack(list(iter_sampled_frames(clip)))
            since_s = times.add_step("decode", since_s)
            n = max(1, batch_pixels // (frames.shape[1] * frames.shape[2]))
            for start in range(0, len(frames), n):
                boxes, _, _ = self.mtcnn.detect(frames[start : start + n], landmarks=True)
                times.n_faces += sum(len(found) for found in boxes if found is not None)
            since_s = times.add_step("detection", since_s)
            for start in range(0, len(frames), CONTEXT_BATCH):
                self._embed(frames[start : start + CONTEXT_BATCH])
            times.add_step("context", since_s)
            times.n_frames += len(frames)
        return times

    def _embed(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = torch.from_numpy(frames).permute(0, 3, 1, 2)
        images = transforms.center_crop(transforms.resize(images, [224], antialias=True), [224])
        images = transforms.to_dtype(images, torch.float32, scale=True)
        images = transforms.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        pooled: NDArray[np.float32] = F.adaptive_avg_pool2d(self.context_cnn(images), 7).numpy()
        return pooled


def iter_sampled_frames(clip: Clip) -> Iterator[NDArray[np.uint8]]:
    """Five frames a second, those on screen at each tick: the same frames that stage one takes."""
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        tick, origin_s, end_s, shown, taken = 0, None, 0.0, None, False
        for frame in container.decode(stream):
            if origin_s is None:
                origin_s = frame.time
            now_s = frame.time - origin_s
            while shown is not None and tick / TICK_RATE_HZ < now_s - 1e-6:
                if not taken:
                    yield shown.to_ndarray(format="rgb24")
                taken = True
                tick += 1
            shown, taken = frame, False
            end_s = now_s + float((frame.duration or 0) * frame.time_base)
        if shown is not None and not taken and tick / TICK_RATE_HZ < end_s - 1e-6:
            yield shown.to_ndarray(format="rgb24")
