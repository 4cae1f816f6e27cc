"""Augmentation of scene parsing as MMSegmentation has it, with which CEDNet learns ADE20K.

Resize under two limits, crop until no class fills the window, flip, photometric distortion, pad.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.objects import PadToSize, RandomFlip
from keras_densepred.data.augment.transform import Size, Transform, height_and_width
from keras_densepred.data.records import IGNORE_LABEL, Record

_LONG_LIMIT = 4  # longer side at most, by the shorter one's limit: 2048 and 512


def size_under_limits(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Height and width of an image resized so that neither side is above its limit.

    Args:
        size: height and width in pixels.
        short: limit of the shorter side in pixels.
        long: limit of the longer side.

    Returns:
        Height and width, their ratio kept, at least 1.
    """
    scale = min(long / max(size), short / min(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


@dataclasses.dataclass(frozen=True)
class RandomLimitedResize(Transform):
    """Resizes to the largest size under two limits, both times one random factor.

    The factor r is uniform in `scale_range`; the limits are `int(long * r)` of the longer side and
    `int(short * r)` of the shorter one. Images bilinear without a low-pass filter, labels nearest
    neighbour.

    Args:
        short: limit of the shorter side in pixels.
        long: of the longer side; None for four times the other.
        scale_range: of the factor.

    Raises:
        ValueError: if a limit is not positive, or the range is not of rising positive numbers.
    """

    short: int
    long: int | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(
                f"`scale_range` must be two rising positive numbers, not {(low, high)}."
            )
        if self.short < 1 or (self.long is not None and self.long < 1):
            raise ValueError(f"Limits must be positive, and are {(self.short, self.long)}.")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        semantic = _require_semantic(record, "RandomLimitedResize")
        factor = rng.uniform(*self.scale_range)
        long = _LONG_LIMIT * self.short if self.long is None else self.long
        limits = (max(1, int(self.short * factor)), max(1, int(long * factor)))
        height, width = size_under_limits(record.size, *limits)
        if (height, width) == record.size:
            return record
        cv2 = require("cv2", "data")
        return record.replace(
            image=cv2.resize(record.image, (width, height), interpolation=cv2.INTER_LINEAR),
            semantic=cv2.resize(semantic, (width, height), interpolation=cv2.INTER_NEAREST),
        )


@dataclasses.dataclass(frozen=True)
class VariedCrop(Transform):
    """Cuts a window at a random place, drawn anew while one class fills nearly all of it.

    A window is taken if it has more than one class and the commonest has less than `largest_share`
    of the pixels that have one; after `tries` further draws the last is taken as it is. An axis
    that is shorter than the window is taken whole.

    Args:
        size: of the window, `(height, width)` or one number for both.
        largest_share: of one class, in 0..1.
        tries: how often it is drawn anew.
    """

    size: Size
    largest_share: float = 0.75
    tries: int = 10

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        semantic = _require_semantic(record, "VariedCrop")
        window = np.minimum(height_and_width(self.size), record.size)
        top, left = self._draw(record.size, window, rng)
        for _ in range(self.tries):
            if self._is_varied(semantic[top : top + window[0], left : left + window[1]]):
                break
            top, left = self._draw(record.size, window, rng)
        rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
        return record.replace(image=record.image[rows, columns], semantic=semantic[rows, columns])

    @staticmethod
    def _draw(
        size: tuple[int, int], window: np.ndarray, rng: np.random.Generator
    ) -> tuple[int, int]:
        top, left = rng.integers(np.array(size) - window + 1).tolist()
        return top, left

    def _is_varied(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels.ravel(), minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
        return bool(
            np.count_nonzero(counts) > 1 and counts.max() < self.largest_share * counts.sum()
        )


@dataclasses.dataclass(frozen=True)
class OrderedDistortion(Transform):
    """Changes brightness, contrast, saturation and hue in SSD's order, each with probability 1/2.

    Brightness; contrast, here or at the end, as a coin decides; saturation; hue. Every step clips
    to 0..255 and drops what is behind the point, as MMSegmentation's (`PhotoMetricDistortion`).
    `PhotometricDistortion` is the quicker relative without the order.

    Args:
        brightness: largest change, in 0..255.
        contrast: the factor is uniform in `1 - contrast .. 1 + contrast`.
        saturation: the same for the saturation.
        hue: the hue, in 0..179, changes by an integer from `-hue` to `hue - 1`.
    """

    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: int = 18

    geometric: ClassVar[bool] = False

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        # All are drawn, used or not: what follows then does not depend on which were used.
        brighter, contrasted, saturated, hued, contrast_first = (rng.random(5) < 0.5).tolist()
        offset = rng.uniform(-self.brightness, self.brightness)
        contrast = rng.uniform(1 - self.contrast, 1 + self.contrast)
        saturation = rng.uniform(1 - self.saturation, 1 + self.saturation)
        turn = int(rng.integers(-self.hue, self.hue))
        cv2 = require("cv2", "data")
        levels = np.arange(256)
        same = levels.astype(np.uint8)
        contrasts = _steps(levels * contrast)
        image = np.asarray(record.image)
        if brighter:
            image = cv2.LUT(image, _steps(levels + offset))
        if contrasted and contrast_first:
            image = cv2.LUT(image, contrasts)
        if saturated:
            image = _in_hsv(image, same, _steps(levels * saturation))
        if hued:
            image = _in_hsv(image, ((levels + turn) % 180).astype(np.uint8), same)
        if contrasted and not contrast_first:
            image = cv2.LUT(image, contrasts)
        return record.replace(image=image)


def scene_parsing_augmentation(
    size: Size, *, scale_range: tuple[float, float] = (0.5, 2.0), photometric: bool = True
) -> list[Transform]:
    """How CEDNet's and ConvNeXt's UperNet learn ADE20K (MMSegmentation's pipeline).

    Args:
        size: of the training image; 512.
        scale_range: of the random scale, relative to a shorter side of `size`.
        photometric: whether to change colours.

    Returns:
        The transforms in order, for `train_mask_batches(augment=...)`.
    """
    colours: list[Transform] = [OrderedDistortion()] if photometric else []
    short = min(height_and_width(size))
    return [
        RandomLimitedResize(short, scale_range=scale_range),
        VariedCrop(size),
        RandomFlip(),
        *colours,
        PadToSize(size),
    ]


def _steps(values: np.ndarray) -> np.ndarray:
    """A table of 256 levels as bytes: clipped, and cut to integers."""
    return np.clip(values, 0, 255).astype(np.uint8)


def _in_hsv(image: np.ndarray, hues: np.ndarray, saturations: np.ndarray) -> np.ndarray:
    """An image whose hue and saturation have gone through tables of 256 levels."""
    cv2 = require("cv2", "data")
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    tables = np.stack([hues, saturations, np.arange(256, dtype=np.uint8)], axis=-1)
    return cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB)


def _require_semantic(record: Record, name: str) -> np.ndarray:
    """The labels of a record that has no objects."""
    if record.semantic is None or len(record.labels):
        raise ValueError(
            f"{record.file_name}: {name} is for semantic labels without boxes; use "
            "LargeScaleJitter and FixedSizeCrop for objects."
        )
    return record.semantic
