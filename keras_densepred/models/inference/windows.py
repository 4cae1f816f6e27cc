"""Test-time inference of segmenters: sliding windows, several scales, mirrored images.

Each function wraps a prediction function in another one, so that they combine:
`multi_scale(sliding_window(model.predict_on_batch, 512))`. All shapes follow from the shape of the
images, so a compiling backend compiles once for each image shape (and scale).
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np

Predict = Callable[[np.ndarray], np.ndarray]

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # "Rethinking Atrous Convolution", section 4


def sliding_window(
    predict: Predict,
    size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    size_multiple: int | None = None,
) -> Predict:
    """Predicts windows of the training size, and averages the logits where they overlap.

    MMSegmentation's rule: along a side there is a window every `stride` pixels until the border is
    reached (with 512 and 341, `max(side - 512 + 340, 0) // 341 + 1`), and the last one is moved
    back to end there. An image smaller than a window is padded with zeros, the mean colour of
    normalised images, on the right and below.

    Args:
        predict: images `(B, *size, 3)` -> logits `(B, *size, C)`.
        size: height and width of a window, or one number for both, in pixels.
        stride: from one window to the next; by default two thirds of `size`.
        batch_size: windows per call, the same in every call; by default the number of images.
        size_multiple: an image smaller than a window is padded to a multiple of this only, the
            `size_divisor` of its backbone, as MMSegmentation, which takes it as it is, comes
            nearest to; by default to the size of a window, so that all have one shape.

    Returns:
        Images `(B, H, W, 3)` -> logits `(B, H, W, C)` float32.

    Raises:
        ValueError: if `size`, `stride` or `size_multiple` is not positive, or the stride leaves
            gaps.
    """
    window = _pair(size)
    step = tuple(max(1, side * 2 // 3) for side in window) if stride is None else _pair(stride)
    if min(window) < 1 or min(step) < 1 or step[0] > window[0] or step[1] > window[1]:
        raise ValueError(
            f"Windows of {window[0]}x{window[1]} pixels every {step[0]} and {step[1]} pixels do "
            "not cover an image: `stride` must be at least 1 and at most `size`."
        )
    if size_multiple is not None and size_multiple < 1:
        raise ValueError(f"`size_multiple` must be at least 1, and is {size_multiple}.")

    def slide(images: np.ndarray) -> np.ndarray:
        count, height, width = images.shape[:3]
        high, wide = (
            side if size_multiple is None else min(side, -(-own // size_multiple) * size_multiple)
            for side, own in zip(window, (height, width), strict=True)
        )
        below, right = max(0, high - height), max(0, wide - width)
        padded = np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
        places = [
            (image, top, left)
            for image in range(count)
            for top in _starts(padded.shape[1], high, step[0])
            for left in _starts(padded.shape[2], wide, step[1])
        ]
        at_once = batch_size or count
        total, weight = None, np.zeros((*padded.shape[1:3], 1), np.float32)
        for first in range(0, len(places), at_once):
            chosen = places[first : first + at_once]
            crops = np.zeros((at_once, high, wide, images.shape[-1]), images.dtype)
            for row, (image, top, left) in enumerate(chosen):
                crops[row] = padded[image, top : top + high, left : left + wide]
            logits = np.asarray(predict(crops))
            if total is None:
                total = np.zeros((*padded.shape[:3], logits.shape[-1]), np.float32)
            for row, (image, top, left) in enumerate(chosen):
                total[image, top : top + high, left : left + wide] += logits[row]
                if image == 0:
                    weight[top : top + high, left : left + wide] += 1.0
        assert total is not None
        return (total / weight)[:, :height, :width]

    return slide


def multi_scale(
    predict: Predict,
    scales: Sequence[float] = PAPER_SCALES,
    flip: bool = True,
    size_multiple: int | None = None,
) -> Predict:
    """Averages the probabilities over several sizes of the images and their mirror images.

    Args:
        predict: images `(B, H, W, 3)` -> logits `(B, H, W, C)`; also what `sliding_window` returns.
        scales: factors of the images' size.
        flip: whether mirrored images are predicted too.
        size_multiple: resized images are padded with zeros on the right and below to a multiple of
            this; by default the `size_divisor` of the model that `predict` is a method of, and no
            padding where it is another function, such as what `sliding_window` returns.

    Returns:
        Images `(B, H, W, 3)` float -> probabilities `(B, H, W, C)` float32.

    Raises:
        ValueError: if there is no scale, or one is not positive.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"`scales` must be positive numbers, at least one, and is {scales!r}.")
    if size_multiple is None:
        size_multiple = getattr(getattr(predict, "__self__", None), "size_divisor", 1)

    def average(images: np.ndarray) -> np.ndarray:
        height, width = images.shape[1:3]
        total = np.zeros((), np.float32)
        for scale in scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            resized = _resize(images, size)
            below, right = (-side % size_multiple for side in size)
            for mirrored in (False, True) if flip else (False,):
                view = resized[:, :, ::-1] if mirrored else resized
                view = np.pad(view, ((0, 0), (0, below), (0, right), (0, 0)))
                logits = np.asarray(predict(view))[:, : size[0], : size[1]]
                logits = logits[:, :, ::-1] if mirrored else logits
                total = total + _softmax(_resize(logits, (height, width)))
        return total / (len(scales) * (2 if flip else 1))

    return average


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin along an axis that is at least as long as one."""
    starts = list(range(0, length - window + 1, step))
    return starts if starts[-1] + window == length else [*starts, length - window]


def _resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if images.shape[1:3] == size:
        return np.asarray(images, np.float32)
    resized = keras.ops.image.resize(
        np.ascontiguousarray(images, np.float32),
        size,
        "bilinear",
        antialias=False,
        data_format="channels_last",
    )
    return keras.ops.convert_to_numpy(resized)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)
