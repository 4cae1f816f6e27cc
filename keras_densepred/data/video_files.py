"""Films frame by frame, as OpenCV reads and writes them: no more than one frame in memory."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.files import OutputError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp", ".ogv"),
    *(".mts", ".m2ts"),
)
"""By which a file is taken for a video and not for an image."""

_CUT_OFF = 0.95  # a video that ends before this share of what its header says is a broken one
_CONVERT = "replace it, or convert it (`ffmpeg -i VIDEO out.mp4`)"
_CODEC = "mp4v"  # MPEG-4: what OpenCV's wheels encode on every system


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and what is wrong."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its suffix."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        number: from 0.
        time: in seconds from the beginning.
        image: (H, W, 3) uint8, RGB, upright.
    """

    number: int
    time: float
    image: np.ndarray


class VideoFrames:
    """The frames of a video, in their order. Requires OpenCV, extra `data`.

    Args:
        path: of the file.

    Attributes:
        frame_rate: frames a second.
        announced: number of frames by the file's header, which may be wrong; None where it has
            none.
        fault: after the last frame: what is wrong with a video that ends too early; "" otherwise.

    Raises:
        VideoError: if the file is missing, or OpenCV can read no frame of it.
        ImportError: without OpenCV.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.fault = ""
        cv2 = require("cv2", "data")
        if not self.path.is_file():
            raise VideoError(f"There is no video {path}: give the name of a file.")
        capture = cv2.VideoCapture(str(self.path))
        try:
            if not (capture.isOpened() and capture.read()[0]):
                raise VideoError(f"{path} is damaged, or no video that OpenCV reads: {_CONVERT}.")
            self.frame_rate = float(capture.get(cv2.CAP_PROP_FPS))
            count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        finally:
            capture.release()
        self.announced = int(count) if math.isfinite(count) and count >= 1 else None
        if not (math.isfinite(self.frame_rate) and self.frame_rate > 0):
            raise VideoError(f"{path} does not say how many frames a second has: {_CONVERT}.")

    def __iter__(self) -> Iterator[Frame]:
        """Reads the frames, to the end or to what cannot be read."""
        cv2 = require("cv2", "data")
        capture = cv2.VideoCapture(str(self.path))
        number, time, shape = 0, 0.0, None
        try:
            while True:
                is_read, picture = capture.read()
                if not is_read or shape not in (None, picture.shape):
                    break
                shape = picture.shape
                # 0 where a file has no times.
                time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 or number / self.frame_rate
                yield Frame(number, time, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            capture.release()
        # By time, which is right where frames do not come at one rate.
        end, length = time + 1 / self.frame_rate, (self.announced or 0) / self.frame_rate
        if is_read or end < _CUT_OFF * length:
            what = "changes its size" if is_read else "is damaged"
            self.fault = f"{self.path} {what} after {end:.1f} seconds: what follows is left out."


class VideoWriter:
    """Writes frames as MPEG-4, in a `with` block. Requires OpenCV, extra `data`.

    Args:
        path: of the file; its suffix chooses the container, such as `.mp4`.
        frame_rate: frames a second.
    """

    def __init__(self, path: str | os.PathLike[str], frame_rate: float):
        self._path, self._frame_rate = Path(path), frame_rate
        self._writer: Any = None
        self._count = 0

    def write(self, image: np.ndarray) -> None:
        """Appends a frame.

        Args:
            image: (H, W, 3) uint8, RGB, of the first frame's size. The format has even sides: the
                last row or column of odd ones is left out.

        Raises:
            OutputError: if OpenCV cannot write such a video.
        """
        cv2 = require("cv2", "data")
        if self._writer is None:
            height, width = image.shape[:2]
            self._writer = cv2.VideoWriter(
                str(self._path), cv2.VideoWriter.fourcc(*_CODEC), self._frame_rate, (width, height)
            )
            if not self._writer.isOpened():
                raise OutputError(
                    f"OpenCV cannot write {self._path.name}, {width} x {height} at "
                    f"{self._frame_rate:g} frames a second: give another name or size."
                )
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._count += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if kind is None and not self._is_whole():  # of which OpenCV says nothing
            raise OutputError(f"{self._path.name} could not be written whole: is the disk full?")

    def _is_whole(self) -> bool:
        try:
            return VideoFrames(self._path).announced == self._count
        except VideoError:
            return False
