"""Labelled images to batches, for training and for evaluating classifiers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred.data.augment.classification import evaluation_crop, imagenet_augmentation
from keras_densepred.data.augment.mixing import Mixing, soft_targets
from keras_densepred.data.augment.transform import (
    Size,
    Transform,
    as_transforms,
    height_and_width,
)
from keras_densepred.data.batches.rows import ImageRows
from keras_densepred.data.batches.stream import (
    BAD_IMAGE,
    REPORT,
    BatchStream,
    EvalBatches,
    Sample,
    check_arguments,
    check_seed,
    first_readable,
    rows_of_process,
    training_stream,
)
from keras_densepred.data.image_files import OnBadImage
from keras_densepred.data.records import ClassificationDataset, LabelledImage


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
    blend_later: bool = False,
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
        blend_later: whether mixup is left to what normalises the images, where they stay bytes:
            what is between two bytes would be rounded. Batches then say how much.
        label_smoothing: share of each target that is spread over all classes (the paper's: 0.1).
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an unreadable image and names it; `"skip"` takes the next
            readable one in the data set's order and counts.
        shard: index of this process and number of processes. Process p of P gets rows
            `p * B / P` to `(p + 1) * B / P` of each batch, which has the same rows for any P.

    Returns:
        A stream of `{"images": (b, H, W, 3) float32, normalised, or uint8 RGB in 0..255,
        "targets": (b, num_classes) float32, each row summing to 1}` with `b = B / P`. With
        `blend_later` also `"shares"` (b,) float32: of row 0 this part is to be left, the rest is
        of row 1, and the same of row 1 and row 0, of rows 2 and 3, and so on.

    Raises:
        ValueError: if the data set is empty or an argument is out of range; if the batch does not
            divide among the processes, or, with `mixing`, not into pairs.
        ImportError: if Grain, OpenCV or Pillow is not installed.
    """
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
    steps = as_transforms(imagenet_augmentation(image_size) if augment is None else augment)
    for step in steps:
        if step.num_others:
            raise ValueError(f"{step} takes further images, which is for boxes: use `mixing` here.")
    make_batch = _TrainBatchMaker(
        rows=ImageRows(mean, std),
        size=height_and_width(image_size),
        num_classes=len(dataset.class_names),
        label_smoothing=label_smoothing,
        mixing=mixing,
        blend_later=blend_later,
        seed=seed,
        batch_size=batch_size,
    )
    return training_stream(
        dataset,
        _Augment(dataset, steps, on_bad_image),
        make_batch,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        shard=shard,
    )


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
        rows=ImageRows(mean, std),
        size=height_and_width(image_size),
        crop_ratio=crop_ratio,
        batch_size=batch_size,
        rows_here=rows_of_process(batch_size, shard),
        on_bad_image=on_bad_image,
    )
    return EvalBatches(maker, -(-len(dataset) // batch_size), workers)


@dataclasses.dataclass(frozen=True)
class _Augment:
    """Index -> augmented image, with the random numbers of a position in the stream."""

    dataset: ClassificationDataset
    transforms: tuple[Transform, ...]
    on_bad_image: OnBadImage

    def __call__(self, index: int, rng: np.random.Generator) -> Sample[LabelledImage]:
        skipped: list[str] = []

        def make(number: int) -> LabelledImage:
            found = self._read(number)
            image = found.image
            for transform in self.transforms:
                image = _checked(transform(image, rng), image.shape, found.file_name, transform)
            return dataclasses.replace(found, image=image)

        made = first_readable(make, index, len(self.dataset), self.on_bad_image, skipped)
        return Sample(made, tuple(skipped))

    def _read(self, index: int) -> LabelledImage:
        # A JPEG's decoder can leave out what a crop does not need.
        encoded = getattr(self.dataset, "encoded", None)
        can_wait = self.transforms and self.transforms[0].takes_lazy_image
        return encoded(index) if encoded and can_wait else self.dataset[index]


def _checked(
    changed: Any, before: tuple[int, ...], file_name: str, transform: Transform
) -> np.ndarray:
    """What a transform returned, if that is what it promised."""
    if not isinstance(changed, np.ndarray) or changed.dtype != np.uint8 or changed.ndim != 3:
        raise ValueError(
            f"{file_name}: the transform {transform} returned a {type(changed).__name__}, and must "
            "return an image, an array (H, W, 3) of uint8."
        )
    if not transform.geometric and changed.shape != before:
        raise ValueError(
            f"{file_name}: the transform {transform} has `geometric = False` and made an image of "
            f"shape {before} one of {changed.shape}."
        )
    return changed


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainBatchMaker:
    """Samples -> a batch."""

    rows: ImageRows
    size: tuple[int, int]
    num_classes: int
    label_smoothing: float
    mixing: Mixing | None
    blend_later: bool
    seed: int
    batch_size: int

    def __call__(self, samples: Sequence[Sample[LabelledImage]]) -> dict[str, Any]:
        images = self.rows.empty_images(len(samples), self.size)
        for row, sample in enumerate(samples):
            height, width = sample.item.image.shape[:2]
            if (height, width) != self.size:
                raise ValueError(
                    f"{sample.item.file_name}: the augmentation gives an image of "
                    f"{height}x{width} pixels, and `image_size` is {self.size[0]}x{self.size[1]}; "
                    "begin it with RandomResizedCrop."
                )
            self.rows.write_image(images[row], sample.item.image)
        labels = np.array([sample.item.label for sample in samples])
        targets = soft_targets(labels, self.num_classes, self.label_smoothing)
        batch = {"images": images, "targets": targets}
        if self.blend_later:
            batch["shares"] = np.ones(len(samples), np.float32)
        if self.mixing is not None:
            number, first_row = divmod(samples[0].position, self.batch_size)
            self.mixing.apply(
                images,
                targets,
                seed=self.seed,
                number=number,
                first_row=first_row,
                shares=batch.get("shares"),
            )
        skipped = [name for sample in samples for name in sample.skipped]
        return {**batch, REPORT: (skipped, 0)}


@dataclasses.dataclass(frozen=True, eq=False)
class _EvalBatchMaker:
    """Number of a batch -> the batch."""

    dataset: ClassificationDataset
    rows: ImageRows
    size: tuple[int, int]
    crop_ratio: float | None
    batch_size: int
    rows_here: slice
    on_bad_image: OnBadImage

    def __call__(self, number: int) -> dict[str, Any]:
        first = number * self.batch_size
        indices = np.arange(first + self.rows_here.start, first + self.rows_here.stop)
        images = self.rows.empty_images(len(indices), self.size)
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
            self.rows.write_image(images[row], cropped)
            labels[row], valid[row] = found.label, True
        return {
            "images": images,
            "labels": labels,
            "valid": valid,
            "indices": indices,
            REPORT: (skipped, 0),
        }
