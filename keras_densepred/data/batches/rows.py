"""What batches for training and for evaluation share: rows from records, and Grain underneath."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.lazy_image import DeferredImage
from keras_densepred.data.augment.objects import PAD_COLOR
from keras_densepred.data.batches.box_masks import cut_by_boxes
from keras_densepred.data.image_files import ImageError
from keras_densepred.data.readers.objects import DatasetError
from keras_densepred.data.records import Record

Batch = dict[str, np.ndarray]
OnBadImage = Literal["raise", "skip"]

# Undecodable, or of another size than its data set says.
BAD_IMAGE = (ImageError, DatasetError)
REPORT = "report"  # key under which workers send their counts along with a batch
# With so many unreadable images in a row something is wrong with the data set, not with an image.
_MOST_BAD_IN_A_ROW = 100

Item = TypeVar("Item")


class DetectionDataset(Protocol):
    """What batches are made from; every data set of `keras_densepred.data` is one."""

    @property
    def image_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    def ground_truth(self) -> dict: ...


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Writes a record into a row of a batch; images as bytes where `mean` and `std` are None.

    With `mask_size` batches have the objects' masks, cut out by their boxes.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    max_boxes: int
    mask_size: int | None = None

    def __post_init__(self) -> None:
        byte_table(self.mean, self.std)

    def empty(self, batch_size: int, canvas: tuple[int, int]) -> Batch:
        """A batch of images `(height, width)` not yet written, all zero, without boxes."""
        dtype = np.uint8 if self.mean is None else np.float32
        batch = {
            "images": np.zeros((batch_size, *canvas, 3), dtype),
            "boxes": np.full((batch_size, self.max_boxes, 4), -1, np.float32),
            "labels": np.full((batch_size, self.max_boxes), -1, np.int32),
        }
        if self.mask_size is not None:
            shape = (batch_size, self.max_boxes, self.mask_size, self.mask_size)
            batch["masks"] = np.zeros(shape, np.uint8)
        return batch

    def write(self, batch: Batch, row: int, record: Record) -> int:
        """Returns how many boxes were dropped because the row is full."""
        height, width = record.size
        image, out = DeferredImage.of(record.image), batch["images"][row]
        table = byte_table(self.mean, self.std)
        if table is None:
            if image.shape != out.shape:
                image = image.pad(out.shape[0], out.shape[1], PAD_COLOR)
            image.draw_into(out)
        else:
            image.draw_into(out[:height, :width], table)
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


def byte_table(mean: Sequence[float] | None, std: Sequence[float] | None) -> np.ndarray | None:
    """The normalised value of each byte: a look-up is several times faster than arithmetic.

    Returns:
        `(1, 256, 3)` float32, by byte and channel, or None where images stay bytes.

    Raises:
        ValueError: if only one of the two is given.
    """
    if (mean is None) != (std is None):
        raise ValueError("Give both `mean` and `std`, or neither for images as bytes.")
    if mean is None or std is None:
        return None
    levels = np.arange(256, dtype=np.float32)[:, None]
    return ((levels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32))[None]


def as_tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    """`mean` or `std` as they are kept."""
    return None if values is None else tuple(values)


def passes_without_end(num_images: int) -> int:
    """How often a stream goes through its data: more batches than any run takes.

    Grain 0.2 counts `repeat()` without a number as the largest integer there is, which batches of
    one row exceed by its rounding.
    """
    return max(1, 2**40 // num_images)


def rows_of_process(batch_size: int, shard: tuple[int, int]) -> slice:
    """Which rows of each global batch a process makes.

    Args:
        batch_size: rows of a global batch.
        shard: index of the process and number of processes.

    Returns:
        The rows, as many for each process.

    Raises:
        ValueError: if the rows do not divide among the processes, or there is no such process.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(
            "`shard` must be the index of a process, from 0, and the number of processes, and is "
            f"{shard}."
        )
    if batch_size % count:
        raise ValueError(
            f"`batch_size` {batch_size} does not divide among {count} processes: use a multiple of "
            f"{count}."
        )
    rows = batch_size // count
    return slice(index * rows, (index + 1) * rows)


def first_readable(
    make: Callable[[int], Item],
    index: int,
    count: int,
    on_bad_image: OnBadImage,
    skipped: list[str],
) -> Item:
    """What `make` gives for an image, or for the next one that can be read.

    Args:
        make: index of an image -> what is made of it.
        index: of the image.
        count: images of the data set.
        on_bad_image: `"raise"` does not look further.
        skipped: takes what was wrong with those passed over.

    Raises:
        ImageError: if too many in a row cannot be read.
    """
    if on_bad_image == "raise":
        return make(index)
    first_error: Exception | None = None
    for step in range(min(count, _MOST_BAD_IN_A_ROW)):
        try:
            return make((index + step) % count)
        except BAD_IMAGE as error:
            skipped.append(str(error))
            first_error = first_error or error
    raise ImageError(
        f"{len(skipped)} images in a row could not be read, the first because: {first_error}"
    )


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
    dataset: Sized, batch_size: int, workers: int, on_bad_image: OnBadImage
) -> None:
    """Refuses what no batches can be made from or with."""
    require("cv2", "data")
    if not len(dataset):
        raise ValueError("The data set has no images.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, and is {batch_size}.")
    if workers < 0:
        raise ValueError(f"`workers` must not be negative, and is {workers}.")
    check_on_bad_image(on_bad_image)


def check_seed(seed: int) -> None:
    """Refuses what Grain does not take."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be in 0..2**32-1, and is {seed}.")


def check_on_bad_image(on_bad_image: OnBadImage) -> None:
    """Refuses another word than the two."""
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
