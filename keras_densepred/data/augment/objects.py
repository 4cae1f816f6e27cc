"""Augmentation of images with boxes and masks: the recipe of CEDNet's COCO detectors.

The order of the paper's recipe (section 4.1 and the released configurations) is large-scale jitter,
crop, drop boxes that became too small, flip, pad, copy-paste: that is `coco_augmentation`.

In the pipeline images are `LazyImage`s, on which the transforms here only note what is to be done.
They are resized bilinearly without a low-pass filter, as the authors' code (mmdetection 2 with
OpenCV) does even when it shrinks by ten; masks and semantic labels by nearest neighbour.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.copy_paste import RectangleCopyPaste
from keras_densepred.data.augment.lazy_image import LazyImage, drawn_like
from keras_densepred.data.augment.transform import PAD_COLOR, Size, Transform, height_and_width
from keras_densepred.data.boxes import clip_boxes, has_pixels
from keras_densepred.data.records import IGNORE_LABEL, Record


def resize(record: Record, height: int, width: int) -> Record:
    """Resizes an image with its boxes, masks and labels to `(height, width)` pixels."""
    old_height, old_width = record.size
    if (old_height, old_width) == (height, width):
        return record

    def nearest(labels: np.ndarray) -> np.ndarray:
        cv2 = require("cv2", "data")
        return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)

    masks, semantic = record.masks, record.semantic
    if masks is not None:
        resized = [nearest(mask.astype(np.uint8)) for mask in masks]
        masks = np.asarray(resized, bool).reshape(len(masks), height, width)
    scale = np.array([width / old_width, height / old_height] * 2, np.float32)
    return record.replace(
        image=drawn_like(record, LazyImage.of(record.image).resize(height, width)),
        boxes=clip_boxes(record.boxes * scale, height, width),
        masks=masks,
        semantic=None if semantic is None else nearest(semantic),
    )


def random_crop(record: Record, height: int, width: int, rng: np.random.Generator) -> Record:
    """Cuts a window of `(height, width)` pixels, not more than there are, at a random place.

    Boxes are cut at the window; objects without area in it, or without a mask pixel where there
    are masks, are dropped.
    """
    top = int(rng.integers(record.size[0] - height + 1))
    left = int(rng.integers(record.size[1] - width + 1))
    window = slice(top, top + height), slice(left, left + width)
    image, corner = LazyImage.of(record.image).cut(top, left, height, width)
    offset = np.tile(corner[::-1], 2).astype(np.float32)
    boxes = clip_boxes(record.boxes - offset, height, width)
    masks, semantic = record.masks, record.semantic
    cut = record.replace(
        image=drawn_like(record, image),
        boxes=boxes,
        masks=None if masks is None else masks[:, window[0], window[1]],
        semantic=None if semantic is None else semantic[window],
    )
    keep = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(1))
    if cut.masks is not None:
        keep &= has_pixels(cut.masks)
    return cut if keep.all() else cut.select(keep)


@dataclasses.dataclass(frozen=True)
class ResizeToFit(Transform):
    """Resizes to the largest size of the same aspect ratio inside of `size`.

    Args:
        size: of the frame, `(height, width)` or one number for both.
    """

    size: Size

    takes_lazy_image: ClassVar[bool] = True

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        return resize(record, *_fit(record.size, height_and_width(self.size)))


@dataclasses.dataclass(frozen=True)
class LargeScaleJitter(Transform):
    """Resizes to fit inside of `size` times a random factor, the aspect ratio kept.

    Args:
        size: of the training image, `(height, width)` or one number for both.
        scale_range: the factor is uniform between these two.
    """

    size: Size
    scale_range: tuple[float, float] = (0.1, 2.0)

    takes_lazy_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(
                f"`scale_range` must be two rising positive numbers, not {(low, high)}."
            )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = height_and_width(self.size)
        factor = rng.uniform(*self.scale_range)
        return resize(record, *_fit(record.size, (height * factor, width * factor)))


@dataclasses.dataclass(frozen=True)
class FixedSizeCrop(Transform):
    """Cuts a window of at most `size` at a random place; the window may hold no object.

    Boxes are cut at the window. Objects without area in it, or without a mask pixel where there
    are masks, are dropped. Smaller images stay smaller: `PadToSize` is a step of its own, because
    the recipe flips in between.

    Args:
        size: `(height, width)` or one number for both.
    """

    size: Size

    takes_lazy_image: ClassVar[bool] = True

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = (
            min(wanted, there)
            for wanted, there in zip(height_and_width(self.size), record.size, strict=True)
        )
        return random_crop(record, height, width, rng)


@dataclasses.dataclass(frozen=True)
class DropTinyBoxes(Transform):
    """Drops objects whose box is narrower or lower than `min_size`.

    Args:
        min_size: in pixels. The recipe's 0.01 removes only what has no area.
    """

    min_size: float = 0.01

    takes_lazy_image: ClassVar[bool] = True

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        keep = (record.boxes[:, 2:] - record.boxes[:, :2] >= self.min_size).all(1)
        return record if keep.all() else record.select(keep)


@dataclasses.dataclass(frozen=True)
class RandomFlip(Transform):
    """Mirrors left and right.

    Args:
        probability: of doing so.
    """

    probability: float = 0.5

    takes_lazy_image: ClassVar[bool] = True

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() >= self.probability:
            return record
        x1, y1, x2, y2 = record.boxes.T
        width = np.float32(record.size[1])
        masks, semantic = record.masks, record.semantic
        return record.replace(
            image=drawn_like(record, LazyImage.of(record.image).mirror()),
            boxes=np.stack([width - x2, y1, width - x1, y2], axis=1),
            masks=None if masks is None else masks[:, :, ::-1],
            semantic=None if semantic is None else semantic[:, ::-1],
        )


@dataclasses.dataclass(frozen=True)
class PadToSize(Transform):
    """Pads on the right and below; there are no labels there (semantic: ignored).

    The authors pad with zero after normalising; an image of bytes gets the mean colour instead.

    Args:
        size: `(height, width)` or one number for both, not smaller than the image.
        color: RGB, 0..255.

    Raises:
        ValueError: when called with a larger image.
    """

    size: Size
    color: tuple[int, int, int] = PAD_COLOR

    takes_lazy_image: ClassVar[bool] = True

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        height, width = height_and_width(self.size)
        old_height, old_width = record.size
        if (old_height, old_width) == (height, width):
            return record
        if old_height > height or old_width > width:
            raise ValueError(
                f"{record.file_name}: an image of {old_height}x{old_width} pixels cannot be padded "
                f"to {height}x{width}; put FixedSizeCrop or ResizeToFit before PadToSize."
            )
        image = LazyImage.of(record.image).pad(height, width, self.color)
        below, right = height - old_height, width - old_width
        masks, semantic = record.masks, record.semantic
        if masks is not None:
            masks = np.pad(masks, ((0, 0), (0, below), (0, right)))
        if semantic is not None:
            semantic = np.pad(semantic, ((0, below), (0, right)), constant_values=IGNORE_LABEL)
        return record.replace(image=drawn_like(record, image), masks=masks, semantic=semantic)


def coco_augmentation(
    size: Size, *, scale_range: tuple[float, float] = (0.1, 2.0), copy_paste: bool = True
) -> list[Transform]:
    """The recipe of CEDNet's RetinaNet, Mask R-CNN and Cascade Mask R-CNN on COCO.

    Args:
        size: of the training image (the paper's is 1024).
        scale_range: of the large-scale jitter.
        copy_paste: whether to end with `RectangleCopyPaste`.

    Returns:
        The transforms in order, for `train_batches(augment=...)`. Images may stay smaller than
        `size`, which the batches pad; before `RectangleCopyPaste` all are padded.
    """
    steps: list[Transform] = [
        LargeScaleJitter(size, scale_range),
        FixedSizeCrop(size),
        DropTinyBoxes(),
        RandomFlip(),
    ]
    # Batches pad what is smaller and know its size, which is then not the whole canvas: detectors
    # that are told where an image ends learn it as they are tested.
    return [*steps, PadToSize(size), RectangleCopyPaste()] if copy_paste else steps


def _fit(old: tuple[int, int], frame: tuple[float, float]) -> tuple[int, int]:
    """The size with the aspect ratio of `old` inside of `frame`, at least one pixel a side."""
    factor = min(frame[0] / old[0], frame[1] / old[1])
    return max(1, int(old[0] * factor + 0.5)), max(1, int(old[1] * factor + 0.5))
