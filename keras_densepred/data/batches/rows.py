"""Records on their way into a batch: read, augmented, and written into its rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred.data.augment.lazy_image import LazyImage, drawn, lazy
from keras_densepred.data.augment.transform import PAD_COLOR, Transform
from keras_densepred.data.batches.stream import Batch, Sample, first_readable
from keras_densepred.data.boxes import cut_by_boxes
from keras_densepred.data.image_files import OnBadImage
from keras_densepred.data.records import Record


@dataclasses.dataclass(frozen=True)
class AugmentRecords:
    """Index -> augmented record, with the random numbers of a position in the stream.

    Args:
        read: index -> record.
        count: images of the data set.
        transforms: applied in order.
        on_bad_image: what to do about an unreadable image.
    """

    read: Callable[[int], Record]
    count: int
    transforms: tuple[Transform, ...]
    on_bad_image: OnBadImage

    def __call__(self, index: int, rng: np.random.Generator) -> Sample[Record]:
        skipped: list[str] = []
        record = self._apply(self._read(index, skipped), index, self.transforms, rng, skipped)
        return Sample(record, tuple(skipped))

    def _apply(
        self,
        record: Record,
        index: int,
        transforms: tuple[Transform, ...],
        rng: np.random.Generator,
        skipped: list[str],
    ) -> Record:
        for number, transform in enumerate(transforms):
            prepare = lazy if transform.takes_lazy_image else drawn
            record = prepare(record)
            if not transform.applies(rng) or (transform.num_others and self.count == 1):
                continue
            others = []
            for _ in range(transform.num_others):
                step = 1 + int(rng.integers(self.count - 1))
                partner = (index + step) % self.count
                other = self._read(partner, skipped)
                other = self._apply(other, partner, transforms[:number], rng, skipped)
                others.append(prepare(other))
            changed = transform(record, *others, rng)
            record = _checked(changed, record, transform)
        return record

    def _read(self, index: int, skipped: list[str]) -> Record:
        return first_readable(self.read, index, self.count, self.on_bad_image, skipped)


def _checked(changed: Any, before: Record, transform: Transform) -> Record:
    """What a transform returned, if that is what it promised."""
    if not isinstance(changed, Record):
        raise ValueError(
            f"{before.file_name}: the transform {transform} returned a {type(changed).__name__}, "
            "and must return a `data.Record`: `record.replace(image=...)` makes a changed one."
        )
    if not transform.geometric and changed.size != before.size:
        raise ValueError(
            f"{before.file_name}: the transform {transform} has `geometric = False` and made an "
            f"image of {before.size} pixels one of {changed.size}."
        )
    return changed


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """Writes images into a batch: normalised, or as bytes where `mean` and `std` are None.

    Args:
        mean: of the three channels, RGB in 0..255.
        std: of the three channels.

    Raises:
        ValueError: if only one of the two is given.
    """

    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("Give both `mean` and `std`, or neither for images as bytes.")

    def empty_images(self, batch_size: int, canvas: tuple[int, int]) -> np.ndarray:
        """Images `(batch_size, height, width, 3)` not yet written: all zero."""
        return np.zeros((batch_size, *canvas, 3), np.uint8 if self.mean is None else np.float32)

    def write_image(self, out: np.ndarray, image: np.ndarray) -> None:
        """Writes an image, padded on the right and below: bytes with `PAD_COLOR`, else with 0."""
        lazy_image = LazyImage.of(image)
        if self._table is None and image.shape != out.shape:
            lazy_image = lazy_image.pad(out.shape[0], out.shape[1], PAD_COLOR)
        height, width = lazy_image.canvas
        lazy_image.draw_into(out[:height, :width], self._table)

    @functools.cached_property
    def _table(self) -> np.ndarray | None:
        """`(1, 256, 3)` float32, the normalised value of each byte in each channel.

        A look-up is several times faster than arithmetic.
        """
        if self.mean is None or self.std is None:
            return None
        levels = np.arange(256, dtype=np.float32)[:, None]
        return ((levels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32))[
            None
        ]


@dataclasses.dataclass(frozen=True)
class ObjectRows(ImageRows):
    """Writes records with boxes, and with `mask_size` masks cut out by them.

    Args:
        max_boxes: boxes per image; the largest are kept where there are more.
        mask_size: cells on a side of each mask, or None for no masks.
    """

    max_boxes: int
    mask_size: int | None = None

    def empty(self, batch_size: int, canvas: tuple[int, int]) -> Batch:
        """A batch of images `(height, width)` not yet written, without boxes."""
        batch = {
            "images": self.empty_images(batch_size, canvas),
            "image_sizes": np.tile(np.array(canvas, np.int32), (batch_size, 1)),
            "boxes": np.full((batch_size, self.max_boxes, 4), -1, np.float32),
            "labels": np.full((batch_size, self.max_boxes), -1, np.int32),
        }
        if self.mask_size is not None:
            shape = (batch_size, self.max_boxes, self.mask_size, self.mask_size)
            batch["masks"] = np.zeros(shape, np.uint8)
        return batch

    def write(self, batch: Batch, row: int, record: Record) -> int:
        """Returns how many boxes were dropped because the row is full."""
        self.write_image(batch["images"][row], record.image)
        batch["image_sizes"][row] = record.size
        excess = len(record.labels) - self.max_boxes
        if excess > 0:
            area = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(1)
            record = record.select(np.sort(np.argsort(-area, kind="stable")[: self.max_boxes]))
        batch["boxes"][row, : len(record.boxes)] = record.boxes
        batch["labels"][row, : len(record.labels)] = record.labels
        if self.mask_size is not None:
            if record.masks is None:
                raise ValueError(
                    f"{record.file_name} has no instance masks: open the data set with "
                    "`with_masks=True`, or leave `mask_size` out."
                )
            cut = cut_by_boxes(record.masks, record.boxes, self.mask_size)
            batch["masks"][row, : len(cut)] = cut
        return max(excess, 0)
