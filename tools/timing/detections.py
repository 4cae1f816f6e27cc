"""How long a detector's raw outputs take to become detections, compiled as `predict` compiles.

The outputs are made to look like a trained detector's: nearly all logits lie around that of the
focal prior (-4.6), and about `OBJECTS` objects in each image pull up the logits and deltas of the
anchors around them, so that some hundred (box, class) pairs pass the score threshold.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_densepred.models import anchors as anchor_ops
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.ops.boxes import decode_boxes

LEVELS = range(3, 8)
OBJECTS = 12
NOISE = 0.4  # standard deviation of a logit; 0.05, the score threshold, is at 4.1 of them


def measure_detections(
    images: int = 8, anchors: int = 76_725, classes: int = 80, repeats: int = 15
) -> list[dict[str, Any]]:
    """Times decoding all boxes, suppression, and both in one, on the current Keras backend.

    In one, as `decode_predictions` of the package's RetinaNets does it, only the boxes that take
    part in the suppression are decoded: less than the sum of the two.

    Args:
        images: B, the batch.
        anchors: A, boxes of an image; 76,725 is a RetinaNet at 640 px.
        classes: C.
        repeats: timed calls of each stage, in turns, after one that compiles.

    Returns:
        A row for each stage: `"what"`, `"images"`, `"anchors"`, `"classes"`, and the median and
        the least time of a call in milliseconds, `"ms_median"` and `"ms_min"`.
    """
    side = _image_side(anchors)
    grid = anchor_ops.anchor_boxes(side, side, LEVELS)[:anchors]
    deltas, logits = detector_outputs(keras.ops.convert_to_numpy(grid), images, classes)
    deltas, logits = keras.ops.convert_to_tensor(deltas), keras.ops.convert_to_tensor(logits)
    decoder = NonMaxSuppression("xyxy")

    def decode(deltas: Any) -> Any:
        return decode_boxes(grid, deltas, side, side)

    def decode_and_suppress(deltas: Any, logits: Any) -> Any:
        return decoder(deltas, logits, image_shape=(side, side, 3), anchors=grid)

    boxes = decode(deltas)
    stages: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "decode boxes": (compiled(decode), (deltas,)),
        "nms": (compiled(decoder), (boxes, logits)),
        "decode + nms": (compiled(decode_and_suppress), (deltas, logits)),
    }
    times: dict[str, list[float]] = {what: [] for what in stages}
    for function, arguments in stages.values():
        wait_for(function(*arguments))
    # In turns: a slow minute of the machine meets every stage alike.
    for _ in range(repeats):
        for what, (function, arguments) in stages.items():
            start = time.perf_counter()
            wait_for(function(*arguments))
            times[what].append(1000.0 * (time.perf_counter() - start))
    return [
        {
            "what": what,
            "images": images,
            "anchors": anchors,
            "classes": classes,
            "ms_median": float(np.median(taken)),
            "ms_min": min(taken),
        }
        for what, taken in times.items()
    ]


def detector_outputs(
    grid: np.ndarray, images: int, classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Deltas (images, A, 4) and logits (images, A, classes), float32, for anchors (A, 4) xyxy."""
    rng = np.random.default_rng(seed)
    prior = -math.log((1.0 - 0.01) / 0.01)
    logits = rng.standard_normal((images, len(grid), classes), "float32")
    logits *= NOISE
    logits += prior
    deltas = rng.standard_normal((images, len(grid), 4), "float32") * np.float32(0.2)
    for image in range(images):
        # An object is an anchor moved and resized, so that some anchors do overlap it.
        objects = grid[rng.integers(0, len(grid), OBJECTS)]
        size = (objects[:, 2:] - objects[:, :2]) * rng.uniform(0.8, 1.25, (OBJECTS, 2))
        centre = (objects[:, 2:] + objects[:, :2]) / 2 + rng.uniform(-0.2, 0.2, size.shape) * size
        for low, high, label in zip(
            centre - size / 2, centre + size / 2, rng.integers(0, classes, OBJECTS), strict=True
        ):
            overlap = _overlap(grid, low, high)
            near = np.flatnonzero(overlap > 0.4)
            anchor_size = grid[near, 2:] - grid[near, :2]
            shift = (low + high - grid[near, :2] - grid[near, 2:]) / 2 / anchor_size
            exact = np.concatenate([shift, np.log((high - low) / anchor_size)], -1)
            deltas[image, near] = exact + rng.normal(0, 0.05, exact.shape)
            logits[image, near, label] += 9.0 * overlap[near] - 1.0
    return deltas, logits


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as `keras.Model.predict` runs a step on the current backend by default."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        # Keras' own rule for `jit_compile="auto"`: XLA where there is more than a CPU.
        return tf.function(function, jit_compile=keras.Sequential().jit_compile)
    if backend == "torch":
        import torch

        return torch.no_grad()(function)
    return function


def wait_for(result: Any) -> None:
    """Returns when `result` is computed; accelerators and JAX answer before that."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        jax.block_until_ready(result)
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
    else:
        keras.tree.map_structure(keras.ops.convert_to_numpy, result)


def _image_side(anchors: int) -> int:
    """Least multiple of 128 px whose pyramid has that many anchors."""
    side = 128
    while anchor_ops.ANCHORS_PER_CELL * sum((side // 2**level) ** 2 for level in LEVELS) < anchors:
        side += 128
    return side


def _overlap(grid: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(A,) intersection over union of the anchors with one box."""
    sides = np.minimum(grid[:, 2:], high) - np.maximum(grid[:, :2], low)
    intersection = np.prod(np.maximum(sides, 0), -1)
    return intersection / (
        np.prod(grid[:, 2:] - grid[:, :2], -1) + np.prod(high - low) - intersection
    )
