"""What all batches share: streams on Grain, exact resume, and which process makes which rows.

Training batch `k` depends on the seed, on `k` and on the data set, and on nothing else: not on the
number of workers or processes, nor on whether the batches before it were made. So the position of
a stream is one number, and a stream set to it goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.image_files import ImageError, OnBadImage, check_on_bad_image
from keras_densepred.data.records import DatasetError

Batch = dict[str, np.ndarray]

# Undecodable, or of another size than its data set says.
BAD_IMAGE = (ImageError, DatasetError)
REPORT = "report"  # key under which workers send their counts along with a batch
# With so many unreadable images in a row something is wrong with the data set, not with an image.
_MOST_BAD_IN_A_ROW = 100

Item = TypeVar("Item")


class WorkerError(RuntimeError):
    """A process that prepares batches has ended too early; one sentence."""


class BatchStream(Iterator[Batch]):
    """An endless stream of training batches whose position can be saved and set.

    Made by `train_batches`, `train_mask_batches` and `train_class_batches`. Batches are prepared in
    the background; `close` (or leaving a `with` block) stops that and ends worker processes.

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
        batch = _next(self._iterator)
        skipped, dropped = batch.pop(REPORT)
        self.skipped_images.update(skipped)
        self.dropped_boxes += dropped
        self._next_batch += 1
        return batch

    def batch(self, number: int) -> Batch:
        """Makes batch `number` of the stream, from 0, here and now; the stream stays where it is.

        To look at a batch that a log names, and to measure: nothing runs in the background.
        """
        batch = dict(self._batches[operator.index(number)])
        del batch[REPORT]
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch handed out, ready for JSON."""
        return {
            "next_batch": self._next_batch,
            "identity": dict(self._identity),
            "skipped_images": dict(self.skipped_images),
            "dropped_boxes": self.dropped_boxes,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position from `get_state`, of this stream or of one with the same settings.

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
    """The batches of one pass over a split, which can be iterated many times.

    Made by `eval_batches`, `eval_mask_batches` and `eval_class_batches`. Worker processes, if any,
    stay for the next pass; `close` ends them.

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
                batch = _next(iterator)
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


@dataclasses.dataclass(frozen=True)
class Sample(Generic[Item]):
    """One augmented image of a training stream.

    Args:
        item: the record or labelled image.
        skipped: what was wrong with the files that could not be read on the way to it.
        position: in the stream, over all processes.
    """

    item: Item
    skipped: tuple[str, ...]
    position: int = 0


def training_stream(
    dataset: Sized,
    augment: Callable[[int, np.random.Generator], Sample],
    make_batch: Callable[[Sequence[Sample]], dict[str, Any]],
    *,
    batch_size: int,
    seed: int,
    workers: int,
    shard: tuple[int, int],
    max_boxes: int = 0,
) -> BatchStream:
    """Shuffles anew for every epoch, augments and batches, without end.

    Args:
        dataset: the training split.
        augment: index of an image and the random numbers of its position in the stream -> sample.
        make_batch: samples -> the batch, with its `REPORT`.
        batch_size: images per batch, over all processes.
        seed: of the order and of the augmentation.
        workers: processes that prepare batches; 0 prepares them in a background thread.
        shard: index of this process and number of processes.
        max_boxes: boxes per image in a batch.
    """
    rows = rows_of_process(batch_size, shard)
    batches = (
        require("grain", "data")
        .MapDataset.range(len(dataset))
        .seed(seed)
        .shuffle()
        .repeat(_passes_without_end(len(dataset)))
        .random_map(augment)
        .map_with_index(_at_position)
        .batch(rows.stop - rows.start, batch_fn=make_batch)[shard[0] :: shard[1]]
    )
    identity = {"seed": seed, "batch_size": batch_size, "num_images": len(dataset)}
    return BatchStream(batches, identity, workers, max_boxes)


def _at_position(position: int, sample: Sample) -> Sample:
    return dataclasses.replace(sample, position=position)


def _passes_without_end(num_images: int) -> int:
    """How often a stream goes through its data: for more batches than any run takes.

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


def _next(iterator: Any) -> dict[str, Any]:
    try:
        return next(iterator)
    except RuntimeError as error:
        ended = re.search(r"Worker process was terminated .* exit code (-?\d+)", str(error))
        if ended is None:
            raise
        code = int(ended[1])
        raise WorkerError(
            f"A process that prepares batches was ended from outside (signal {-code}), as systems "
            "do when memory runs out: use fewer --workers or a smaller --batch-size."
            if code < 0
            else f"A process that prepares batches ended with exit code {code}: what it printed "
            "before says why."
        ) from error


def _prepare_worker(number: int, count: int) -> None:
    """One core for each worker: OpenCV's own threads would compete with the other workers."""
    del number, count
    require("cv2", "data").setNumThreads(1)


def check_arguments(
    dataset: Sized, batch_size: int, workers: int, on_bad_image: OnBadImage
) -> None:
    """Refuses arguments that no batches can be made with."""
    require("cv2", "data")
    if not len(dataset):
        raise ValueError("The data set has no images.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, and is {batch_size}.")
    if workers < 0:
        raise ValueError(f"`workers` must not be negative, and is {workers}.")
    check_on_bad_image(on_bad_image)


def check_seed(seed: int) -> None:
    """Refuses a seed that Grain does not take."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be in 0..2**32-1, and is {seed}.")
