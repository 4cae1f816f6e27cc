"""Augmentation of Darknet's detectors, as CSPNet's were trained.

Darknet jitters the four borders of the image's window one by one, stretches the window to the
network's size, flips it, and changes hue, saturation and brightness; later versions ("YOLOv4")
combine four such images in a "mosaic". `yolo_augmentation` gives the transforms in this order.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.objects import (
    DropTinyBoxes,
    FixedSizeCrop,
    RandomFlip,
    resize,
)
from keras_densepred.data.augment.transform import Combine, Size, Transform, height_and_width
from keras_densepred.data.records import Record

GREY = 127
"""Value of a window's pixels outside of its image, as in Darknet."""


@dataclasses.dataclass(frozen=True)
class JitterWindow(Transform):
    """Moves each border of the image by a random share of its side, then stretches to `size`.

    A border that moves outwards adds grey pixels. Boxes are cut at the window, those without area
    in it are dropped. Records with masks or semantic labels are not taken: Darknet has none.

    Args:
        size: of the training image, `(height, width)` or one number for both.
        jitter: each border moves by up to this share of the height or width.

    Raises:
        ValueError: if `jitter` is not in 0..0.4, or when called with a record with masks.
    """

    size: Size
    jitter: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.jitter <= 0.4:
            raise ValueError(f"`jitter` must be in 0..0.4, got {self.jitter}.")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if record.masks is not None or record.semantic is not None:
            raise ValueError(f"{record.file_name}: JitterWindow takes boxes only, no masks.")
        height, width = record.size
        shares = rng.uniform(-self.jitter, self.jitter, 4)
        top, bottom = (shares[:2] * height).round().astype(int)
        left, right = (shares[2:] * width).round().astype(int)
        rows, columns = slice(top, height - bottom), slice(left, width - right)
        image = np.full((rows.stop - top, columns.stop - left, 3), GREY, np.uint8)
        inside = record.image[max(top, 0) : rows.stop, max(left, 0) : columns.stop]
        at_row, at_column = max(-top, 0), max(-left, 0)
        image[at_row : at_row + inside.shape[0], at_column : at_column + inside.shape[1]] = inside
        limits = np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        boxes = np.clip(record.boxes - np.array([left, top] * 2, np.float32), 0, limits)
        window = record.replace(image=image, boxes=boxes.astype(np.float32))
        window = window.select((boxes[:, 2:] > boxes[:, :2]).all(1))
        return resize(window, *height_and_width(self.size))


@dataclasses.dataclass(frozen=True)
class JitterColors(Transform):
    """Random hue, saturation and exposure of the whole image.

    Args:
        hue: largest shift of the hue, as a share of the colour circle.
        saturation: the saturation is multiplied or divided by a factor up to this one.
        exposure: the same of the value (of HSV).

    Raises:
        ValueError: if a factor is below 1 or `hue` is not in 0..0.5.
    """

    hue: float = 0.1
    saturation: float = 1.5
    exposure: float = 1.5

    geometric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.hue <= 0.5 or min(self.saturation, self.exposure) < 1:
            raise ValueError(
                "`hue` must be in 0..0.5, `saturation` and `exposure` at least 1, got "
                f"{self.hue}, {self.saturation} and {self.exposure}."
            )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        cv2 = require("cv2", "data")
        shift = rng.uniform(-self.hue, self.hue)
        saturation, exposure = (
            factor if rng.random() < 0.5 else 1 / factor
            for factor in (rng.uniform(1, self.saturation), rng.uniform(1, self.exposure))
        )
        # Whole numbers of hue (0..179 in OpenCV), saturation and value: one look-up each.
        steps = np.arange(256)
        tables = np.stack(
            [
                (steps + round(shift * 180)) % 180,
                np.minimum(steps * saturation, 255),
                np.minimum(steps * exposure, 255),
            ],
            axis=1,
        )
        colors = cv2.cvtColor(record.image, cv2.COLOR_RGB2HSV)
        colors = cv2.LUT(colors, tables.astype(np.uint8)[None])
        return record.replace(image=cv2.cvtColor(colors, cv2.COLOR_HSV2RGB))


@dataclasses.dataclass(frozen=True)
class Mosaic(Combine):
    """Puts four images of one size together at a random point ("YOLOv4", section 3.3).

    Each quarter shows a window of its image at a random place. Objects without area in their
    window are dropped. Darknet picks windows that show little of its grey borders; these do not
    look at borders.

    Args:
        probability: of doing so.
        margin: the point keeps this share of the sides away from the borders.

    Raises:
        ValueError: if `margin` is not in 0..0.5, or when the images differ in size.
    """

    margin: float = 0.2

    num_others: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 < self.margin <= 0.5:
            raise ValueError(f"`margin` must be above 0 and at most 0.5, got {self.margin}.")

    def most_added(self, most: int) -> int:
        """All objects of the other images may show."""
        return self.num_others * most

    def __call__(
        self,
        record: Record,
        second: Record,
        third: Record,
        fourth: Record,
        rng: np.random.Generator,
    ) -> Record:
        """`record` at the top left, then the others row by row."""
        records = (record, second, third, fourth)
        if len({one.size for one in records}) > 1:
            raise ValueError(
                f"Mosaic needs images of one size, and {record.file_name} is {record.size}, the "
                f"others {[one.size for one in records[1:]]}; put JitterWindow before it."
            )
        height, width = record.size
        row, column = (
            int(side * rng.uniform(self.margin, 1 - self.margin)) for side in (height, width)
        )
        image = np.empty_like(record.image)
        quarters = []
        for number, one in enumerate(records):
            top, bottom = ((0, row), (row, height))[number // 2]
            left, right = ((0, column), (column, width))[number % 2]
            quarter = FixedSizeCrop((bottom - top, right - left))(one, rng)
            image[top:bottom, left:right] = quarter.image
            corner = np.array([left, top] * 2, np.float32)
            quarters.append(quarter.replace(boxes=quarter.boxes + corner))
        return record.replace(
            image=image,
            boxes=np.concatenate([quarter.boxes for quarter in quarters]),
            labels=np.concatenate([quarter.labels for quarter in quarters]),
            crowd=np.concatenate([quarter.crowd for quarter in quarters]),
        )


def yolo_augmentation(size: Size, *, jitter: float = 0.3, mosaic: bool = False) -> list[Transform]:
    """The augmentation of CSPNet's detectors (jitter .3, hue .1, saturation and exposure 1.5)."""
    steps: list[Transform] = [
        JitterWindow(size, jitter),
        DropTinyBoxes(1.0),
        RandomFlip(),
        JitterColors(),
    ]
    return [*steps, Mosaic()] if mosaic else steps


@dataclasses.dataclass(frozen=True)
class RandomSizes:
    """The network's input size, drawn anew every few steps (Darknet's `random=1`).

    Args:
        sizes: sides to draw from, in pixels; Darknet's are 320 to 608 in steps of 32.
        seed: of the draws; step k's size depends on it and on k alone.
        every: steps with one size.
    """

    sizes: tuple[int, ...] = tuple(range(320, 609, 32))
    seed: int = 0
    every: int = 10

    def at(self, step: int) -> int:
        """Side of the square images of a step."""
        generator = np.random.default_rng([self.seed, step // self.every])
        return int(generator.choice(self.sizes))


def resize_images(images: np.ndarray, side: int) -> np.ndarray:
    """A batch of square images at another size; boxes scale with `side / images.shape[1]`.

    Args:
        images: (B, S, S, 3).
        side: of the result in pixels.

    Returns:
        (B, side, side, 3) in the images' type.
    """
    if images.shape[1] == side:
        return images
    cv2 = require("cv2", "data")
    method = cv2.INTER_AREA if side < images.shape[1] else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (side, side), interpolation=method) for image in images])
