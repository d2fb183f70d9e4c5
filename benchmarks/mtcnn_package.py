"""Runs the ``mtcnn`` package's own engine on frames from stdin: the child that faces.py starts.

    pip install mtcnn==1.0.0 tensorflow-cpu      in an environment of its own

Reads frames, each a line with height and width, then RGB bytes, and answers each with a line of
JSON: ``boxes_px`` [[left, top, right, bottom]...], not clipped to the frame, ``scores`` and
``landmarks_px`` [[[x, y] * 5]...]. Settings are the package's defaults: smallest face 20 pixels,
thresholds 0.6, 0.7, 0.8. The first line it prints is its version.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import sys

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    from mtcnn import MTCNN

    detector = MTCNN()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("mtcnn", "keras")]
    print(", ".join(versions), flush=True)
    while size := sys.stdin.buffer.readline().split():
        shape = (int(size[0]), int(size[1]), 3)
        rgb = np.frombuffer(sys.stdin.buffer.read(math.prod(shape)), np.uint8).reshape(shape)
        rows = detector.detect_faces(
            rgb, fit_to_image=False, box_format="xyxy", output_type="numpy", min_face_size=20
        )  # (A, 16): image, box, score, five x, five y
        found = {
            "boxes_px": np.round(rows[:, 1:5], 3).tolist(),
            "scores": np.round(rows[:, 5], 5).tolist(),
            "landmarks_px": np.round(rows[:, 6:].reshape(-1, 2, 5).swapaxes(1, 2), 3).tolist(),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
