"""Records to dense batches on Grain: worker processes, exact resume, no TensorFlow.

Training batch `k` depends on the seed, on `k` and on the data set, and on nothing else: not on the
number of workers, nor on whether the batches before it were made. So the position of a stream
is one number, and a stream set to it goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment import (
    CopyPaste,
    ResizeToFit,
    Size,
    height_and_width,
    resize,
)
from keras_densepred.data.images import ImageError
from keras_densepred.data.objects import DatasetError
from keras_densepred.data.records import Record

Batch = dict[str, np.ndarray]
OnBadImage = Literal["raise", "skip"]

# With so many unreadable images in a row something is wrong with the data set, not with an image.
_MOST_BAD_IN_A_ROW = 100
# Undecodable, or of another size than its data set says.
_BAD_IMAGE = (ImageError, DatasetError)
_REPORT = "report"  # key under which workers send their counts along with a batch


class DetectionDataset(Protocol):
    """What the pipeline needs of a data set; all of `keras_densepred.data` provide it."""

    @property
    def image_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    def ground_truth(self) -> dict: ...


class BatchStream(Iterator[Batch]):
    """An endless stream of training batches whose position can be saved and set.

    Made by `train_batches`. Batches are prepared in the background; `close` (or leaving a `with`
    block) stops that and ends worker processes.

    Attributes:
        skipped_images: what was wrong with which file -> how often another image took its place.
        dropped_boxes: how many boxes did not fit into `max_boxes`.
        max_boxes: boxes per image in a batch.
    """

    def __init__(self, batches: Any, identity: Mapping[str, int], max_boxes: int, workers: int):
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
            self._iterator = _iterate(self._batches[self._next_batch :], self._workers)
        batch = next(self._iterator)
        skipped, dropped = batch.pop(_REPORT)
        self.skipped_images.update(skipped)
        self.dropped_boxes += dropped
        self._next_batch += 1
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


class EvalBatches:
    """The batches of one pass over a split, made by `eval_batches`; can be iterated many times.

    Worker processes, if any, stay for the next pass; `close` ends them.

    Attributes:
        skipped_images: what was wrong with which file -> in how many passes.
        max_boxes: boxes per image in a batch.
    """

    def __init__(self, maker: _EvalBatchMaker, workers: int) -> None:
        self._maker = maker
        self._workers = workers
        self._iterator: Any = None
        self.max_boxes = maker.rows.max_boxes
        self.skipped_images: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._maker.plan)

    def __iter__(self) -> Iterator[Batch]:
        if self._iterator is None:
            # Endless for workers, which take many seconds to start: the next pass finds them ready.
            numbers = require("grain", "data").MapDataset.range(len(self))
            numbers = numbers.repeat() if self._workers else numbers
            self._iterator = _iterate(numbers.map(self._maker), self._workers)
        iterator, self._iterator = self._iterator, None  # another pass may begin before this ends
        is_complete = False
        try:
            for _ in range(len(self)):
                batch = next(iterator)
                skipped, _ = batch.pop(_REPORT)
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


def train_batches(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    image_size: Size,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Sequence[Callable] | None = None,
    max_boxes: int | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
) -> BatchStream:
    """Shuffled, augmented training batches without end.

    Every epoch is shuffled anew; batches go on across the end of an epoch. Crowd regions are left
    out. With `workers > 0` the calling script needs the usual `if __name__ == "__main__":`,
    because worker processes import it.

    Args:
        dataset: the training split.
        batch_size: images per batch.
        image_size: of the network input, `(height, width)` or one number for both.
        seed: of the order and of the augmentation, `0 .. 2**32 - 1`.
        mean: of the three channels, RGB in 0..255.
        std: of the three channels.
        augment: transforms (see `augment`) in order; what they return may be smaller than
            `image_size` (zero padding follows on the right and below) but not larger. None means
            resizing to fit.
        max_boxes: boxes per image; the largest are kept where there are more. None takes the most
            that an image of the data set has, copy-paste included.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an unreadable image and names it; `"skip"` takes the next
            readable one in the data set's order and counts.

    Returns:
        A stream of `{"images": (B, H, W, 3) float32, normalised, "boxes": (B, max_boxes, 4)
        float32 xyxy in pixels of the network input, "labels": (B, max_boxes) int32}`; unused boxes
        and labels are -1.

    Raises:
        ValueError: if the data set is empty or an argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    grain = require("grain", "data")
    _check(dataset, batch_size, workers, on_bad_image)
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be in 0..2**32-1, and is {seed}.")
    transforms = (ResizeToFit(image_size),) if augment is None else tuple(augment)
    if max_boxes is None:
        most = _most_boxes(dataset)
        pasted = [step.max_pasted for step in transforms if isinstance(step, CopyPaste)]
        max_boxes = most + sum(min(most, count) for count in pasted)
    rows = _RowMaker(tuple(mean), tuple(std), max_boxes)
    batches = (
        grain.MapDataset.range(len(dataset))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_Augment(dataset, transforms, on_bad_image))
        .batch(batch_size, batch_fn=_TrainBatchMaker(rows, height_and_width(image_size)))
    )
    identity = {"seed": seed, "batch_size": batch_size, "num_images": len(dataset)}
    return BatchStream(batches, identity, max_boxes, workers)


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
    max_boxes: int | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "raise",
) -> EvalBatches:
    """Every image of a split once, resized with its aspect ratio and padded with zeros.

    Either `image_size` is given, and images are resized to fit inside; or `short_side` and
    `long_side` (the paper's test: 800, 1333), and images are resized until their shorter side is
    `short_side` or their longer side `long_side`, whichever comes first. In the second case there
    are two input shapes, one for wide and one for tall images (896x1408 and 1408x896 in the
    paper's setting): all wide images come first, then the tall ones, so that a compiling backend
    compiles twice and not once for each aspect ratio. The authors pad each batch to the next
    multiple of 128 instead; more padding on the right and below changes nothing for the objects.

    Args:
        dataset: the split.
        batch_size: images per batch.
        mean: of the three channels, RGB in 0..255.
        std: of the three channels.
        image_size: of the network input, `(height, width)` or one number for both.
        short_side: in pixels.
        long_side: in pixels.
        pad_multiple: with `short_side`: both sides of the input are multiples of this.
        max_boxes: boxes per image; None takes the most that an image of the data set has.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        on_bad_image: `"raise"` stops at an unreadable image and names it; `"skip"` gives it a row
            with `valid` False and counts.

    Returns:
        An iterable with a length, of batches as `train_batches` makes them, with `"image_ids"`
        `(B,)` int64, `"scales"` `(B, 2)` float32 (y, x: pixels of the input per original pixel)
        and `"valid"` `(B,)` bool. The last batch of a shape is filled up with rows of `valid`
        False; all batches have `batch_size` rows.

    Raises:
        ValueError: if the data set is empty or an argument is out of range.
        ImportError: if Grain or OpenCV is not installed.
    """
    _check(dataset, batch_size, workers, on_bad_image)
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
        (canvas, members[start : start + batch_size])
        for canvas, members in groups
        for start in range(0, len(members), batch_size)
    ]
    rows = _RowMaker(tuple(mean), tuple(std), max_boxes or _most_boxes(dataset))
    maker = _EvalBatchMaker(dataset, rows, batch_size, plan, limits, on_bad_image)
    return EvalBatches(maker, workers)


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
            if not isinstance(transform, CopyPaste):
                record = transform(record, rng)
            elif rng.random() < transform.probability and len(self.dataset) > 1:
                step = 1 + int(rng.integers(len(self.dataset) - 1))
                partner = (index + step) % len(self.dataset)
                other = self._read(partner, skipped)
                other = self._apply(other, partner, transforms[:number], rng, skipped)
                record = transform(record, other, rng)
        return record

    def _read(self, index: int, skipped: list[str]) -> Record:
        if self.on_bad_image == "raise":
            return _without_crowd(self.dataset[index])
        first_error: Exception | None = None
        for step in range(min(len(self.dataset), _MOST_BAD_IN_A_ROW)):
            try:
                return _without_crowd(self.dataset[(index + step) % len(self.dataset)])
            except _BAD_IMAGE as error:
                skipped.append(str(error))
                first_error = first_error or error
        raise ImageError(
            f"{len(skipped)} images in a row could not be read, the first because: {first_error}"
        )


@dataclasses.dataclass(frozen=True)
class _RowMaker:
    """Writes a record into a row of a batch."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_boxes: int

    def empty(self, batch_size: int, canvas: tuple[int, int]) -> Batch:
        return {
            "images": np.zeros((batch_size, *canvas, 3), np.float32),
            "boxes": np.full((batch_size, self.max_boxes, 4), -1, np.float32),
            "labels": np.full((batch_size, self.max_boxes), -1, np.int32),
        }

    def write(self, batch: Batch, row: int, record: Record) -> int:
        """Returns how many boxes were dropped because the row is full."""
        cv2 = require("cv2", "data")
        height, width = record.size
        # One look-up per byte, several times faster than arithmetic on the float image.
        levels = np.arange(256, dtype=np.float32)[:, None]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        table = (levels - mean) / std
        batch["images"][row, :height, :width] = cv2.LUT(record.image, table[None])
        excess = len(record.labels) - self.max_boxes
        if excess > 0:
            area = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(1)
            record = record.select(np.sort(np.argsort(-area, kind="stable")[: self.max_boxes]))
        batch["boxes"][row, : len(record.boxes)] = record.boxes
        batch["labels"][row, : len(record.labels)] = record.labels
        return max(excess, 0)


@dataclasses.dataclass(frozen=True)
class _TrainBatchMaker:
    """Samples -> a batch."""

    rows: _RowMaker
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
        return {**batch, _REPORT: (skipped, dropped)}


@dataclasses.dataclass(frozen=True)
class _EvalBatchMaker:
    """Number of a batch -> the batch."""

    dataset: DetectionDataset
    rows: _RowMaker
    batch_size: int
    plan: list[tuple[tuple[int, int], np.ndarray]]
    limits: tuple[int, int] | None
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
                record = _without_crowd(self.dataset[int(index)])
            except _BAD_IMAGE as error:
                if self.on_bad_image == "raise":
                    raise
                skipped.append(str(error))
                continue
            resized = resize(record, *self._resized(record.size, canvas))
            dropped += self.rows.write(batch, row, resized)
            batch["image_ids"][row] = record.image_id
            batch["scales"][row] = np.divide(resized.size, record.size)
            batch["valid"][row] = True
        for row in range(len(indices), self.batch_size):
            for name in ("images", "boxes", "labels", "image_ids", "scales"):
                batch[name][row] = batch[name][len(indices) - 1]
        return {**batch, _REPORT: (skipped, dropped)}

    def _resized(self, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
        # The canvas also bounds a picture that lies otherwise than its data set announced.
        factor = min(canvas[0] / size[0], canvas[1] / size[1])
        if self.limits is not None:
            short, long = self.limits
            factor = min(factor, short / min(size), long / max(size))
        return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def _iterate(batches: Any, workers: int) -> Any:
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


def _check(
    dataset: DetectionDataset, batch_size: int, workers: int, on_bad_image: OnBadImage
) -> None:
    require("cv2", "data")
    if not len(dataset):
        raise ValueError("The data set has no images.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, and is {batch_size}.")
    if workers < 0:
        raise ValueError(f"`workers` must not be negative, and is {workers}.")
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f'`on_bad_image` must be "raise" or "skip", and is {on_bad_image!r}.')


def _without_crowd(record: Record) -> Record:
    return record.select(~record.crowd) if record.crowd.any() else record


def _most_boxes(dataset: DetectionDataset) -> int:
    """The most objects in one image, crowd regions not counted; at least 1."""
    known = getattr(dataset, "max_objects", None)  # generated data knows without being drawn
    if known is not None:
        return int(known)
    annotations = dataset.ground_truth()["annotations"]
    counts = Counter(item["image_id"] for item in annotations if not item.get("iscrowd", 0))
    return max(counts.values(), default=1)


def _is_wide(dataset: DetectionDataset) -> np.ndarray:
    """Whether each image is at least as wide as high, `(len(dataset),)` bool, by its listing."""
    images = {item["id"]: item for item in dataset.ground_truth()["images"]}
    listed = [images[image_id] for image_id in dataset.image_ids]
    return np.array([item["width"] >= item["height"] for item in listed], bool)
