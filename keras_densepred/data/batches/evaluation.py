"""Records to evaluation batches on Grain: every image of a split once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.objects import Size, height_and_width, resize
from keras_densepred.data.batches.rows import (
    BAD_IMAGE,
    REPORT,
    Batch,
    DetectionDataset,
    OnBadImage,
    RowMaker,
    check_arguments,
    iterate,
    most_boxes,
    rows_of_process,
    without_crowd,
)


class EvalBatches:
    """The batches of one pass over a split, which can be iterated many times.

    Made by `eval_batches` and `eval_class_batches`. Worker processes, if any, stay for the next
    pass; `close` ends them.

    Attributes:
        skipped_images: what was wrong with which file -> in how many passes.
        max_boxes: boxes per image in a batch; 0 where images have none.
    """

    def __init__(
        self,
        make_batch: Callable[[int], dict[str, Any]],
        count: int,
        workers: int,
        max_boxes: int = 0,
    ) -> None:
        self._make_batch = make_batch
        self._count = count
        self._workers = workers
        self._iterator: Any = None
        self.max_boxes = max_boxes
        self.skipped_images: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        if self._iterator is None:
            # Endless for workers, which take many seconds to start: the next pass finds them ready.
            numbers = require("grain", "data").MapDataset.range(len(self))
            numbers = numbers.repeat() if self._workers else numbers
            self._iterator = iterate(numbers.map(self._make_batch), self._workers)
        iterator, self._iterator = self._iterator, None  # another pass may begin before this ends
        is_complete = False
        try:
            for _ in range(len(self)):
                batch = next(iterator)
                skipped, _ = batch.pop(REPORT)
                self.skipped_images.update(skipped)
                yield batch
            is_complete = True
        finally:
            if is_complete and self._workers and self._iterator is None:
                self._iterator = iterator
            else:
                iterator.close()

    def close(self) -> None:
        """Ends worker processes; a further pass starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def eval_batches(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
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
        mean: of the three channels, RGB in 0..255.
        std: of the three channels.
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
    rows = RowMaker(tuple(mean), tuple(std), max_boxes or most_boxes(dataset))
    rows_count = rows_here.stop - rows_here.start
    maker = _EvalBatchMaker(dataset, rows, rows_count, plan, limits, stretch, on_bad_image)
    return EvalBatches(maker, len(plan), workers, rows.max_boxes)


@dataclasses.dataclass(frozen=True)
class _EvalBatchMaker:
    """Number of a batch -> the batch."""

    dataset: DetectionDataset
    rows: RowMaker
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
                record = without_crowd(self.dataset[int(index)])
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
            for name in ("images", "boxes", "labels", "image_ids", "scales"):
                batch[name][row] = batch[name][len(indices) - 1]
        return {**batch, REPORT: (skipped, dropped)}

    def _resized(self, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
        if self.stretch:
            return canvas
        # The canvas also bounds a picture that lies otherwise than its data set announced.
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
