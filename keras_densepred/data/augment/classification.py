"""Augmentation for image classification: what ImageNet models of the ConvNeXt line train with.

All of it runs on the host, on bytes, one image `(H, W, 3)` uint8 at a time.
`imagenet_augmentation` gives the recipe of CEDNet's classifiers (timm's, of ConvNeXt's training
commands): random resized crop, flip, RandAugment, random erasing; `data.Mixing` follows on whole
batches.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.augment.rand_augment import RandAugment
from keras_densepred.data.augment.transform import Size, Transform, height_and_width
from keras_densepred.data.image_files import EncodedImage

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Of the three channels, RGB in 0..255."""
IMAGENET_STD = (58.395, 57.12, 57.375)
"""Of the three channels."""

_TRIES = 10
# A JPEG is decoded at a half, a quarter, an eighth of its size only if the crop still has this many
# times the pixels needed on each side: Pillow's documentation calls the result of resizing with
# such a `reducing_gap` of 2 hard to tell from the whole image's.
_REDUCING_GAP = 2


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """A window of random area and aspect ratio, resized to one size (Szegedy et al., 2015).

    Ten windows are tried; if none fits, the largest in the middle with an allowed aspect ratio is
    taken. Bicubic: where a side shrinks by Pillow, which filters out what the result cannot show;
    where both grow by OpenCV, in 0.15 in place of 1.0 ms for 200x200 pixels to 224x224.

    Args:
        size: of the result, `(height, width)` or one number for both.
        scale: least and largest share of the image's area.
        ratio: least and largest width by height.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    takes_lazy_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        height_and_width(self.size)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"`{name}` must be two rising positive numbers, not {low, high}.")

    def __call__(self, image: np.ndarray | EncodedImage, rng: np.random.Generator) -> np.ndarray:
        box = self.draw_box(image.shape[0], image.shape[1], rng)
        return resized_crop(image, box, height_and_width(self.size))

    def draw_box(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draws a window of an image of that size: xyxy in whole pixels."""
        logs = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*logs))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(width - w + 1))
                top = int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = max(1, min(height, round(width / self.ratio[0])))
        elif width / height > self.ratio[1]:
            w = max(1, min(width, round(height * self.ratio[1])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class ImageFlip(Transform):
    """Mirrors left and right.

    Args:
        probability: of doing so.
    """

    probability: float = 0.5

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return image
        return require("cv2", "data").flip(image, 1)


@dataclasses.dataclass(frozen=True)
class RandomErasing(Transform):
    """Fills a rectangle with noise (Zhong et al., 2017; timm's mode "pixel", one rectangle).

    timm draws noise of mean 0 and deviation 1 on the normalised image; here it is the same in
    bytes, so values beyond black and white, 4 % of them, are clipped.

    Args:
        probability: of erasing.
        area: least and largest share of the image.
        ratio: least and largest height by width.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    geometric: ClassVar[bool] = False

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return image
        height, width = image.shape[:2]
        logs = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(*logs))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                noise = rng.standard_normal((h, w, 3), np.float32)
                noise = noise * np.array(IMAGENET_STD, np.float32) + IMAGENET_MEAN
                image = image.copy()
                image[top : top + h, left : left + w] = np.clip(np.rint(noise), 0, 255)
                return image
        return image


def imagenet_augmentation(
    size: Size,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    rand_augment: bool = True,
    erasing: float = 0.25,
) -> list[Transform]:
    """The recipe of CEDNet's classifiers on ImageNet, without mixing.

    Args:
        size: of the training image (the paper's is 224).
        scale: of the random resized crop.
        rand_augment: whether to use `RandAugment`.
        erasing: probability of `RandomErasing`.

    Returns:
        The transforms in order, for `train_class_batches(augment=...)`.
    """
    steps: list[Transform] = [RandomResizedCrop(size, scale), ImageFlip()]
    if rand_augment:
        steps.append(RandAugment())
    if erasing > 0:
        steps.append(RandomErasing(erasing))
    return steps


def evaluation_crop(image: np.ndarray, size: Size, crop_ratio: float | None) -> np.ndarray:
    """The evaluation crop of an image: resized by its shorter side, then the middle of that.

    In one step, by Pillow's bicubic filter: pixels outside of the crop are not computed.

    Args:
        image: `(H, W, 3)` uint8.
        size: of the result, `(height, width)` or one number for both.
        crop_ratio: share of the resized image's shorter side that is kept: with 0.875 and a size
            of 224, the image is resized to 256. None resizes the whole image, whatever its aspect
            ratio, as the authors do from 384 pixels on.

    Returns:
        `(height, width, 3)` uint8.
    """
    target = height_and_width(size)
    height, width = image.shape[:2]
    if crop_ratio is None:
        return resized_crop(image, (0, 0, width, height), target)
    # The resized image may not be smaller than the crop on either side.
    factor = max(int(target[0] / crop_ratio) / height, int(target[1] / crop_ratio) / width)
    resized = int(height * factor + 1e-6), int(width * factor + 1e-6)  # 255.999... is 256
    top, left = round((resized[0] - target[0]) / 2), round((resized[1] - target[1]) / 2)
    y, x = height / resized[0], width / resized[1]
    box = left * x, top * y, (left + target[1]) * x, (top + target[0]) * y
    return resized_crop(image, box, target)


def resized_crop(
    image: np.ndarray | EncodedImage,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
) -> np.ndarray:
    """Resizes a window of an image bicubically.

    A window of whole pixels is cut out first, so that nothing beyond it shows. A fractional one is
    a part of the resized whole image.

    Args:
        image: `(H, W, 3)` uint8, or not decoded yet.
        box: the window, xyxy in pixels of the image.
        size: height and width of the result.

    Returns:
        `(height, width, 3)` uint8.
    """
    height, width = size
    x1, y1, x2, y2 = box
    if isinstance(image, EncodedImage):
        gap = min((y2 - y1) / height, (x2 - x1) / width) / _REDUCING_GAP
        full = image.shape
        image = image.decode(next((n for n in (8, 4, 2) if gap >= n), 1))
        if image.shape != full:
            # In a reduced image the nearest whole pixels are exact enough.
            y, x = image.shape[0] / full[0], image.shape[1] / full[1]
            x1, y1, x2, y2 = round(x1 * x), round(y1 * y), round(x2 * x), round(y2 * y)
    if all(float(side).is_integer() for side in (x1, y1, x2, y2)):
        image = image[int(y1) : int(y2), int(x1) : int(x2)]
        x1, y1, x2, y2 = 0, 0, image.shape[1], image.shape[0]
        if image.shape[:2] == size:
            return image
        if image.shape[0] <= height and image.shape[1] <= width:
            cv2 = require("cv2", "data")
            return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    module = require("PIL.Image", "data")
    picture = module.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), module.Resampling.BICUBIC, (x1, y1, x2, y2)))
