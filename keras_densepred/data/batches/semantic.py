"""Records with semantic labels to batches, for training and for evaluating segmenters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred.data.augment.objects import resize
from keras_densepred.data.augment.semantic import segmentation_augmentation
from keras_densepred.data.augment.transform import Size, as_transforms, height_and_width
from keras_densepred.data.batches.rows import AugmentRecords, ImageRows
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
from keras_densepred.data.records import IGNORE_LABEL, Record, SegmentationDataset


def train_mask_batches(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    image_size: Size,
    seed: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augment: Sequence[Callable] | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
    shard: tuple[int, int] = (0, 1),
) -> BatchStream:
    """Shuffled, augmented training batches without end, as `train_batches` makes them.

    Batch `k` depends on the seed, on `k` and on the data set only.

    Args:
        dataset: the training split.
        batch_size: images per batch, over all processes.
        image_size: of the network input, `(height, width)` or one number for both.
        seed: of the order and of the augmentation, `0 .. 2**32 - 1`.
        mean: of the three channels, RGB in 0..255. None for both of `mean` and `std` leaves images
            as bytes.
        std: of the three channels, or None.
        augment: transforms (see `data.augment`) in order; what they return may be
            smaller than `image_size` (padding follows on the right and below) but not larger.
            None means `segmentation_augmentation(image_size)`.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an image or mask that cannot be used and names it;
            `"skip"` takes the next one in the data set's order and counts.
        shard: index of this process and number of processes. Process p of P gets rows
            `p * B / P` to `(p + 1) * B / P` of each batch, which has the same rows for any P.

    Returns:
        A stream of `{"images": (B, H, W, 3) float32, normalised, or uint8 RGB in 0..255,
        "image_sizes": (B, 2) int32 (height, width) without the padding on the right and below,
        "semantic": (B, H, W) int32}`, with `IGNORE_LABEL` (255) where there is no class.

    Raises:
        ValueError: if the data set is empty, has no semantic labels (when a batch is made), or an
            argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    check_arguments(dataset, batch_size, workers, on_bad_image)
    check_seed(seed)
    steps = segmentation_augmentation(image_size) if augment is None else augment
    rows = ImageRows(mean, std)
    read = _SemanticOnly(dataset)
    return training_stream(
        dataset,
        AugmentRecords(read, len(dataset), as_transforms(steps), on_bad_image),
        _TrainBatchMaker(rows, height_and_width(image_size)),
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        shard=shard,
    )


def eval_mask_batches(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: Size | None = None,
    pad_multiple: int = 32,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
    shard: tuple[int, int] = (0, 1),
) -> EvalBatches:
    """Every image of a split once, with its labels at the image's own size.

    With `image_size` images are resized to fit inside of that frame, their aspect ratio kept, and
    padded. Without it they stay as they are and are padded to one of two frames, one for wide and
    one for tall images (wide ones come first), each as large as the largest of its kind, so that a
    compiling backend compiles twice and not once for each size. Padding is the mean colour.

    Args:
        dataset: the split. Without `image_size` its `image_sizes`, `(N, 2)` height and width, are
            used where it has them; otherwise every mask is read once to know them.
        batch_size: images per batch, over all processes.
        mean: of the three channels, RGB in 0..255. None for both leaves images as bytes.
        std: of the three channels, or None.
        image_size: of the network input, `(height, width)` or one number for both; None for the
            images' own sizes.
        pad_multiple: without `image_size`, both sides of the input are multiples of this.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an image or mask that cannot be used; `"skip"` gives it a
            row with `valid` False and counts.
        shard: index of this process and number of processes, which share each batch's rows.

    Returns:
        An iterable with a length, of batches with
        - `"images"` (B, H, W, 3) as for training,
        - `"image_sizes"` (B, 2) int32, the height and width that the image takes of that,
        - `"semantic"` (B, Y, X) int32, labels at their image's own size in the upper left corner,
            `IGNORE_LABEL` around them; Y and X are those of the batch's largest,
        - `"semantic_sizes"` (B, 2) int32, that height and width,
        - `"indices"` (B,) int64, positions in the data set, and `"valid"` (B,) bool.

        The last batch of a shape is filled up with rows of `valid` False.

    Raises:
        ValueError: if the data set is empty or an argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    check_arguments(dataset, batch_size, workers, on_bad_image)
    rows_here = rows_of_process(batch_size, shard)
    if pad_multiple < 1:
        raise ValueError(f"`pad_multiple` must be at least 1, and is {pad_multiple}.")
    indices = np.arange(len(dataset))
    if image_size is not None:
        groups = [(height_and_width(image_size), indices)]
    else:
        sizes = _image_sizes(dataset, on_bad_image)
        wide = sizes[:, 1] >= sizes[:, 0]
        groups = []
        for members in (indices[wide], indices[~wide]):
            if len(members):
                height, width = (-(-sizes[members].max(axis=0) // pad_multiple)).tolist()
                groups.append(((height * pad_multiple, width * pad_multiple), members))
    plan = [
        (frame, members[start : start + batch_size][rows_here])
        for frame, members in groups
        for start in range(0, len(members), batch_size)
    ]
    maker = _EvalBatchMaker(
        read=_SemanticOnly(dataset),
        rows=ImageRows(mean, std),
        batch_size=rows_here.stop - rows_here.start,
        plan=plan,
        fit=image_size is not None,
        on_bad_image=on_bad_image,
    )
    return EvalBatches(maker, len(plan), workers)


@dataclasses.dataclass(frozen=True)
class _SemanticOnly:
    """Index -> record without objects, which augmentation would carry along for nothing."""

    dataset: SegmentationDataset

    def __call__(self, index: int) -> Record:
        record = self.dataset[index]
        if record.semantic is None:
            raise ValueError(
                f"{record.file_name} has no semantic labels: give a data set for segmentation, "
                "such as VocSegmentation, MaskFolder or ShapesSegmentation."
            )
        record = record.replace(masks=None) if record.masks is not None else record
        return record.select(np.zeros(len(record.labels), bool)) if len(record.labels) else record


@dataclasses.dataclass(frozen=True)
class _TrainBatchMaker:
    """Augmented records -> a batch."""

    rows: ImageRows
    frame: tuple[int, int]

    def __call__(self, samples: Sequence[Sample[Record]]) -> dict[str, Any]:
        images = self.rows.empty_images(len(samples), self.frame)
        semantic = np.full((len(samples), *self.frame), IGNORE_LABEL, np.int32)
        sizes = np.zeros((len(samples), 2), np.int32)
        for row, sample in enumerate(samples):
            record = sample.item
            height, width = record.size
            if height > self.frame[0] or width > self.frame[1]:
                raise ValueError(
                    f"{record.file_name}: the augmentation gives an image of {height}x{width} "
                    f"pixels, larger than `image_size` {self.frame[0]}x{self.frame[1]}; let it "
                    "begin with RandomScaleCrop or ResizeToFit."
                )
            self.rows.write_image(images[row], record.image)
            assert record.semantic is not None
            semantic[row, :height, :width] = record.semantic
            sizes[row] = height, width
        skipped = [name for sample in samples for name in sample.skipped]
        batch = {"images": images, "image_sizes": sizes, "semantic": semantic}
        return {**batch, REPORT: (skipped, 0)}


@dataclasses.dataclass(frozen=True)
class _EvalBatchMaker:
    """Number of a batch -> the batch."""

    read: Callable[[int], Record]
    rows: ImageRows
    batch_size: int
    plan: list[tuple[tuple[int, int], np.ndarray]]
    fit: bool
    on_bad_image: OnBadImage

    def __call__(self, number: int) -> dict[str, Any]:
        frame, indices = self.plan[number]
        batch: dict[str, Any] = {
            "images": self.rows.empty_images(self.batch_size, frame),
            "semantic_sizes": np.zeros((self.batch_size, 2), np.int32),
            "image_sizes": np.zeros((self.batch_size, 2), np.int32),
            "indices": np.zeros(self.batch_size, np.int64),
            "valid": np.zeros(self.batch_size, bool),
        }
        skipped: list[str] = []
        labels: dict[int, np.ndarray] = {}
        for row, index in enumerate(indices.tolist()):
            try:
                record = self.read(index)
            except BAD_IMAGE as error:
                if self.on_bad_image == "raise":
                    raise
                skipped.append(str(error))
                continue
            assert record.semantic is not None
            labels[row] = record.semantic
            image = resize(record.replace(semantic=None), *self._resized(record.size, frame))
            self.rows.write_image(batch["images"][row], image.image)
            batch["semantic_sizes"][row] = record.size
            batch["image_sizes"][row] = image.size
            batch["indices"][row] = index
            batch["valid"][row] = True
        extent = batch["semantic_sizes"].max(axis=0)
        batch["semantic"] = np.full((self.batch_size, *extent), IGNORE_LABEL, np.int32)
        for row, semantic in labels.items():
            batch["semantic"][row, : semantic.shape[0], : semantic.shape[1]] = semantic
        return {**batch, REPORT: (skipped, 0)}

    def _resized(self, size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
        # The frame also bounds an image that is larger than its data set says.
        factor = min(frame[0] / size[0], frame[1] / size[1])
        factor = factor if self.fit else min(factor, 1.0)
        return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def _image_sizes(dataset: SegmentationDataset, on_bad_image: OnBadImage) -> np.ndarray:
    """Height and width of each image, `(N, 2)`; an unreadable one to be skipped is 1x1."""
    known = getattr(dataset, "image_sizes", None)
    if known is not None:
        return np.asarray(known)
    read_mask = getattr(dataset, "mask", None)  # images need not be decoded then
    sizes = np.ones((len(dataset), 2), np.int64)
    for index in range(len(dataset)):
        try:
            sizes[index] = dataset[index].size if read_mask is None else read_mask(index).shape
        except BAD_IMAGE:
            if on_bad_image == "raise":
                raise
    return sizes
