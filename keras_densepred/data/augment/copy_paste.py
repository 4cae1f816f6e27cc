"""Copy-paste: objects of a second image put into the first."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import numpy as np

from keras_densepred.data.augment.lazy_image import LazyImage, drawn_like
from keras_densepred.data.augment.transform import Combine
from keras_densepred.data.boxes import box_iou, clip_boxes, has_pixels, mask_boxes
from keras_densepred.data.records import Record


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
    drawn; `max_pasted` draws are made with replacement (no more than there are such objects); an
    object drawn twice is pasted once. The rectangle that is copied is the box grown by up to
    `context` pixels on each side; the box that is added is not grown. Boxes and masks of the first
    image stay even if they get covered. Crowd regions are not pasted.

    Args:
        probability: of pasting into a record.
        max_pasted: how many objects at most.
        max_iou: objects that overlap by this or more are not pasted.
        context: largest growth of a side, in pixels; each side's is uniform in `0..context`.
    """

    max_iou: float = 0.2
    context: int = 15

    takes_lazy_image: ClassVar[bool] = True

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
        rectangles = clip_boxes(corners, height, width).astype(int)
        image, pasted = LazyImage.of(record.image), LazyImage.of(other.image)
        image = image.paste(pasted, rectangles)
        semantic = None if record.semantic is None else record.semantic.copy()
        if semantic is not None and other.semantic is not None:
            for x1, y1, x2, y2 in rectangles:
                semantic[y1:y2, x1:x2] = other.semantic[y1:y2, x1:x2]
        return _append(record.replace(image=drawn_like(record, image), semantic=semantic), chosen)


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
        candidates = np.flatnonzero(~other.crowd & has_pixels(other.masks))
        if not len(candidates):
            return record
        count = int(rng.integers(1, min(len(candidates), self.max_pasted) + 1))
        chosen = other.select(np.sort(rng.permutation(candidates)[:count]))
        assert chosen.masks is not None
        covered = np.asarray(chosen.masks.any(0))
        masks = record.masks & ~covered
        left = has_pixels(masks)
        touched = left & has_pixels(record.masks & covered)
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
