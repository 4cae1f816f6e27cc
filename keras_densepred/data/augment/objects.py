"""Augmentation of images with boxes and masks: the recipe of CEDNet's COCO detectors.

The order of the paper's recipe (section 4.1 and the released configurations) is large-scale jitter,
crop, drop what became too small, flip, pad, copy-paste; `coco_augmentation` gives just that.
Each transform maps a `Record` to a `Record`, takes its random numbers from the generator it is
handed and from nowhere else, and leaves the record that it was given as it was.

Images are arrays, or in the pipeline `DeferredImage`s, on which the transforms here only note what
is to be done. They are resized bilinearly without a low-pass filter, as the authors' code
(mmdetection 2 with OpenCV) does also when it shrinks by ten; masks and semantic labels by nearest
neighbour.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.lazy_image import DeferredImage
from keras_densepred.data.records import IGNORE_LABEL, Record

Size = int | tuple[int, int]
"""`(height, width)` in pixels, or one number for both."""

PAD_COLOR = (124, 116, 104)
"""ImageNet's mean colour in whole numbers: after normalisation at most 0.01 away from zero."""


def height_and_width(size: Size) -> tuple[int, int]:
    """`size` as `(height, width)`.

    Raises:
        ValueError: if it is not one or two positive numbers.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"A size must be positive, and is {height}x{width}.")
    return height, width


def resize(record: Record, height: int, width: int) -> Record:
    """Resizes an image and all that lies on it to `(height, width)` pixels."""
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
        image=_like(record, DeferredImage.of(record.image).resize(height, width)),
        boxes=_clip(record.boxes * scale, height, width),
        masks=masks,
        semantic=None if semantic is None else nearest(semantic),
    )


@dataclasses.dataclass(frozen=True)
class ResizeToFit:
    """Resizes to the largest size of the same aspect ratio inside of `size`.

    Args:
        size: of the frame, `(height, width)` or one number for both.
    """

    size: Size

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        return resize(record, *_fit(record.size, height_and_width(self.size)))


@dataclasses.dataclass(frozen=True)
class LargeScaleJitter:
    """Resizes to fit inside of `size` times a random factor, the aspect ratio kept.

    Args:
        size: of the training image, `(height, width)` or one number for both.
        scale_range: the factor is uniform between these two.
    """

    size: Size
    scale_range: tuple[float, float] = (0.1, 2.0)

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
class FixedSizeCrop:
    """Cuts a window of at most `size` at a random place; the window may hold no object.

    Boxes are cut at the window. Objects without area in it, or without a mask pixel where there
    are masks, are dropped. Smaller images stay smaller: `PadToSize` is a step of its own, because
    the recipe flips in between.

    Args:
        size: `(height, width)` or one number for both.
    """

    size: Size

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = (
            min(wanted, there)
            for wanted, there in zip(height_and_width(self.size), record.size, strict=True)
        )
        top = int(rng.integers(record.size[0] - height + 1))
        left = int(rng.integers(record.size[1] - width + 1))
        window = slice(top, top + height), slice(left, left + width)
        image, corner = DeferredImage.of(record.image).cut(top, left, height, width)
        offset = np.tile(corner[::-1], 2).astype(np.float32)
        boxes = _clip(record.boxes - offset, height, width)
        masks, semantic = record.masks, record.semantic
        cut = record.replace(
            image=_like(record, image),
            boxes=boxes,
            masks=None if masks is None else masks[:, window[0], window[1]],
            semantic=None if semantic is None else semantic[window],
        )
        keep = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(1))
        if cut.masks is not None:
            keep &= _is_seen(cut.masks)
        return cut if keep.all() else cut.select(keep)


@dataclasses.dataclass(frozen=True)
class DropTinyBoxes:
    """Drops objects whose box is narrower or lower than `min_size`.

    Args:
        min_size: in pixels. The recipe's 0.01 removes only what has no area.
    """

    min_size: float = 0.01

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        keep = (record.boxes[:, 2:] - record.boxes[:, :2] >= self.min_size).all(1)
        return record if keep.all() else record.select(keep)


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors left and right.

    Args:
        probability: of doing so.
    """

    probability: float = 0.5

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() >= self.probability:
            return record
        x1, y1, x2, y2 = record.boxes.T
        width = np.float32(record.size[1])
        masks, semantic = record.masks, record.semantic
        return record.replace(
            image=_like(record, DeferredImage.of(record.image).mirror()),
            boxes=np.stack([width - x2, y1, width - x1, y2], axis=1),
            masks=None if masks is None else masks[:, :, ::-1],
            semantic=None if semantic is None else semantic[:, ::-1],
        )


@dataclasses.dataclass(frozen=True)
class PadToSize:
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
        image = DeferredImage.of(record.image).pad(height, width, self.color)
        below, right = height - old_height, width - old_width
        masks, semantic = record.masks, record.semantic
        if masks is not None:
            masks = np.pad(masks, ((0, 0), (0, below), (0, right)))
        if semantic is not None:
            semantic = np.pad(semantic, ((0, below), (0, right)), constant_values=IGNORE_LABEL)
        return record.replace(image=_like(record, image), masks=masks, semantic=semantic)


@dataclasses.dataclass(frozen=True)
class Combine(abc.ABC):
    """Base of the transforms that take further images: `transform(record, *others, rng)`.

    The pipeline draws with `probability` whether to use one on a record, reads the other images
    only then, and puts them through the steps before this one. A call always combines.

    Args:
        probability: of being used on a record.

    Attributes:
        num_others: how many further images a call takes.
    """

    probability: float = 0.5

    num_others: ClassVar[int] = 1

    @abc.abstractmethod
    def most_added(self, most: int) -> int:
        """How many objects a call adds at most if no image of the data set has more than `most`."""


@dataclasses.dataclass(frozen=True)
class CopyPaste(Combine):
    """Base of the transforms that put objects of a second image into the first.

    Args:
        probability: of pasting into a record.
        max_pasted: how many objects at most.
    """

    max_pasted: int = 7

    def most_added(self, most: int) -> int:
        """The lesser of both numbers."""
        return min(most, self.max_pasted)

    @abc.abstractmethod
    def __call__(self, record: Record, other: Record, rng: np.random.Generator) -> Record:
        """`record` with objects of `other`, an image of the same size."""

    def _check_sizes(self, record: Record, other: Record) -> None:
        if record.size != other.size:
            raise ValueError(
                f"{type(self).__name__} needs two images of one size, and {record.file_name} is "
                f"{record.size}, {other.file_name} {other.size}; put PadToSize before it."
            )


@dataclasses.dataclass(frozen=True)
class RectangleCopyPaste(CopyPaste):
    """CEDNet's copy-paste for data with boxes only: whole rectangles with some context.

    Objects of the second image that overlap no box of the first by `max_iou` or more can be
    drawn; `max_pasted` draws are made with replacement (no more than there are such objects), what
    is drawn twice is pasted once. The rectangle that is copied is the box grown by up to `context`
    pixels on each side; the box that is added is not grown. Boxes and masks of the first image
    stay even if they get covered. Crowd regions are not pasted.

    Args:
        probability: of pasting into a record.
        max_pasted: how many objects at most.
        max_iou: from which overlap on an object is not pasted.
        context: largest growth of a side, in pixels; each side's is uniform in `0..context`.
    """

    max_iou: float = 0.2
    context: int = 15

    def __call__(self, record: Record, other: Record, rng: np.random.Generator) -> Record:
        self._check_sizes(record, other)
        overlap = box_iou(other.boxes, record.boxes).max(axis=1, initial=0.0)
        candidates = np.flatnonzero((overlap < self.max_iou) & ~other.crowd)
        if not len(candidates):
            return record
        count = min(len(candidates), self.max_pasted)
        chosen = other.select(np.unique(rng.choice(candidates, count)))
        height, width = record.size
        grown = chosen.boxes + rng.integers(0, self.context + 1, (len(chosen.boxes), 4)) * (
            np.array([-1, -1, 1, 1])
        )
        corners = np.concatenate([np.floor(grown[:, :2]), np.ceil(grown[:, 2:])], axis=1)
        rectangles = _clip(corners, height, width).astype(int)
        image, pasted = DeferredImage.of(record.image), DeferredImage.of(other.image)
        image = image.paste(pasted, rectangles)
        semantic = None if record.semantic is None else record.semantic.copy()
        if semantic is not None and other.semantic is not None:
            for x1, y1, x2, y2 in rectangles:
                semantic[y1:y2, x1:x2] = other.semantic[y1:y2, x1:x2]
        return _append(record.replace(image=_like(record, image), semantic=semantic), chosen)


@dataclasses.dataclass(frozen=True)
class MaskCopyPaste(CopyPaste):
    """Copy-paste along instance masks (Ghiasi et al., 2021, "Simple Copy-Paste").

    A random subset of the second image's objects is pasted by its masks. Masks of the first image
    lose what gets covered, their boxes shrink with them, and what is fully covered is dropped.
    Crowd regions are not pasted.

    Args:
        probability: of pasting into a record.
        max_pasted: how many objects at most.
    """

    max_pasted: int = 100

    def __call__(self, record: Record, other: Record, rng: np.random.Generator) -> Record:
        self._check_sizes(record, other)
        if record.masks is None or other.masks is None:
            raise ValueError(
                "MaskCopyPaste needs instance masks: open the data set with `with_masks=True`."
            )
        candidates = np.flatnonzero(~other.crowd & _is_seen(other.masks))
        if not len(candidates):
            return record
        count = int(rng.integers(1, min(len(candidates), self.max_pasted) + 1))
        chosen = other.select(np.sort(rng.permutation(candidates)[:count]))
        assert chosen.masks is not None
        covered = np.asarray(chosen.masks.any(0))
        masks = record.masks & ~covered
        left = _is_seen(masks)
        touched = left & _is_seen(record.masks & covered)
        boxes = record.boxes.copy()
        boxes[touched] = mask_boxes(masks[touched])
        semantic = record.semantic
        if semantic is not None and other.semantic is not None:
            semantic = np.where(covered, other.semantic, semantic)
        target = record.replace(
            image=np.where(covered[..., None], other.image, record.image),
            boxes=boxes,
            masks=masks,
            semantic=semantic,
        )
        return _append(target.select(left), chosen)


def coco_augmentation(
    size: Size, *, scale_range: tuple[float, float] = (0.1, 2.0), copy_paste: bool = True
) -> list[Callable]:
    """The recipe of CEDNet's RetinaNet, Mask R-CNN and Cascade Mask R-CNN on COCO.

    Args:
        size: of the training image (the paper's is 1024).
        scale_range: of the large-scale jitter.
        copy_paste: whether to end with `RectangleCopyPaste`.

    Returns:
        The transforms in order, for `train_batches(augment=...)`.
    """
    steps: list[Callable] = [
        LargeScaleJitter(size, scale_range),
        FixedSizeCrop(size),
        DropTinyBoxes(),
        RandomFlip(),
        PadToSize(size),
    ]
    return [*steps, RectangleCopyPaste()] if copy_paste else steps


def deferred(record: Record) -> Record:
    """The record with its image not drawn before it is needed, where nothing speaks against it.

    Masks and semantic labels have to lie on their image to the pixel, which a deferred crop does
    not promise, so records with these stay as they are.
    """
    if record.masks is not None or record.semantic is not None:
        return record
    return record.replace(image=DeferredImage.of(record.image))


def drawn(record: Record) -> Record:
    """The record with its image as an array."""
    if not isinstance(record.image, DeferredImage):
        return record
    return record.replace(image=record.image.draw())


def takes_deferred(transform: Callable) -> bool:
    """Whether a transform, called on a record with a `DeferredImage`, leaves it deferred.

    Those of this module do; a class that a user derived from one of them may look at pixels.
    """
    return type(transform) in _TAKE_DEFERRED


_TAKE_DEFERRED = frozenset(
    {
        ResizeToFit,
        LargeScaleJitter,
        FixedSizeCrop,
        DropTinyBoxes,
        RandomFlip,
        PadToSize,
        RectangleCopyPaste,
    }
)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `(N, 4)` and `(M, 4)` xyxy: `(N, M)`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    area_first, area_second = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second))
    union = area_first[:, None] + area_second[None] - shared
    return shared / np.maximum(union, np.finfo(np.float32).tiny)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The tightest xyxy boxes `(N, 4)` float32 around masks `(N, H, W)` bool, none empty."""
    rows, columns = np.asarray(masks.any(2)), np.asarray(masks.any(1))
    height, width = masks.shape[1:]
    edges = (
        columns.argmax(1),
        rows.argmax(1),
        width - columns[:, ::-1].argmax(1),
        height - rows[:, ::-1].argmax(1),
    )
    return np.stack(edges, axis=1).astype(np.float32)


def _is_seen(masks: np.ndarray) -> np.ndarray:
    """Whether each of the masks `(N, H, W)` has a pixel: `(N,)` bool."""
    return np.asarray(masks.any(axis=(1, 2)))


def _like(record: Record, image: DeferredImage) -> np.ndarray | DeferredImage:
    """`image` deferred if that of `record` is, otherwise drawn."""
    return image if isinstance(record.image, DeferredImage) else image.draw()


def _fit(old: tuple[int, int], frame: tuple[float, float]) -> tuple[int, int]:
    """The size with the aspect ratio of `old` inside of `frame`, at least one pixel a side."""
    factor = min(frame[0] / old[0], frame[1] / old[1])
    return max(1, int(old[0] * factor + 0.5)), max(1, int(old[1] * factor + 0.5))


def _clip(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.clip(boxes, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)


def _append(record: Record, added: Record) -> Record:
    """`record` with the objects, but not the pixels, of `added`."""
    masks = record.masks
    if masks is not None and added.masks is not None:
        masks = np.concatenate([masks, added.masks])
    return record.replace(
        boxes=np.concatenate([record.boxes, added.boxes]),
        labels=np.concatenate([record.labels, added.labels]),
        crowd=np.concatenate([record.crowd, added.crowd]),
        masks=masks,
    )
