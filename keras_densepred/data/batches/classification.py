"""Labelled images to batches on Grain, for training and for evaluating classifiers.

As of the detection data, training batch `k` depends on the seed, on `k` and on the data set only:
not on the number of workers, nor on that of the processes that share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.classification import (
    RandomResizedCrop,
    evaluation_crop,
    imagenet_augmentation,
)
from keras_densepred.data.augment.mixing import Mixing, soft_targets
from keras_densepred.data.augment.objects import Size, height_and_width
from keras_densepred.data.batches.evaluation import EvalBatches
from keras_densepred.data.batches.rows import (
    BAD_IMAGE,
    REPORT,
    OnBadImage,
    as_tuple,
    byte_table,
    check_arguments,
    check_seed,
    first_readable,
    passes_without_end,
    rows_of_process,
)
from keras_densepred.data.batches.stream import BatchStream
from keras_densepred.data.readers.classes import ClassificationDataset
from keras_densepred.data.records import LabelledImage


def train_class_batches(
    dataset: ClassificationDataset,
    *,
    batch_size: int,
    image_size: Size,
    seed: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augment: Sequence[Callable] | None = None,
    mixing: Mixing | None = None,
    label_smoothing: float = 0.0,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
    shard: tuple[int, int] = (0, 1),
) -> BatchStream:
    """Shuffled, augmented training batches without end.

    Every epoch is shuffled anew; batches go on across the end of an epoch. With `workers > 0` the
    calling script needs the usual `if __name__ == "__main__":`, because worker processes import it.

    Args:
        dataset: the training split.
        batch_size: images per batch, over all processes.
        image_size: of the network input, `(height, width)` or one number for both.
        seed: of the order, the augmentation and the mixing, `0 .. 2**32 - 1`.
        mean: of the three channels, RGB in 0..255. None for both of `mean` and `std` leaves the
            normalisation to the caller: images stay bytes.
        std: of the three channels, or None.
        augment: transforms `(H, W, 3) uint8, numpy.random.Generator -> (H, W, 3) uint8` in order;
            what the last returns has `image_size`. None means `imagenet_augmentation(image_size)`.
        mixing: of the images and targets of pairs, or None. The paper's is `Mixing()`.
        label_smoothing: share of each target that is spread over all classes (the paper's: 0.1).
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an unreadable image and names it; `"skip"` takes the next
            readable one in the data set's order and counts.
        shard: index of this process and number of processes. Process p of P gets rows
            `p * B / P` to `(p + 1) * B / P` of each batch, which has the same rows for any P.

    Returns:
        A stream of `{"images": (b, H, W, 3) float32, normalised, or uint8 RGB in 0..255,
        "targets": (b, num_classes) float32, each row summing to 1}` with `b = B / P`.

    Raises:
        ValueError: if the data set is empty or an argument is out of range; if the batch does not
            divide among the processes, or, with `mixing`, not into pairs.
        ImportError: if Grain, OpenCV or Pillow is not installed.
    """
    grain = require("grain", "data")
    check_arguments(dataset, batch_size, workers, on_bad_image)
    check_seed(seed)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must be in 0..1, and is {label_smoothing}.")
    rows = rows_of_process(batch_size, shard)
    rows_here = rows.stop - rows.start
    if mixing is not None and rows_here % 2:
        raise ValueError(
            f"Mixing takes images in pairs, and `batch_size` {batch_size} over {shard[1]} "
            f"processes leaves each an odd {rows_here}: use a multiple of {2 * shard[1]}."
        )
    steps = imagenet_augmentation(image_size) if augment is None else augment
    make_batch = _TrainBatchMaker(
        size=height_and_width(image_size),
        table=byte_table(as_tuple(mean), as_tuple(std)),
        num_classes=len(dataset.class_names),
        label_smoothing=label_smoothing,
        mixing=mixing,
        seed=seed,
        batch_size=batch_size,
    )
    batches = (
        grain.MapDataset.range(len(dataset))
        .seed(seed)
        .shuffle()
        .repeat(passes_without_end(len(dataset)))
        .random_map(_Augment(dataset, tuple(steps), on_bad_image))
        .map_with_index(_at_position)
        .batch(rows_here, batch_fn=make_batch)[shard[0] :: shard[1]]
    )
    identity = {"seed": seed, "batch_size": batch_size, "num_images": len(dataset)}
    return BatchStream(batches, identity, workers)


def eval_class_batches(
    dataset: ClassificationDataset,
    *,
    batch_size: int,
    image_size: Size,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    crop_ratio: float | None = 0.875,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
    shard: tuple[int, int] = (0, 1),
) -> EvalBatches:
    """Every image of a split once: the middle of the resized image, bicubic.

    Args:
        dataset: the split.
        batch_size: images per batch, over all processes.
        image_size: of the network input, `(height, width)` or one number for both.
        mean: of the three channels, RGB in 0..255, or None as in `train_class_batches`.
        std: of the three channels, or None.
        crop_ratio: share of the shorter side that is kept, see `evaluation_crop`; None warps the
            whole image.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an unreadable image and names it; `"skip"` gives it a row
            with `valid` False and counts.
        shard: index of this process and number of processes, which share each batch's rows: all
            have the same number of batches, and every image is in one of them once.

    Returns:
        An iterable with a length, of `{"images": (b, H, W, 3) float32 or uint8, "labels": (b,)
        int32, "valid": (b,) bool, "indices": (b,) int64, positions in the data set}`. The last
        batch is filled up with rows of zeros whose `valid` is False.

    Raises:
        ValueError: if the data set is empty or an argument is out of range.
        ImportError: if Grain, OpenCV or Pillow is not installed.
    """
    check_arguments(dataset, batch_size, workers, on_bad_image)
    if crop_ratio is not None and not 0 < crop_ratio <= 1:
        raise ValueError(f"`crop_ratio` must be in 0..1 and not 0, and is {crop_ratio}.")
    maker = _EvalBatchMaker(
        dataset=dataset,
        size=height_and_width(image_size),
        table=byte_table(as_tuple(mean), as_tuple(std)),
        crop_ratio=crop_ratio,
        batch_size=batch_size,
        rows=rows_of_process(batch_size, shard),
        on_bad_image=on_bad_image,
    )
    return EvalBatches(maker, -(-len(dataset) // batch_size), workers)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """An augmented image, and the unreadable files met on the way to it."""

    image: np.ndarray
    label: int
    file_name: str
    skipped: tuple[str, ...]
    position: int = 0  # in the stream


def _at_position(position: int, sample: _Sample) -> _Sample:
    return dataclasses.replace(sample, position=position)


@dataclasses.dataclass(frozen=True)
class _Augment:
    """Index -> augmented image, with the random numbers that Grain gives for this position."""

    dataset: ClassificationDataset
    transforms: tuple[Callable, ...]
    on_bad_image: OnBadImage

    def __call__(self, index: int, rng: np.random.Generator) -> _Sample:
        skipped: list[str] = []

        def make(number: int) -> _Sample:
            found = self._read(number)
            image = found.image
            for transform in self.transforms:
                image = transform(image, rng)
            return _Sample(image, found.label, found.file_name, ())

        sample = first_readable(make, index, len(self.dataset), self.on_bad_image, skipped)
        return dataclasses.replace(sample, skipped=tuple(skipped))

    def _read(self, index: int) -> LabelledImage:
        # Others than the crop look at pixels.
        starts_with_crop = self.transforms and type(self.transforms[0]) is RandomResizedCrop
        encoded = getattr(self.dataset, "encoded", None)
        return encoded(index) if encoded and starts_with_crop else self.dataset[index]


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainBatchMaker:
    """Samples -> a batch."""

    size: tuple[int, int]
    table: np.ndarray | None
    num_classes: int
    label_smoothing: float
    mixing: Mixing | None
    seed: int
    batch_size: int

    def __call__(self, samples: Sequence[_Sample]) -> dict[str, Any]:
        images = _empty(len(samples), self.size, self.table)
        for row, sample in enumerate(samples):
            if sample.image.shape[:2] != self.size:
                raise ValueError(
                    f"{sample.file_name}: the augmentation gives an image of "
                    f"{sample.image.shape[0]}x{sample.image.shape[1]} pixels, and `image_size` is "
                    f"{self.size[0]}x{self.size[1]}; begin it with RandomResizedCrop."
                )
            _write(images[row], sample.image, self.table)
        labels = np.array([sample.label for sample in samples])
        targets = soft_targets(labels, self.num_classes, self.label_smoothing)
        if self.mixing is not None:
            number, first_row = divmod(samples[0].position, self.batch_size)
            self.mixing.apply(images, targets, seed=self.seed, number=number, first_row=first_row)
        skipped = [name for sample in samples for name in sample.skipped]
        return {"images": images, "targets": targets, REPORT: (skipped, 0)}


@dataclasses.dataclass(frozen=True, eq=False)
class _EvalBatchMaker:
    """Number of a batch -> the batch."""

    dataset: ClassificationDataset
    size: tuple[int, int]
    table: np.ndarray | None
    crop_ratio: float | None
    batch_size: int
    rows: slice
    on_bad_image: OnBadImage

    def __call__(self, number: int) -> dict[str, Any]:
        first = number * self.batch_size
        indices = np.arange(first + self.rows.start, first + self.rows.stop)
        images = _empty(len(indices), self.size, self.table)
        labels = np.zeros(len(indices), np.int32)
        valid = np.zeros(len(indices), bool)
        skipped: list[str] = []
        for row, index in enumerate(indices[indices < len(self.dataset)].tolist()):
            try:
                found = self.dataset[index]
            except BAD_IMAGE as error:
                if self.on_bad_image == "raise":
                    raise
                skipped.append(str(error))
                continue
            cropped = evaluation_crop(found.image, self.size, self.crop_ratio)
            _write(images[row], cropped, self.table)
            labels[row], valid[row] = found.label, True
        return {
            "images": images,
            "labels": labels,
            "valid": valid,
            "indices": indices,
            REPORT: (skipped, 0),
        }


def _empty(rows: int, size: tuple[int, int], table: np.ndarray | None) -> np.ndarray:
    return np.zeros((rows, *size, 3), np.uint8 if table is None else table.dtype)


def _write(out: np.ndarray, image: np.ndarray, table: np.ndarray | None) -> None:
    if table is None:
        out[...] = image
    else:
        require("cv2", "data").LUT(image, table, dst=out)
