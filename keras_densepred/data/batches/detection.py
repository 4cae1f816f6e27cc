"""Records with boxes to batches, for training and for evaluating detectors."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred.data.augment.objects import ResizeToFit, resize
from keras_densepred.data.augment.transform import Size, as_transforms, height_and_width
from keras_densepred.data.batches.rows import AugmentRecords, ObjectRows
from keras_densepred.data.batches.stream import (
    BAD_IMAGE,
    REPORT,
    BatchStream,
    EvalBatches,
    Sample,
    check_arguments,
    check_seed,
    rows_of_process,
    training_stream,
)
from keras_densepred.data.image_files import OnBadImage
from keras_densepred.data.records import DetectionDataset, Record


def train_batches(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    image_size: Size,
    seed: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augment: Sequence[Callable] | None = None,
    max_boxes: int | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
    shard: tuple[int, int] = (0, 1),
    mask_size: int | None = None,
) -> BatchStream:
    """Shuffled, augmented training batches without end.

    Every epoch is shuffled anew; batches go on across the end of an epoch. Crowd regions are left
    out. With `workers > 0` the calling script needs the usual `if __name__ == "__main__":`,
    because worker processes import it.

    Args:
        dataset: the training split.
        batch_size: images per batch, over all processes.
        image_size: of the network input, `(height, width)` or one number for both.
        seed: of the order and of the augmentation, `0 .. 2**32 - 1`.
        mean: of the three channels, RGB in 0..255. None for both of `mean` and `std` leaves the
            normalisation to the caller: images stay bytes, a quarter of the memory to write, to
            hand from process to process and to send to the device.
        std: of the three channels, or None.
        augment: transforms (see `augment`) in order; what they return may be smaller than
            `image_size` (padding follows on the right and below: zero, or where images stay bytes
            `PAD_COLOR`) but not larger. None means resizing to fit.
        max_boxes: boxes per image; the largest are kept where there are more. None takes the most
            that an image of the data set has, copy-paste included.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an unreadable image and names it; `"skip"` takes the next
            readable one in the data set's order and counts.
        shard: index of this process and number of processes. Process p of P gets rows
            `p * B / P` to `(p + 1) * B / P` of each batch, which has the same rows for any P.
        mask_size: for mask heads, cells on a side of each object's mask, cut out by its box (112
            is four times what they predict); None for no masks. The data set must have them
            (`with_masks=True`).

    Returns:
        A stream of `{"images": (B, H, W, 3) float32, normalised, or uint8 RGB in 0..255,
        "image_sizes": (B, 2) int32 (height, width) of what the augmentation gave, without the
        padding on the right and below, "boxes": (B, max_boxes, 4) float32 xyxy in pixels of the
        network input, "labels": (B, max_boxes) int32}`; unused boxes and labels are -1. With
        `mask_size` also `"masks"` (B, max_boxes, mask_size, mask_size) uint8, 1 on the object,
        else 0.

    Raises:
        ValueError: if the data set is empty or an argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    check_arguments(dataset, batch_size, workers, on_bad_image)
    check_seed(seed)
    transforms = as_transforms([ResizeToFit(image_size)] if augment is None else augment)
    if max_boxes is None:
        most = most_boxes(dataset)
        max_boxes = most + sum(transform.most_added(most) for transform in transforms)
    if mask_size is not None and mask_size < 1:
        raise ValueError(f"`mask_size` must be positive or None, and is {mask_size}.")
    rows = ObjectRows(mean, std, max_boxes, mask_size)
    read = _WithoutCrowd(dataset)
    return training_stream(
        dataset,
        AugmentRecords(read, len(dataset), transforms, on_bad_image),
        _TrainBatchMaker(rows, height_and_width(image_size)),
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        shard=shard,
        max_boxes=max_boxes,
    )


def eval_batches(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: Size | None = None,
    short_side: int | None = None,
    long_side: int | None = None,
    pad_multiple: int = 128,
    stretch: bool = False,
    max_boxes: int | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
    shard: tuple[int, int] = (0, 1),
) -> EvalBatches:
    """Every image of a split once, resized with its aspect ratio and padded with zeros.

    With `stretch`, images fill `image_size` and lose their aspect ratio, as Darknet's do.

    Either `image_size` is given, and images are resized to fit inside; or `short_side` and
    `long_side` (the paper's test: 800, 1333), and images are resized until their shorter side is
    `short_side` or their longer side `long_side`, whichever comes first. In the second case there
    are two input shapes, one for wide and one for tall images (896x1408 and 1408x896 in the
    paper's setting): all wide images come first, then the tall ones, so that a compiling backend
    compiles twice and not once for each aspect ratio. The authors pad each batch to the next
    multiple of 128 instead; more padding on the right and below changes nothing for the objects.

    Args:
        dataset: the split.
        batch_size: images per batch, over all processes.
        mean: of the three channels, RGB in 0..255. None for both of `mean` and `std` leaves images
            as bytes.
        std: of the three channels, or None.
        image_size: of the network input, `(height, width)` or one number for both.
        short_side: in pixels.
        long_side: in pixels.
        pad_multiple: with `short_side`: both sides of the input are multiples of this.
        stretch: whether images are resized to `image_size` itself and not to fit inside.
        max_boxes: boxes per image; None takes the most that an image of the data set has.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an unreadable image and names it; `"skip"` gives it a row
            with `valid` False and counts.
        shard: index of this process and number of processes, which share each batch's rows: all
            have the same number of batches, and every image is in one of them once.

    Returns:
        An iterable with a length, of batches as `train_batches` makes them, with `"image_ids"`
        `(B,)` int64, `"scales"` `(B, 2)` float32 (y, x: pixels of the input per original pixel)
        and `"valid"` `(B,)` bool. The last batch of a shape is filled up with rows of `valid`
        False; all batches have as many rows.

    Raises:
        ValueError: if the data set is empty or an argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    check_arguments(dataset, batch_size, workers, on_bad_image)
    rows_here = rows_of_process(batch_size, shard)
    if stretch and image_size is None:
        raise ValueError("`stretch` needs an `image_size` to stretch images to.")
    indices = np.arange(len(dataset))
    if image_size is not None and short_side is None and long_side is None:
        canvas = height_and_width(image_size)
        groups = [(canvas, indices)]
        limits = None
    elif image_size is None and short_side is not None and long_side is not None:
        if not 1 <= short_side <= long_side or pad_multiple < 1:
            raise ValueError(
                f"`short_side` {short_side}, `long_side` {long_side} and `pad_multiple` "
                f"{pad_multiple} must be positive, the short side not longer than the long one."
            )
        limits = (short_side, long_side)
        short, long = (-(-side // pad_multiple) * pad_multiple for side in limits)
        wide = _is_wide(dataset)
        groups = [((short, long), indices[wide]), ((long, short), indices[~wide])]
    else:
        raise ValueError("Give either `image_size`, or both `short_side` and `long_side`.")
    plan = [
        (canvas, members[start : start + batch_size][rows_here])
        for canvas, members in groups
        for start in range(0, len(members), batch_size)
    ]
    rows = ObjectRows(mean, std, max_boxes or most_boxes(dataset))
    rows_count = rows_here.stop - rows_here.start
    maker = _EvalBatchMaker(
        _WithoutCrowd(dataset), rows, rows_count, plan, limits, stretch, on_bad_image
    )
    return EvalBatches(maker, len(plan), workers, rows.max_boxes)


@dataclasses.dataclass(frozen=True)
class _WithoutCrowd:
    """Index -> record without crowd regions, which neither training nor evaluation asks for."""

    dataset: DetectionDataset

    def __call__(self, index: int) -> Record:
        record = self.dataset[index]
        return record.select(~record.crowd) if record.crowd.any() else record


@dataclasses.dataclass(frozen=True)
class _TrainBatchMaker:
    """Samples -> a batch."""

    rows: ObjectRows
    canvas: tuple[int, int]

    def __call__(self, samples: Sequence[Sample[Record]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.rows.empty(len(samples), self.canvas)
        dropped = 0
        for row, sample in enumerate(samples):
            height, width = sample.item.size
            if height > self.canvas[0] or width > self.canvas[1]:
                raise ValueError(
                    f"{sample.item.file_name}: the augmentation gives an image of "
                    f"{height}x{width} pixels, larger than `image_size` "
                    f"{self.canvas[0]}x{self.canvas[1]}; end it with FixedSizeCrop or ResizeToFit."
                )
            dropped += self.rows.write(batch, row, sample.item)
        skipped = [name for sample in samples for name in sample.skipped]
        return {**batch, REPORT: (skipped, dropped)}


@dataclasses.dataclass(frozen=True)
class _EvalBatchMaker:
    """Number of a batch -> the batch."""

    read: Callable[[int], Record]
    rows: ObjectRows
    batch_size: int
    plan: list[tuple[tuple[int, int], np.ndarray]]
    limits: tuple[int, int] | None
    stretch: bool
    on_bad_image: OnBadImage

    def __call__(self, number: int) -> dict[str, Any]:
        canvas, indices = self.plan[number]
        batch: dict[str, Any] = self.rows.empty(self.batch_size, canvas)
        batch["image_ids"] = np.zeros(self.batch_size, np.int64)
        batch["scales"] = np.ones((self.batch_size, 2), np.float32)
        batch["valid"] = np.zeros(self.batch_size, bool)
        skipped: list[str] = []
        dropped = 0
        for row, index in enumerate(indices):
            try:
                record = self.read(int(index))
            except BAD_IMAGE as error:
                if self.on_bad_image == "raise":
                    raise
                skipped.append(str(error))
                continue
            resized = resize(record, *self._resized(record.size, canvas))
            dropped += self.rows.write(batch, row, resized)
            batch["image_ids"][row] = record.image_id
            batch["scales"][row] = np.divide(resized.size, record.size)
            batch["valid"][row] = True
        for row in range(len(indices), self.batch_size if len(indices) else 0):
            for name in ("images", "image_sizes", "boxes", "labels", "image_ids", "scales"):
                batch[name][row] = batch[name][len(indices) - 1]
        return {**batch, REPORT: (skipped, dropped)}

    def _resized(self, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
        if self.stretch:
            return canvas
        # The canvas also bounds an image that is tall where its data set says wide.
        factor = min(canvas[0] / size[0], canvas[1] / size[1])
        if self.limits is not None:
            short, long = self.limits
            factor = min(factor, short / min(size), long / max(size))
        return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def _is_wide(dataset: DetectionDataset) -> np.ndarray:
    """Whether each image is at least as wide as high, `(len(dataset),)` bool, by its listing."""
    images = {item["id"]: item for item in dataset.ground_truth()["images"]}
    listed = [images[image_id] for image_id in dataset.image_ids]
    return np.array([item["width"] >= item["height"] for item in listed], bool)


def most_boxes(dataset: DetectionDataset) -> int:
    """The most objects in one image, crowd regions not counted; at least 1."""
    known = getattr(dataset, "max_objects", None)  # generated data knows without being drawn
    if known is not None:
        return int(known)
    annotations = dataset.ground_truth()["annotations"]
    counts = Counter(item["image_id"] for item in annotations if not item.get("iscrowd", 0))
    return max(counts.values(), default=1)
