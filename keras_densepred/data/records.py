"""One image with its boxes, masks and labels, and what a data set of such images offers.

Every reader makes records, every augmentation maps a record to a record, and `batches` writes
records into the rows of a batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

IGNORE_LABEL = 255
"""Value in `Record.semantic` of pixels that neither train nor count."""


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file, the fault and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """An image and what is known about it, in pixels of that image.

    Shapes and dtypes are checked when a record is made, so that a mistake in a reader or an
    augmentation shows there and not in a loss. The arrays may share memory with other records:
    make a changed record with `replace`, never write into one.

    Args:
        image: `(H, W, 3)` uint8, RGB, upright (any EXIF orientation is already applied).
        boxes: `(N, 4)` float32, xyxy in pixels of `image`, `0 <= x1 < x2 <= W` and
            `0 <= y1 < y2 <= H`.
        labels: `(N,)` int32, `0 .. num_classes - 1`.
        crowd: `(N,)` bool, COCO's `iscrowd`: a region of many objects, ignored in evaluation
            and not to be trained on, neither as object nor as background.
        image_id: the image's id in its data set.
        file_name: what messages about this image call it.
        masks: `(N, H, W)` bool, or None when not read.
        semantic: `(H, W)` uint8 class of each pixel with `IGNORE_LABEL` (255) for none, or None
            where the data has no such labels.

    Raises:
        ValueError: if an array has another shape or dtype than promised here.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    image_id: int
    file_name: str
    masks: np.ndarray | None = None
    semantic: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        height, width = self.image.shape[:2]
        self._check("image", self.image, (height, width, 3), np.uint8)
        self._check("boxes", self.boxes, (count, 4), np.float32)
        self._check("labels", self.labels, (count,), np.int32)
        self._check("crowd", self.crowd, (count,), np.bool_)
        if self.masks is not None:
            self._check("masks", self.masks, (count, height, width), np.bool_)
        if self.semantic is not None:
            self._check("semantic", self.semantic, (height, width), np.uint8)

    def _check(self, name: str, array: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"Record of {self.file_name}: `{name}` must be {np.dtype(dtype)} of shape {shape}, "
                f"and is {array.dtype} of shape {array.shape}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def replace(self, **changes: Any) -> Record:
        """A copy of this record with the named fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def select(self, keep: np.ndarray) -> Record:
        """The record with only some of its objects, in all fields that are per object.

        Args:
            keep: `(N,)` bool, or integer indices in the wanted order.

        Returns:
            A record with the same image.
        """
        return self.replace(
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            crowd=self.crowd[keep],
            masks=None if self.masks is None else self.masks[keep],
        )


def semantic_record(image: np.ndarray, semantic: np.ndarray, index: int, name: str) -> Record:
    """A record without objects.

    Args:
        image: `(H, W, 3)` uint8, RGB.
        semantic: `(H, W)` uint8.
        index: position in the data set, which becomes the `image_id`.
        name: what messages call the image.

    Returns:
        The record.
    """
    return Record(
        image=image,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        crowd=np.zeros(0, bool),
        image_id=index,
        file_name=name,
        semantic=semantic,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image and its class.

    Args:
        image: `(H, W, 3)` uint8, RGB, upright; what a data set's `encoded` gives has an
            `EncodedImage` here.
        label: `0 .. num_classes - 1`.
        image_id: the image's id in its data set.
        file_name: what messages about this image call it.

    Raises:
        ValueError: if the image has another shape or dtype than promised here.
    """

    image: np.ndarray
    label: int
    image_id: int
    file_name: str

    def __post_init__(self) -> None:
        shape = self.image.shape
        if len(shape) != 3 or shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"{self.file_name}: `image` must be uint8 of shape (H, W, 3), and is "
                f"{self.image.dtype} of shape {shape}."
            )


class DetectionDataset(Protocol):
    """What detection batches and evaluation ask of a data set."""

    @property
    def image_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    def ground_truth(self) -> dict: ...


class SegmentationDataset(Protocol):
    """What batches with semantic labels ask of a data set.

    It may also have `mask(index)`, the labels alone, and `image_sizes`, `(N, 2)` height and width:
    images then need not be decoded to count labels or to plan an evaluation.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class ClassificationDataset(Protocol):
    """What classification batches ask of a data set.

    It may also have `encoded(index)`, the same with an `EncodedImage`: a random crop then decodes
    no more of the image than it needs.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...
