"""RandAugment on the host: two of fifteen changes of shape or colour, each half of the time.

Cubuk et al., 2019, "RandAugment: practical automated data augmentation with a reduced search
space", in the form that CEDNet and ConvNeXt train with, timm's "rand-m9-mstd0.5-inc1": the
strength is drawn around 9 of 10 with a deviation of 0.5, and changes grow with it. That policy's
own colour jitter is not used beside it, as in timm.

Written with OpenCV, because on one core of the machine this was measured on
- `keras.layers.RandAugment` (Keras 3.15.1) takes 730 ms for an image of 224x224 on JAX and 3.5 s on
  PyTorch, computes on the accelerator (on JAX and PyTorch), draws one pair of changes for a whole
  batch, and has other changes and strengths than the papers';
- Pillow's functions, which timm calls, take 4.0 to 4.6 ms for a rotation or shear and 0.2 to 1.5 ms
  for a change of colour, these 1.9 and 0.1 to 0.5 ms. The changes of colour give Pillow's bytes to
  within one, that of saturation to within two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.transform import PAD_COLOR, Transform

_BYTES = np.arange(256)
_LUMA = np.array([299, 587, 114]) / 1000  # of red, green, blue: ITU-R 601
_SMOOTH = np.array([(1, 1, 1), (1, 5, 1), (1, 1, 1)], np.float32) / 13
_STRONGEST = 10.0  # the scale of strengths


@dataclasses.dataclass(frozen=True)
class RandAugment(Transform):
    """Changes drawn at random, applied one after the other.

    Args:
        changes: how many are drawn, with replacement.
        probability: of applying each of them.
        magnitude: mean strength, 0..10.
        deviation: of the strength; what is drawn is cut to 0..10.
    """

    changes: int = 2
    probability: float = 0.5
    magnitude: float = 9.0
    deviation: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= _STRONGEST:
            raise ValueError(f"`magnitude` must be in 0..10, and is {self.magnitude}.")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for number in rng.integers(len(CHANGES), size=self.changes):
            if rng.random() < self.probability:
                strength = np.clip(rng.normal(self.magnitude, self.deviation), 0, _STRONGEST)
                sign = -1.0 if rng.random() < 0.5 else 1.0
                image = CHANGES[number](image, float(strength) / _STRONGEST, sign)
        return image


def auto_contrast(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Stretches each channel to 0..255."""
    cv2 = require("cv2", "data")
    # All rows to one first: NumPy alone takes 2.2 ms for 224x224 pixels, this 0.3 ms.
    low = cv2.reduce(image, 0, cv2.REDUCE_MIN).min(axis=(0, 1)).astype(float)
    high = cv2.reduce(image, 0, cv2.REDUCE_MAX).max(axis=(0, 1)).astype(float)
    flat = high <= low
    factor = 255 / np.where(flat, 255, high - low)
    table = (_BYTES[:, None] - np.where(flat, 0, low)) * factor
    return _look_up(image, table)


def equalize(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Spreads the levels of each channel until all are about equally frequent."""
    cv2 = require("cv2", "data")
    table = np.tile(_BYTES[:, None], 3)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        used = counts[counts > 0]
        step = (used.sum() - used[-1]) // 255
        if step:
            below = np.concatenate([[0], np.cumsum(counts)[:-1]])
            table[:, channel] = (step // 2 + below) // step
    return _look_up(image, table)


def invert(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """The negative."""
    return 255 - image


def posterize(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Keeps the upper 4 bits of each byte, or at full strength none."""
    kept = 4 - int(strength * 4)
    return image & np.uint8(256 - 2 ** (8 - kept) if kept else 0)


def solarize(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """The negative of all bytes from a threshold on, which is 0 at full strength."""
    return _look_up(image, np.where(256 - int(strength * 256) > _BYTES, _BYTES, 255 - _BYTES))


def solarize_add(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Makes the darker half of all levels brighter, by up to 110."""
    return _look_up(image, np.where(_BYTES < 128, _BYTES + int(strength * 110), _BYTES))


def color(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Less or more colour, up to a tenth or almost the double."""
    factor = 1 + sign * 0.9 * strength
    matrix = factor * np.eye(3) + (1 - factor) * _LUMA
    return require("cv2", "data").transform(image, matrix)


def contrast(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Less or more contrast around the mean gray."""
    factor = 1 + sign * 0.9 * strength
    sums = np.array(require("cv2", "data").sumElems(image)[:3])  # 0.02 ms; NumPy's mean 1.1
    mean = math.floor(float(np.dot(sums / (image.size // 3), _LUMA)) + 0.5)
    return _look_up(image, mean + factor * (_BYTES - mean))


def brightness(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Darker or brighter."""
    return _look_up(image, (1 + sign * 0.9 * strength) * _BYTES)


def sharpness(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Smoother or sharper; the outermost pixels stay."""
    cv2 = require("cv2", "data")
    factor = 1 + sign * 0.9 * strength
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    changed = cv2.addWeighted(image, factor, smooth, 1 - factor, 0)
    if min(image.shape[:2]) < 3:
        return image
    result = image.copy()
    result[1:-1, 1:-1] = changed[1:-1, 1:-1]
    return result


def rotate(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Turns by up to 30 degrees around the middle."""
    angle = sign * math.radians(30 * strength)
    cosine, sine = math.cos(angle), math.sin(angle)
    y, x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    return _warp(
        image,
        [[cosine, sine, x - cosine * x - sine * y], [-sine, cosine, y + sine * x - cosine * y]],
    )


def shear_x(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Moves each row sideways by up to 0.3 of its height in the image."""
    return _warp(image, [[1, sign * 0.3 * strength, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Moves each column up or down by up to 0.3 of its place in the image."""
    return _warp(image, [[1, 0, 0], [sign * 0.3 * strength, 1, 0]])


def translate_x(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Moves sideways by up to 0.45 of the width."""
    return _warp(image, [[1, 0, sign * 0.45 * strength * image.shape[1]], [0, 1, 0]])


def translate_y(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    """Moves up or down by up to 0.45 of the height."""
    return _warp(image, [[1, 0, 0], [0, 1, sign * 0.45 * strength * image.shape[0]]])


CHANGES: tuple[Callable[[np.ndarray, float, float], np.ndarray], ...] = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
"""Each maps an image `(H, W, 3)` uint8, the strength 0..1 and the direction -1 or 1 to an image."""


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replaces each byte by its entry in `table`, `(256,)` or `(256, 3)` by channel."""
    entries = np.clip(table, 0, 255).astype(np.uint8)
    if entries.ndim == 2:
        entries = entries[None]
    return require("cv2", "data").LUT(image, entries)


def _warp(image: np.ndarray, inverse: list[list[float]]) -> np.ndarray:
    """Takes pixel `(x, y)` bicubically from where `inverse` says; the mean colour beyond."""
    cv2 = require("cv2", "data")
    return cv2.warpAffine(
        image,
        np.array(inverse, np.float64),
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=PAD_COLOR,
    )
