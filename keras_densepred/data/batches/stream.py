"""Records to training batches on Grain: worker processes, exact resume, no TensorFlow.

Training batch `k` depends on the seed, on `k` and on the data set, and on nothing else: not on the
number of workers, nor on whether the batches before it were made. So the position of a stream
is one number, and a stream set to it goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.objects import (
    Combine,
    ResizeToFit,
    Size,
    deferred,
    drawn,
    height_and_width,
    takes_deferred,
)
from keras_densepred.data.batches.rows import (
    REPORT,
    Batch,
    DetectionDataset,
    OnBadImage,
    RowMaker,
    as_tuple,
    check_arguments,
    check_seed,
    first_readable,
    iterate,
    most_boxes,
    passes_without_end,
    rows_of_process,
    without_crowd,
)
from keras_densepred.data.records import Record


class BatchStream(Iterator[Batch]):
    """An endless stream of training batches whose position can be saved and set.

    Made by `train_batches` and `train_class_batches`. Batches are prepared in the background;
    `close` (or leaving a `with` block) stops that and ends worker processes.

    Attributes:
        skipped_images: what was wrong with which file -> how often another image took its place.
        dropped_boxes: how many boxes did not fit into `max_boxes`.
        max_boxes: boxes per image in a batch; 0 where images have none.
    """

    def __init__(
        self, batches: Any, identity: Mapping[str, int], workers: int, max_boxes: int = 0
    ) -> None:
        self._batches = batches
        self._identity = dict(identity)
        self._workers = workers
        self._iterator: Any = None
        self._next_batch = 0
        self.max_boxes = max_boxes
        self.skipped_images: Counter[str] = Counter()
        self.dropped_boxes = 0

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = iterate(self._batches[self._next_batch :], self._workers)
        batch = next(self._iterator)
        skipped, dropped = batch.pop(REPORT)
        self.skipped_images.update(skipped)
        self.dropped_boxes += dropped
        self._next_batch += 1
        return batch

    def batch(self, number: int) -> Batch:
        """Makes batch `number` of the stream, from 0, here and now; the stream stays where it is.

        For looking at a batch that a log names, and for measuring: nothing runs in the background.
        """
        batch = dict(self._batches[operator.index(number)])
        del batch[REPORT]
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position behind the batch that was handed out last, ready for JSON."""
        return {
            "next_batch": self._next_batch,
            "identity": dict(self._identity),
            "skipped_images": dict(self.skipped_images),
            "dropped_boxes": self.dropped_boxes,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `get_state` gave, of this stream or of one made alike.

        Raises:
            ValueError: if the state is from other data, another seed or batch size, because the
                batches to come would then not be those of the interrupted run.
        """
        for name, ours in self._identity.items():
            theirs = state["identity"].get(name)
            if theirs != ours:
                raise ValueError(
                    f"The saved data position belongs to {name} = {theirs}, and this stream has "
                    f"{name} = {ours}; resume with the settings of the interrupted run."
                )
        self.close()
        self._next_batch = int(state["next_batch"])
        self.skipped_images = Counter(state["skipped_images"])
        self.dropped_boxes = int(state["dropped_boxes"])

    def close(self) -> None:
        """Stops background work. The stream can go on afterwards."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
        "boxes": (B, max_boxes, 4) float32 xyxy in pixels of the network input, "labels": (B,
        max_boxes) int32}`; unused boxes and labels are -1. With `mask_size` also `"masks"`
        (B, max_boxes, mask_size, mask_size) uint8, 1 on the object, else 0.

    Raises:
        ValueError: if the data set is empty or an argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    grain = require("grain", "data")
    check_arguments(dataset, batch_size, workers, on_bad_image)
    rows_here = rows_of_process(batch_size, shard)
    check_seed(seed)
    transforms: tuple[Callable, ...] = (ResizeToFit(image_size),)
    if augment is not None:
        transforms = tuple(augment)
    if max_boxes is None:
        most = most_boxes(dataset)
        max_boxes = most
        for step in transforms:
            if isinstance(step, Combine):
                max_boxes += step.most_added(most)
    if mask_size is not None and mask_size < 1:
        raise ValueError(f"`mask_size` must be positive or None, and is {mask_size}.")
    rows = RowMaker(as_tuple(mean), as_tuple(std), max_boxes, mask_size)
    batches = (
        grain.MapDataset.range(len(dataset))
        .seed(seed)
        .shuffle()
        .repeat(passes_without_end(len(dataset)))
        .random_map(_Augment(dataset, transforms, on_bad_image))
        .batch(
            rows_here.stop - rows_here.start,
            batch_fn=_TrainBatchMaker(rows, height_and_width(image_size)),
        )[shard[0] :: shard[1]]
    )
    identity = {"seed": seed, "batch_size": batch_size, "num_images": len(dataset)}
    return BatchStream(batches, identity, workers, max_boxes)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """An augmented record, and the unreadable files met on the way to it."""

    record: Record
    skipped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Augment:
    """Index -> augmented record, with the random numbers that Grain gives for this position."""

    dataset: DetectionDataset
    transforms: tuple[Callable, ...]
    on_bad_image: OnBadImage

    def __call__(self, index: int, rng: np.random.Generator) -> _Sample:
        skipped: list[str] = []
        record = self._apply(self._read(index, skipped), index, self.transforms, rng, skipped)
        return _Sample(record, tuple(skipped))

    def _apply(
        self,
        record: Record,
        index: int,
        transforms: tuple[Callable, ...],
        rng: np.random.Generator,
        skipped: list[str],
    ) -> Record:
        for number, transform in enumerate(transforms):
            record = deferred(record) if takes_deferred(transform) else drawn(record)
            if not isinstance(transform, Combine):
                record = transform(record, rng)
            elif rng.random() < transform.probability and len(self.dataset) > 1:
                others = []
                for _ in range(transform.num_others):
                    step = 1 + int(rng.integers(len(self.dataset) - 1))
                    partner = (index + step) % len(self.dataset)
                    other = self._read(partner, skipped)
                    other = self._apply(other, partner, transforms[:number], rng, skipped)
                    others.append(deferred(other) if takes_deferred(transform) else drawn(other))
                record = transform(record, *others, rng)
        return record

    def _read(self, index: int, skipped: list[str]) -> Record:
        return first_readable(
            lambda number: without_crowd(self.dataset[number]),
            index,
            len(self.dataset),
            self.on_bad_image,
            skipped,
        )


@dataclasses.dataclass(frozen=True)
class _TrainBatchMaker:
    """Samples -> a batch."""

    rows: RowMaker
    canvas: tuple[int, int]

    def __call__(self, samples: Sequence[_Sample]) -> dict[str, Any]:
        batch: dict[str, Any] = self.rows.empty(len(samples), self.canvas)
        dropped = 0
        for row, sample in enumerate(samples):
            height, width = sample.record.size
            if height > self.canvas[0] or width > self.canvas[1]:
                raise ValueError(
                    f"{sample.record.file_name}: the augmentation gives an image of "
                    f"{height}x{width} pixels, larger than `image_size` "
                    f"{self.canvas[0]}x{self.canvas[1]}; end it with FixedSizeCrop or ResizeToFit."
                )
            dropped += self.rows.write(batch, row, sample.record)
        skipped = [name for sample in samples for name in sample.skipped]
        return {**batch, REPORT: (skipped, dropped)}
