"""Images per second and core of the input pipeline of classifiers, beside the least it can do.

As `tools.timing.pipeline`, on JPEG files of ImageNet's usual size:

- `classes_decode`: `cv2.imread`, nothing else.
- `classes_decode_crop`: that, then `data.RandomResizedCrop` of the decoded image.
- `classes`: batches by `data.train_class_batches` with `data.imagenet_augmentation`, mixing and
  smoothed labels, as `recipes/imagenet_pretrain.py` uses them: bytes that the model's steps
  normalise and mix; `classes_float32` normalised and mixed here; `classes_worker` and
  `classes_float32_worker` made by one worker process.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_densepred import data, files
from keras_densepred._optional import require
from tools.timing.pipeline import (
    LEAST_LENGTH,
    by_turns,
    decode,
    one_thread,
    pipelines,
    with_detail,
)

_PHOTO = (375, 500)  # pixels; 110 kB a file in ImageNet


def measure_class_pipeline(
    image_size: int = 224,
    batch_size: int = 32,
    repeats: int = 7,
    images: int = 256,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measures decoding, decoding with a crop, and the whole pipeline of each kind, by turns.

    Args:
        image_size: height and width of the training image in pixels.
        batch_size: images per batch, even.
        repeats: how many rounds are measured.
        images: how many images each makes in a round, rounded up to whole batches.
        seed: of the pictures, their order and the augmentation.

    Returns:
        Rows as `tools.timing.pipeline.measure_pipeline`'s, `classes_decode_crop` in the place of
        `decode_lsj`.
    """
    batches = -(-images // batch_size)
    with tempfile.TemporaryDirectory() as folder, one_thread():
        paths = _write_photos(Path(folder), images, seed)
        repeated = _Repeated(data.ImageFolder(folder))

        def open_stream(mean: Any, std: Any, workers: int = 0) -> data.BatchStream:
            return data.train_class_batches(
                repeated,
                batch_size=batch_size,
                image_size=image_size,
                seed=seed,
                mean=mean,
                std=std,
                mixing=data.Mixing(),
                blend_later=mean is None,
                label_smoothing=0.1,
                workers=workers,
            )

        paths = [paths[number % len(paths)] for number in range(batches * batch_size)]
        works: dict[str, Callable[[], None]] = {
            "classes_decode": lambda: decode(paths),
            "classes_decode_crop": lambda: _decode_and_crop(paths, image_size, seed),
        }
        with contextlib.ExitStack() as streams:
            works |= pipelines("classes", open_stream, batches, streams)
            return by_turns(works, image_size, batch_size, len(paths), repeats)


def _write_photos(folder: Path, count: int, seed: int) -> list[str]:
    """Writes JPEG files in folders of two classes; returns their paths."""
    cv2 = require("cv2", "data")
    shapes = data.ShapesDataset(count, _PHOTO, seed)
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        path = folder / str(index % 2) / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = with_detail(shapes[index].image, rng)[..., ::-1]
        _, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
        files.write_atomically(path, content.tobytes())
        paths.append(str(path))
    return paths


def _decode_and_crop(paths: list[str], size: int, seed: int) -> None:
    cv2 = require("cv2", "data")
    rng = np.random.default_rng(seed)
    crop = data.RandomResizedCrop(size)
    for path in paths:
        crop(cv2.imread(path), rng)


class _Repeated:
    """A data set's images, over and over."""

    def __init__(self, dataset: data.ImageFolder) -> None:
        self._dataset = dataset
        self.class_names = dataset.class_names

    def __len__(self) -> int:
        return max(LEAST_LENGTH, len(self._dataset))

    def __getitem__(self, index: int) -> data.LabelledImage:
        return self._dataset[index % len(self._dataset)]

    def encoded(self, index: int) -> data.LabelledImage:
        """As the data set's."""
        return self._dataset.encoded(index % len(self._dataset))
