"""What batches for training and for evaluation share: rows from records, and Grain underneath."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Literal, Protocol

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment import PAD_COLOR
from keras_densepred.data.deferred import DeferredImage
from keras_densepred.data.images import ImageError
from keras_densepred.data.objects import DatasetError
from keras_densepred.data.records import Record

Batch = dict[str, np.ndarray]
OnBadImage = Literal["raise", "skip"]

# Undecodable, or of another size than its data set says.
BAD_IMAGE = (ImageError, DatasetError)
REPORT = "report"  # key under which workers send their counts along with a batch


class DetectionDataset(Protocol):
    """What batches are made from; every data set of `keras_densepred.data` is one."""

    @property
    def image_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    def ground_truth(self) -> dict: ...


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Writes a record into a row of a batch; images as bytes where `mean` and `std` are None."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    max_boxes: int

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("Give both `mean` and `std`, or neither for images as bytes.")

    def empty(self, batch_size: int, canvas: tuple[int, int]) -> Batch:
        """A batch of images `(height, width)` not yet written, all zero, without boxes."""
        dtype = np.uint8 if self.mean is None else np.float32
        return {
            "images": np.zeros((batch_size, *canvas, 3), dtype),
            "boxes": np.full((batch_size, self.max_boxes, 4), -1, np.float32),
            "labels": np.full((batch_size, self.max_boxes), -1, np.int32),
        }

    def write(self, batch: Batch, row: int, record: Record) -> int:
        """Returns how many boxes were dropped because the row is full."""
        height, width = record.size
        image, out = DeferredImage.of(record.image), batch["images"][row]
        if self.mean is None or self.std is None:
            if image.shape != out.shape:
                image = image.pad(out.shape[0], out.shape[1], PAD_COLOR)
            image.draw_into(out)
        else:
            # One look-up per byte, several times faster than arithmetic on the float image.
            levels = np.arange(256, dtype=np.float32)[:, None]
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
            image.draw_into(out[:height, :width], ((levels - mean) / std)[None])
        excess = len(record.labels) - self.max_boxes
        if excess > 0:
            area = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(1)
            record = record.select(np.sort(np.argsort(-area, kind="stable")[: self.max_boxes]))
        batch["boxes"][row, : len(record.boxes)] = record.boxes
        batch["labels"][row, : len(record.labels)] = record.labels
        return max(excess, 0)


def iterate(batches: Any, workers: int) -> Any:
    """A Grain iterator over a map data set of batches, two batches ahead for each worker."""
    grain = require("grain", "data")
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1 if workers else 2)
    iterable = batches.to_iter_dataset(threads)
    if workers:
        # grain 0.2.18: starting workers reads absl flags, which fails before a program parses its
        # command line with absl; plain scripts and notebooks never do.
        flags = require("absl.flags", "data").FLAGS
        if not flags.is_parsed():
            flags.mark_as_parsed()
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            worker_init_fn=_prepare_worker,
        )
    return iter(iterable)


def _prepare_worker(number: int, count: int) -> None:
    """One core for each worker: OpenCV's own threads would compete with the other workers."""
    del number, count
    require("cv2", "data").setNumThreads(1)


def check_arguments(
    dataset: DetectionDataset, batch_size: int, workers: int, on_bad_image: OnBadImage
) -> None:
    """Refuses what no batches can be made from or with."""
    require("cv2", "data")
    if not len(dataset):
        raise ValueError("The data set has no images.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, and is {batch_size}.")
    if workers < 0:
        raise ValueError(f"`workers` must not be negative, and is {workers}.")
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f'`on_bad_image` must be "raise" or "skip", and is {on_bad_image!r}.')


def without_crowd(record: Record) -> Record:
    """The record without its crowd regions, which neither training nor evaluation asks for."""
    return record.select(~record.crowd) if record.crowd.any() else record


def most_boxes(dataset: DetectionDataset) -> int:
    """The most objects in one image, crowd regions not counted; at least 1."""
    known = getattr(dataset, "max_objects", None)  # generated data knows without being drawn
    if known is not None:
        return int(known)
    annotations = dataset.ground_truth()["annotations"]
    counts = Counter(item["image_id"] for item in annotations if not item.get("iscrowd", 0))
    return max(counts.values(), default=1)
