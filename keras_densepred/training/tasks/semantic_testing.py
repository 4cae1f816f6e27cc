"""Testing segmenters as MMSegmentation does: resized under two limits, in windows, at own size.

Every image is predicted by itself at its own shape, without padding around it, so that windows lie
where they lie there; logits come back to the image's own size before they become probabilities.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.scene_parsing import size_under_limits
from keras_densepred.metrics import PixelCounts
from keras_densepred.models import sliding_window

_LONG = 4  # limit of the longer side, by that of the shorter


@dataclasses.dataclass(frozen=True)
class LimitedTest:
    """How an image is predicted.

    Args:
        predict: images `(B, H, W, 3)`, normalised -> logits `(B, H, W, C)`.
        mean: of the three channels, RGB in 0..255; None leaves images as bytes.
        std: likewise.
        short: limit of the shorter side in pixels; the longer one's is four times that.
        window: side of a window in pixels; None for whole images, padded to `size_multiple`.
        scales: factors of the limits, over which probabilities are averaged.
        flip: whether mirrored images are predicted too.
        size_multiple: an image smaller than a window is padded to a multiple of this, and its
            logits are cut.
        rows: windows of a call.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    short: int = 512
    window: int | None = 512
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    size_multiple: int = 32
    rows: int = 1

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """`(H, W, 3)` uint8 RGB -> mean probabilities `(H, W, C)` float32, at the same size."""
        cv2 = require("cv2", "data")
        height, width = image.shape[:2]
        predict = self._in_windows()
        total = np.zeros((), np.float32)
        for scale in self.scales:
            limits = int(self.short * scale), int(_LONG * self.short * scale)
            size = size_under_limits((height, width), *limits)
            resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
            batch = self._normalised(resized)[None]
            for mirrored in (False, True) if self.flip else (False,):
                logits = predict(batch[:, :, ::-1] if mirrored else batch)[0]
                logits = np.ascontiguousarray(logits[:, ::-1] if mirrored else logits, np.float32)
                own = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)
                total = total + _softmax(own.reshape(height, width, -1))
        return total / (len(self.scales) * (2 if self.flip else 1))

    def _in_windows(self) -> Callable[[np.ndarray], np.ndarray]:
        if self.window is not None:
            return sliding_window(
                self.predict,
                self.window,
                batch_size=self.rows,
                size_multiple=self.size_multiple,
            )

        def whole(images: np.ndarray) -> np.ndarray:
            height, width = images.shape[1:3]
            below, right = (-side % self.size_multiple for side in (height, width))
            padded = np.pad(images, ((0, self.rows - 1), (0, below), (0, right), (0, 0)))
            return np.asarray(self.predict(padded))[:1, :height, :width]

        return whole

    def _normalised(self, image: np.ndarray) -> np.ndarray:
        if self.mean is None or self.std is None:
            return image
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        return (image.astype(np.float32) - mean) / std


def count_under_limits(
    test: LimitedTest, split: Any, on_image: Callable[[int], None] | None = None
) -> PixelCounts:
    """Predicts every image of a split and counts its pixels at its own size.

    Args:
        test: how.
        split: a segmentation data set.
        on_image: called with the number of images done, for progress.

    Returns:
        The counts.

    Raises:
        ValueError: if scores are not finite.
    """
    counts = PixelCounts(len(split.class_names))
    for index in range(len(split)):
        record = split[index]
        probabilities = test.probabilities(record.image)
        if not np.isfinite(probabilities).all():
            raise ValueError(
                f"The scores of {record.file_name} are not finite; the network has probably "
                "diverged, look at its training loss."
            )
        counts.update(record.semantic, probabilities.argmax(axis=-1))
        if on_image is not None:
            on_image(index + 1)
    return counts


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)
