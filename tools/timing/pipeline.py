"""Images per second and core of the input pipeline, beside what no pipeline can do without.

These take turns in one process, with one thread, on the same JPEG files:

- `decode`: `cv2.imread`, nothing else.
- `decode_lsj`: that, then large-scale jitter written plainly: the whole image is resized by a
  random factor of 0.1 to 2.0, and a random window of it copied into a square uint8 array.
- `pipeline`: batches by `data.train_batches` with `data.coco_augmentation`, as
  `recipes/coco_retinanet.py` uses them: decoding, jitter, crop, flip, padding, copy-paste from a
  second image in half of the cases, boxes, batch; images stay bytes (`mean=None`, `std=None`).
- `pipeline_float32`: that with images normalised to float32.
- `pipeline_worker`, `pipeline_float32_worker`: the same batches made by one worker process and
  taken here: what that costs beside making them.

Rates are of processor time, in all processes together, so that what else the machine does counts
little. That of the pipelines is in finished training images. A second image that is decoded for
copy-paste is work, but does not count as an image: a pipeline that merely decoded and jittered
every image it touches, and did nothing else, would have a ratio of 1 / 1.5 to `decode_lsj`.

Files are in the page cache after a first unmeasured round, so disks are not measured.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_densepred import data
from keras_densepred._optional import require
from keras_densepred.data.batches.detection import most_boxes
from keras_densepred.data.records import DetectionDataset

WORKER = "_worker"  # how the names of works end that have a worker process
_REST = 1.0  # second, in which a worker that is not idle gets a core
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_SCALES = (0.1, 2.0)  # of large-scale jitter
# Grain shuffles a data set of 57 images in 0.9 ms an index and COCO's 117,266 in 0.006 ms, because
# it draws 16-bit numbers until one is an index; files are therefore listed several times over.
LEAST_LENGTH = 20_000


def measure_pipeline(
    image_size: int = 1024,
    batch_size: int = 8,
    repeats: int = 7,
    images: int = 128,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measures decoding, decoding with jitter, and the whole pipeline of each kind, by turns.

    Args:
        image_size: height and width of the training image in pixels.
        batch_size: images per batch.
        repeats: how many rounds are measured; every round does the same work as the others.
        images: how many images each makes in a round, rounded up to whole batches.
        data_dir: a COCO tree (see `data.find_coco_splits`), of which up to `images` pictures of
            the training split are used. None makes `images` pictures of COCO's usual size and
            weight; see `write_photos`.
        seed: of the pictures, their order and the augmentation.

    Returns:
        One row for each `what` of this module's list, with `image_size`, `batch` (1 where nothing
        is batched), `images_per_s_median` and `images_per_s_best` over the rounds, and
        `ratio_to_decode` and `ratio_to_decode_lsj`: the median over the rounds of the quotient of
        rates within a round.

    Raises:
        ValueError: if a number is below 1.
        ImportError: if Grain, OpenCV or Pillow is not installed.
    """
    if min(image_size, batch_size, repeats, images) < 1:
        raise ValueError("`image_size`, `batch_size`, `repeats` and `images` must be at least 1.")
    batches = -(-images // batch_size)
    with tempfile.TemporaryDirectory() as folder, one_thread():
        if data_dir is None:
            write_photos(folder, images, seed)
        dataset = data.CocoDataset(*data.find_coco_splits(data_dir or folder)["train"])
        names = [entry["file_name"] for entry in dataset.ground_truth()["images"]]
        paths = [os.path.join(dataset.images_path, name) for name in names[:images]]
        paths = [paths[number % len(paths)] for number in range(batches * batch_size)]
        repeated = _Repeated(dataset, min(images, len(dataset)))

        def open_stream(mean: Any, std: Any, workers: int = 0) -> data.BatchStream:
            return data.train_batches(
                repeated,
                batch_size=batch_size,
                image_size=image_size,
                seed=seed,
                augment=data.coco_augmentation(image_size, scale_range=_SCALES),
                mean=mean,
                std=std,
                workers=workers,
            )

        works: dict[str, Callable[[], None]] = {
            "decode": lambda: decode(paths),
            "decode_lsj": lambda: _decode_and_jitter(paths, image_size, seed),
        }
        with contextlib.ExitStack() as streams:
            works |= pipelines("pipeline", open_stream, batches, streams)
            return by_turns(works, image_size, batch_size, len(paths), repeats)


def pipelines(
    name: str,
    open_stream: Callable[..., data.BatchStream],
    batches: int,
    streams: contextlib.ExitStack,
) -> dict[str, Callable[[], None]]:
    """A pipeline's batches as bytes and as float32, made here and by one worker process.

    Args:
        name: of the pipeline.
        open_stream: takes `mean`, `std` and `workers`.
        batches: of a round.
        streams: closes them.
    """
    works = {}
    for workers, where in ((0, ""), (1, WORKER)):
        for kind, normalization in (("", (None, None)), ("_float32", (MEAN, STD))):
            stream = streams.enter_context(open_stream(*normalization, workers))
            make = _take if workers else _make_batches
            works[f"{name}{kind}{where}"] = functools.partial(make, stream, batches)
    return works


def by_turns(
    works: dict[str, Callable[[], None]],
    image_size: int,
    batch_size: int,
    images: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Measures works, the first and second of which are those that the others are compared with.

    Args:
        works: by their names, which end with `WORKER` where another process does a part.
        image_size: height and width in pixels.
        batch_size: images of a batch.
        images: that each makes in a round.
        repeats: rounds, after one that is not measured.
    """
    rounds = [[_seconds(*item) for item in works.items()] for _ in range(repeats + 1)]
    rates = images / np.array(rounds[1:])
    return [
        {
            "what": what,
            "image_size": image_size,
            "batch": 1 if "decode" in what else batch_size,
            "images_per_s_median": float(np.median(rates[:, column])),
            "images_per_s_best": float(rates[:, column].max()),
            "ratio_to_decode": float(np.median(rates[:, column] / rates[:, 0])),
            "ratio_to_decode_lsj": float(np.median(rates[:, column] / rates[:, 1])),
        }
        for column, what in enumerate(works)
    ]


def write_photos(folder: str | os.PathLike[str], count: int, seed: int = 0) -> None:
    """Writes a COCO tree of 640x480 JPEG files that decode like photos.

    They are the built-in shapes with noise of six scales on top, as photos have detail at every
    scale, of a strength that brings the files to COCO's mean of 160 kB (the shapes alone have
    119 kB): what JPEG decoding costs depends on the bytes as much as on the pixels.

    Args:
        folder: root of the tree.
        count: how many pictures the training split has; the validation split has one.
        seed: of the shapes and the noise.
    """
    shapes = data.ShapesDataset(count, (480, 640), seed)
    shapes.write_coco(folder)
    data.ShapesDataset(1, (480, 640), seed, "val").write_coco(folder)
    image_module = require("PIL.Image", "data")
    rng = np.random.default_rng(seed)
    for record in (shapes[index] for index in range(count)):
        path = Path(folder) / "images" / "train" / record.file_name
        image_module.fromarray(with_detail(record.image, rng)).save(path, quality=95)


def with_detail(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A drawn picture with noise that makes it as heavy as a photo."""
    cv2 = require("cv2", "data")
    height, width = image.shape[:2]
    noise = np.zeros((height, width), np.float32)
    for cell in (1, 2, 4, 8, 16, 32):
        coarse = rng.standard_normal((height // cell + 1, width // cell + 1), np.float32)
        noise += cell**0.5 * cv2.resize(coarse, (width, height))
    return np.clip(image + 5.0 * noise[..., None], 0, 255).astype(np.uint8)


def decode(paths: list[str]) -> None:
    """Decodes files and nothing else."""
    cv2 = require("cv2", "data")
    for path in paths:
        cv2.imread(path)


def _decode_and_jitter(paths: list[str], size: int, seed: int) -> None:
    cv2 = require("cv2", "data")
    rng = np.random.default_rng(seed)
    # Spread evenly over the range, so that few images cost on average what many would.
    factors = np.linspace(*_SCALES, len(paths) * 2 + 1)[1::2]
    for path, factor in zip(paths, rng.permutation(factors), strict=True):
        image = cv2.imread(path)
        scale = factor * size / max(image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in (height, width))
        window = image[top : top + size, left : left + size]
        canvas = np.zeros((size, size, 3), np.uint8)
        canvas[: window.shape[0], : window.shape[1]] = window


def _make_batches(stream: data.BatchStream, batches: int) -> None:
    for number in range(batches):
        stream.batch(number)


def _seconds(name: str, work: Callable[[], None]) -> float:
    """Processor time of a work, here and, from full buffers to full buffers, in the worker."""
    has_worker = name.endswith(WORKER)
    begun = _resting_workers() if has_worker else 0.0
    start = time.process_time()
    work()
    ended = _resting_workers() if has_worker else 0.0
    return time.process_time() - start + ended - begun


def _resting_workers() -> float:
    """Processor seconds of the worker processes, once they have nothing left to do."""
    seconds = -math.inf
    while (now := sum(map(_seconds_of, multiprocessing.active_children()))) - seconds > 0.02:
        seconds = now
        time.sleep(_REST)
    return now


def _seconds_of(process: multiprocessing.process.BaseProcess) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _take(stream: data.BatchStream, batches: int) -> None:
    for _ in range(batches):
        next(stream)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Without OpenCV's own threads."""
    cv2 = require("cv2", "data")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


class _Repeated:
    """The first images of a data set, over and over."""

    def __init__(self, dataset: DetectionDataset, count: int) -> None:
        self._dataset = dataset
        self._count = count
        self.max_objects = most_boxes(dataset)
        self.image_ids = tuple(range(max(LEAST_LENGTH, count)))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> data.Record:
        return self._dataset[index % self._count]

    def ground_truth(self) -> dict:
        return self._dataset.ground_truth()
