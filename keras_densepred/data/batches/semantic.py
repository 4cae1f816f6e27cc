"""Records with semantic labels to batches, for training and for evaluation, on Grain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.objects import Size, height_and_width, resize
from keras_densepred.data.augment.semantic import segmentation_augmentation
from keras_densepred.data.batches.evaluation import EvalBatches
from keras_densepred.data.batches.rows import (
    BAD_IMAGE,
    REPORT,
    Batch,
    OnBadImage,
    RowMaker,
    as_tuple,
    check_arguments,
    first_readable,
    passes_without_end,
    rows_of_process,
)
from keras_densepred.data.batches.stream import BatchStream
from keras_densepred.data.records import IGNORE_LABEL, Record


class SegmentationDataset(Protocol):
    """What batches are made from; every segmentation data set of `keras_densepred.data` is one."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


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
        augment: transforms of `augment_masks` and `augment` in order; what they return may be
            smaller than `image_size` (padding follows on the right and below) but not larger.
            None means `segmentation_augmentation(image_size)`.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an image or mask that cannot be used and names it;
            `"skip"` takes the next one in the data set's order and counts.
        shard: index of this process and number of processes. Process p of P gets rows
            `p * B / P` to `(p + 1) * B / P` of each batch, which has the same rows for any P.

    Returns:
        A stream of `{"images": (B, H, W, 3) float32, normalised, or uint8 RGB in 0..255,
        "masks": (B, H, W) int32}`, with `IGNORE_LABEL` (255) where there is no class.

    Raises:
        ValueError: if the data set is empty, has no semantic labels (when a batch is made), or an
            argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    grain = require("grain", "data")
    check_arguments(dataset, batch_size, workers, on_bad_image)
    rows_here = rows_of_process(batch_size, shard)
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be in 0..2**32-1, and is {seed}.")
    transforms = segmentation_augmentation(image_size) if augment is None else augment
    rows = RowMaker(as_tuple(mean), as_tuple(std), max_boxes=0)
    batches = (
        grain.MapDataset.range(len(dataset))
        .seed(seed)
        .shuffle()
        .repeat(passes_without_end(len(dataset)))
        .random_map(_Augment(dataset, tuple(transforms), on_bad_image))
        .batch(
            rows_here.stop - rows_here.start,
            batch_fn=_TrainBatchMaker(rows, height_and_width(image_size)),
        )[shard[0] :: shard[1]]
    )
    identity = {"seed": seed, "batch_size": batch_size, "num_images": len(dataset)}
    return BatchStream(batches, identity, workers)


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
    """Every image of a split once, with its mask at the image's own size.

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
        An iterable with a length, of `{"images": (B, H, W, 3)` as for training, `"masks":
        (B, Y, X) int32`, each at its image's own size in the upper left corner and
        `IGNORE_LABEL` around it (Y and X are those of the batch's largest), `"mask_sizes": (B, 2)
        int32`, height and width of each mask, `"image_sizes": (B, 2) int32`, how much of the
        network input the image takes, `"indices": (B,) int64`, position in the data set, `"valid":
        (B,) bool}`. The last batch of a shape is filled up with rows of `valid` False.

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
        dataset=dataset,
        rows=RowMaker(as_tuple(mean), as_tuple(std), max_boxes=0),
        batch_size=rows_here.stop - rows_here.start,
        plan=plan,
        fit=image_size is not None,
        on_bad_image=on_bad_image,
    )
    return EvalBatches(maker, len(plan), workers)


def _semantic_only(record: Record) -> Record:
    """The record without objects, which would be carried through the augmentation for nothing."""
    if record.semantic is None:
        raise ValueError(
            f"{record.file_name} has no semantic labels: give a data set for segmentation, such as "
            "VocSegmentation, MaskFolder or ShapesSegmentation."
        )
    record = record.replace(masks=None) if record.masks is not None else record
    return record.select(np.zeros(len(record.labels), bool)) if len(record.labels) else record


@dataclasses.dataclass(frozen=True)
class _Augment:
    """Index -> augmented record and what was unreadable on the way to it."""

    dataset: SegmentationDataset
    transforms: tuple[Callable, ...]
    on_bad_image: OnBadImage

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Record, list[str]]:
        skipped: list[str] = []
        record = first_readable(
            lambda number: _semantic_only(self.dataset[number]),
            index,
            len(self.dataset),
            self.on_bad_image,
            skipped,
        )
        for transform in self.transforms:
            record = transform(record, rng)
        return record, skipped


def _empty(rows: RowMaker, batch_size: int, frame: tuple[int, int]) -> Batch:
    return {"images": rows.empty(batch_size, frame)["images"]}


def _write_image(rows: RowMaker, batch: Batch, row: int, record: Record) -> None:
    """Writes the image of a record, by the rules of detection batches, which have boxes too."""
    no_objects = np.zeros((len(batch["images"]), 0, 4), np.float32)
    rows.write({**batch, "boxes": no_objects, "labels": no_objects[..., 0]}, row, record)


@dataclasses.dataclass(frozen=True)
class _TrainBatchMaker:
    """Augmented records -> a batch."""

    rows: RowMaker
    frame: tuple[int, int]

    def __call__(self, samples: Sequence[tuple[Record, list[str]]]) -> dict[str, Any]:
        batch: dict[str, Any] = _empty(self.rows, len(samples), self.frame)
        batch["masks"] = np.full((len(samples), *self.frame), IGNORE_LABEL, np.int32)
        for row, (record, _) in enumerate(samples):
            height, width = record.size
            if height > self.frame[0] or width > self.frame[1]:
                raise ValueError(
                    f"{record.file_name}: the augmentation gives an image of {height}x{width} "
                    f"pixels, larger than `image_size` {self.frame[0]}x{self.frame[1]}; let it "
                    "begin with RandomScaleCrop or ResizeToFit."
                )
            _write_image(self.rows, batch, row, record)
            batch["masks"][row, :height, :width] = record.semantic
        skipped = [name for _, names in samples for name in names]
        return {**batch, REPORT: (skipped, 0)}


@dataclasses.dataclass(frozen=True)
class _EvalBatchMaker:
    """Number of a batch -> the batch."""

    dataset: SegmentationDataset
    rows: RowMaker
    batch_size: int
    plan: list[tuple[tuple[int, int], np.ndarray]]
    fit: bool
    on_bad_image: OnBadImage

    def __call__(self, number: int) -> dict[str, Any]:
        frame, indices = self.plan[number]
        batch: dict[str, Any] = _empty(self.rows, self.batch_size, frame)
        batch["mask_sizes"] = np.zeros((self.batch_size, 2), np.int32)
        batch["image_sizes"] = np.zeros((self.batch_size, 2), np.int32)
        batch["indices"] = np.zeros(self.batch_size, np.int64)
        batch["valid"] = np.zeros(self.batch_size, bool)
        skipped: list[str] = []
        masks: dict[int, np.ndarray] = {}
        for row, index in enumerate(indices.tolist()):
            try:
                record = _semantic_only(self.dataset[index])
            except BAD_IMAGE as error:
                if self.on_bad_image == "raise":
                    raise
                skipped.append(str(error))
                continue
            assert record.semantic is not None
            masks[row] = record.semantic
            image = resize(record.replace(semantic=None), *self._resized(record.size, frame))
            _write_image(self.rows, batch, row, image)
            batch["mask_sizes"][row] = record.size
            batch["image_sizes"][row] = image.size
            batch["indices"][row] = index
            batch["valid"][row] = True
        extent = batch["mask_sizes"].max(axis=0)
        batch["masks"] = np.full((self.batch_size, *extent), IGNORE_LABEL, np.int32)
        for row, mask in masks.items():
            batch["masks"][row, : mask.shape[0], : mask.shape[1]] = mask
        return {**batch, REPORT: (skipped, 0)}

    def _resized(self, size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
        # The frame also bounds a picture that is larger than its data set announced.
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
