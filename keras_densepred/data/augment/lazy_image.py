"""Images that are resized, cropped, flipped, padded and pasted in one go, and only where it shows.

Step by step, the recipe for COCO would write a training image seven times, the first time up to
four times too large. A `LazyImage` notes the steps, as long as they come in the recipe's order
(resize, crop, flip, pad, paste, each at most once), then resizes only the window that is left, of
a pasted image only as far as its last pasted pixel, and writes it where it belongs.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.records import Record


class _Stage(enum.IntEnum):
    """The last step noted; a step that does not come after it has the image drawn first."""

    DECODED, RESIZED, CUT, MIRRORED, PADDED, PASTED = range(6)


@dataclasses.dataclass(frozen=True, eq=False)
class LazyImage:
    """An image that is not drawn yet, with the shape and dtype it will have.

    The size of the *window* is that of the resized image, or of what a crop has left of it.

    Args:
        source: `(H, W, 3)` uint8, the decoded image; never written into.
        scaled: height and width of the whole image after resizing.
        corner: row and column of `source` where the window begins.
        window: height and width of the window.
        mirrored: whether left and right of the window are exchanged.
        canvas: height and width with what is padded on the right and below.
        color: of the padding, RGB in 0..255.
        pasted: second image of the canvas's size and the rectangles `(N, 4)` int64, xyxy in pixels
            of the canvas, that are taken from it.
        stage: the last step noted.
    """

    source: np.ndarray
    scaled: tuple[int, int]
    corner: tuple[int, int]
    window: tuple[int, int]
    mirrored: bool
    canvas: tuple[int, int]
    color: tuple[int, int, int]
    pasted: tuple[LazyImage, np.ndarray] | None
    stage: _Stage

    dtype = np.dtype(np.uint8)

    @classmethod
    def of(cls, image: np.ndarray | LazyImage) -> LazyImage:
        """Wraps an image `(H, W, 3)` uint8; a lazy one is returned as it is."""
        if isinstance(image, LazyImage):
            return image
        height, width = image.shape[:2]
        size = height, width
        return cls(image, size, (0, 0), size, False, size, (0, 0, 0), None, _Stage.DECODED)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(H, W, 3)` of the image when it is drawn."""
        return (*self.canvas, 3)

    def resize(self, height: int, width: int) -> LazyImage:
        """Resizes bilinearly without a low-pass filter."""
        size = height, width
        return self._at(_Stage.RESIZED, scaled=size, window=size, canvas=size)

    def cut(self, top: int, left: int, height: int, width: int) -> tuple[LazyImage, np.ndarray]:
        """Keeps a window.

        In a resized image the window begins at a pixel of the source, so up to one pixel of the
        source further up and left than asked for: what is then resized is the window alone, which
        takes half of the time or less where it matters (to 1024x1024 out of an image enlarged to
        1536x2048: 1.5 ms in place of 8.5 ms).

        Returns:
            The image, and `(2,)` float64, the row and column of the resized image, not always
            whole numbers, where the window begins.
        """
        image = self if self.stage < _Stage.CUT else LazyImage.of(self.draw())
        steps = np.divide(image.source.shape[:2], image.scaled)  # source pixels per pixel
        rows, columns = np.floor(np.array([top, left]) * steps + 1e-9).astype(int).tolist()
        size = height, width
        image = image._at(_Stage.CUT, corner=(rows, columns), window=size, canvas=size)
        return image, np.array([rows, columns]) / steps

    def mirror(self) -> LazyImage:
        """Exchanges left and right."""
        return self._at(_Stage.MIRRORED, mirrored=True)

    def pad(self, height: int, width: int, color: tuple[int, int, int]) -> LazyImage:
        """Adds pixels of one colour on the right and below."""
        return self._at(_Stage.PADDED, canvas=(height, width), color=color)

    def paste(self, other: LazyImage, rectangles: np.ndarray) -> LazyImage:
        """Replaces rectangles `(N, 4)` int64, xyxy inside of the image, by those of `other`."""
        return self._at(_Stage.PASTED, pasted=(other, rectangles))

    def _at(self, stage: _Stage, **changes: Any) -> LazyImage:
        image = self if self.stage < stage else LazyImage.of(self.draw())
        return dataclasses.replace(image, stage=stage, **changes)

    def draw(self) -> np.ndarray:
        """The image `(H, W, 3)` uint8; it may share memory with `source`."""
        if self.canvas == self.window and self.pasted is None:
            return self._draw_window(*self.window)
        image = np.empty(self.shape, np.uint8)
        self.draw_into(image)
        return image

    def draw_into(self, out: np.ndarray, table: np.ndarray | None = None) -> None:
        """Draws into an array.

        Args:
            out: `(H, W, 3)` uint8, or of the dtype of `table`; the pixels of a row are contiguous.
            table: `(1, 256, 3)`, the value of each byte in each channel; None keeps the bytes.
        """
        height, width = self.window
        window = out[:height, :width]
        pixels = self._draw_window(height, width, window if table is None else None)
        if pixels is not window:
            _put(window, pixels, table)
        if self.canvas != self.window:
            color = np.array(self.color, np.uint8)
            value = color if table is None else table[0, color, np.arange(3)]
            _fill(out[:height, width:], value)
            _fill(out[height:], value)
        if self.pasted is None:
            return
        other, rectangles = self.pasted
        right, bottom = rectangles[:, 2:].max(axis=0, initial=0)
        pixels = other._draw_corner(int(bottom), int(right))
        for x1, y1, x2, y2 in rectangles.tolist():
            _put(out[y1:y2, x1:x2], pixels[y1:y2, x1:x2], table)

    def _draw_corner(self, height: int, width: int) -> np.ndarray:
        """At least the upper left `(height, width)` pixels of the image."""
        if self.pasted is not None:
            return self.draw()
        rows = min(height, self.window[0])
        # The left side of a mirrored window is the right one of the resized image.
        columns = self.window[1] if self.mirrored else min(width, self.window[1])
        pixels = self._draw_window(rows, columns)
        if rows == height and columns >= width:
            return pixels
        canvas = np.empty((height, max(width, columns), 3), np.uint8)
        color = np.array(self.color, np.uint8)
        canvas[:rows, :columns] = pixels
        _fill(canvas[:rows, columns:], color)
        _fill(canvas[rows:], color)
        return canvas

    def _draw_window(self, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
        """The upper `height` rows of the window; unless mirrored, its left `width` columns.

        Args:
            height: how many rows.
            width: how many columns, all of them if mirrored.
            out: `(height, width, 3)` uint8, where the pixels may be written.

        Returns:
            `(height, width, 3)` uint8: `out` itself if the pixels are there, otherwise another.
        """
        cv2 = require("cv2", "data")
        pixels = self.source
        sizes = zip(self.corner, (height, width), self.scaled, pixels.shape[:2], strict=True)
        if self.scaled == pixels.shape[:2]:
            pixels = pixels[tuple(slice(start, start + size) for start, size, _, _ in sizes)]
        else:
            # One source pixel more than the window covers, from which its last pixels are blended.
            pixels = pixels[
                tuple(
                    slice(start, start + math.ceil(size * whole / scaled) + 1)
                    for start, size, scaled, whole in sizes
                )
            ]
            if (height, width) == self.scaled and not self.mirrored:
                return cv2.resize(pixels, (width, height), out, interpolation=cv2.INTER_LINEAR)
            fy, fx = np.divide(self.scaled, self.source.shape[:2]).tolist()
            resized = cv2.resize(pixels, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
            pixels = resized[:height, :width]
        # OpenCV mirrors 1024x1024 pixels in 0.4 ms, NumPy in 10 ms.
        return cv2.flip(pixels, 1, out) if self.mirrored else pixels


def lazy(record: Record) -> Record:
    """The record with a lazy image, unless it has masks or semantic labels.

    Those must lie on their image to the pixel, and a lazy crop may begin a pixel earlier.
    """
    if record.masks is not None or record.semantic is not None:
        return record
    return record.replace(image=LazyImage.of(record.image))


def drawn(record: Record) -> Record:
    """The record with its image as an array."""
    if not isinstance(record.image, LazyImage):
        return record
    return record.replace(image=record.image.draw())


def drawn_like(record: Record, image: LazyImage) -> np.ndarray | LazyImage:
    """`image` as it is if that of `record` is lazy too, otherwise drawn."""
    return image if isinstance(record.image, LazyImage) else image.draw()


def _put(out: np.ndarray, pixels: np.ndarray, table: np.ndarray | None) -> None:
    if table is None:
        out[...] = pixels
    else:
        # Given `out`, it writes there: a copy of 1024x1024 float32 pixels takes 3 ms and more.
        require("cv2", "data").LUT(pixels, table, dst=out)


def _fill(out: np.ndarray, value: np.ndarray) -> None:
    """Fills `(H, W, 3)` with `(3,)`, a row at a time: ten times as fast as by pixels."""
    height, width, channels = out.shape
    out.reshape(height, width * channels)[...] = np.tile(value, width)
