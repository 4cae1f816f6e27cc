"""Tiny videos for tests, and what is in a video."""

import cv2
import numpy as np


def write_video(path, frames, frame_rate=10.0, codec="mp4v"):
    """Writes RGB frames; Motion JPEG (`MJPG`, .avi) plays on where a file is cut off."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), frame_rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def read_video(path):
    """Frames in RGB, and the frame rate."""
    capture = cv2.VideoCapture(str(path))
    rate, frames = capture.get(cv2.CAP_PROP_FPS), []
    while True:
        is_read, frame = capture.read()
        if not is_read:
            return frames, rate
        frames.append(frame[..., ::-1])
