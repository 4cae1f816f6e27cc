"""Augmentation for semantic segmentation: scale, crop, flip, photometric distortion, padding.

Scaling and cropping are one step, so that only what the crop shows is resized, and labels lie on
their image to the pixel, which a `LazyImage` does not promise.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.objects import PadToSize, RandomFlip
from keras_densepred.data.augment.transform import Size, Transform, height_and_width
from keras_densepred.data.records import Record

_HUES = 180  # of OpenCV's 8-bit HSV images


@dataclasses.dataclass(frozen=True)
class RandomScaleCrop(Transform):
    """Resizes to fit inside of `size` times a random factor, and cuts a window of at most `size`.

    DeepLab's random scale and crop, in SpineNet's and so BiCSNet's form: the factor is relative to
    the frame, not to the photo's own size (VOC's photos, 500 pixels wide, and the crop of 512 make
    this nearly the same). Images are bilinear without a low-pass filter, labels nearest
    neighbour. Smaller images stay smaller, `PadToSize` fills them up.

    Args:
        size: of the window, `(height, width)` or one number for both.
        scale_range: the factor is uniform between these two.

    Raises:
        ValueError: if the range is not of rising positive numbers, or the record has no
            `semantic`, or has objects.
    """

    size: Size
    scale_range: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(
                f"`scale_range` must be two rising positive numbers, not {(low, high)}."
            )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if record.semantic is None or len(record.labels):
            raise ValueError(
                f"{record.file_name}: RandomScaleCrop is for semantic labels without boxes; use "
                "LargeScaleJitter and FixedSizeCrop for objects."
            )
        frame = np.array(height_and_width(self.size))
        old = np.array(record.size)
        factor = rng.uniform(*self.scale_range) * (frame / old).min()
        scaled = np.maximum(np.floor(old * factor + 0.5).astype(int), 1)
        window = np.minimum(frame, scaled)
        steps = old / scaled  # source pixels per pixel
        # The window begins at a pixel of the source: what is resized is then the window alone.
        spare = np.floor((scaled - window) * steps + 1e-9).astype(int)
        corner = rng.integers(spare + 1)
        rows, columns = (
            _nearest(int(corner[i]), int(window[i]), float(steps[i]), int(old[i])) for i in (0, 1)
        )
        return record.replace(
            image=_resize_window(record.image, corner, window, scaled),
            semantic=record.semantic[rows].take(columns, axis=1),
        )


@dataclasses.dataclass(frozen=True)
class PhotometricDistortion(Transform):
    """Changes brightness, contrast, saturation and hue, each with a probability of one half.

    As in SSD (Liu et al., 2016) and in the segmentation recipes that took it from there, without
    the random order: brightness and contrast are one look-up, saturation and hue another.

    Args:
        brightness: largest change, in 0..255.
        contrast: the factor is uniform in `1 - contrast .. 1 + contrast`.
        saturation: the same for the saturation.
        hue: largest change, in degrees.
    """

    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 18.0

    geometric: ClassVar[bool] = False

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        # All are drawn, used or not: what follows then does not depend on which were used.
        used = rng.random(4) < 0.5
        drawn = rng.uniform(-1, 1, 4)
        offset, contrast, saturation, hue = np.where(used, drawn, 0.0)
        image = np.asarray(record.image)
        cv2 = require("cv2", "data")
        levels = np.arange(256)
        if used[:2].any():
            table = (levels + self.brightness * offset) * (1 + self.contrast * contrast)
            image = cv2.LUT(image, np.clip(np.round(table), 0, 255).astype(np.uint8))
        if used[2:].any():
            tables = np.stack(
                [
                    np.round(levels + hue * self.hue * _HUES / 360) % _HUES,
                    np.clip(np.round(levels * (1 + self.saturation * saturation)), 0, 255),
                    levels,
                ],
                axis=-1,
            )
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            hsv = cv2.LUT(hsv, tables[None].astype(np.uint8))
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return record.replace(image=image)


def segmentation_augmentation(
    size: Size, *, scale_range: tuple[float, float] = (0.5, 2.0), photometric: bool = True
) -> list[Transform]:
    """Random scale, crop, flip and photometric distortion, then padding with ignored pixels.

    Args:
        size: of the training image (BiCSNet on VOC: 512).
        scale_range: of the random scale.
        photometric: whether to change colours.

    Returns:
        The transforms in order, for `train_mask_batches(augment=...)`.
    """
    colours: list[Transform] = [PhotometricDistortion()] if photometric else []
    return [RandomScaleCrop(size, scale_range), RandomFlip(), *colours, PadToSize(size)]


def _nearest(corner: int, length: int, step: float, limit: int) -> np.ndarray:
    """The source positions `(length,)` whose centres are nearest to those of resized pixels."""
    positions = corner + np.floor((np.arange(length) + 0.5) * step).astype(int)
    return np.minimum(positions, limit - 1)


def _resize_window(
    image: np.ndarray, corner: np.ndarray, window: np.ndarray, scaled: np.ndarray
) -> np.ndarray:
    """A window of a resized image, made from the pixels below it only.

    Args:
        image: `(H, W, 3)` uint8.
        corner: row and column of `image` where the window begins.
        window: its height and width in pixels of the resized image.
        scaled: height and width of the whole resized image.

    Returns:
        `(*window, 3)` uint8.
    """
    whole = np.array(image.shape[:2])
    steps = whole / scaled
    # One pixel more than the window covers, from which its last pixels are blended.
    ends = np.minimum(corner + np.ceil(window * steps).astype(int) + 1, whole)
    pixels = image[corner[0] : ends[0], corner[1] : ends[1]]
    height, width = window.tolist()
    if (scaled == whole).all():
        return pixels[:height, :width]
    cv2 = require("cv2", "data")
    fy, fx = (1 / steps).tolist()
    resized = cv2.resize(pixels, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    return resized[:height, :width]
