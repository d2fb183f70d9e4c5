"""MTCNN: from frames to faces, and who is who from frame to frame."""
