"""The augmentation of DETR ("End-to-End Object Detection with Transformers", section 4, appendix).

Deformable DETR and its successors, CEDNet's configs among them, train by it: a picture is resized
to one of eleven sizes, every second one after a crop from a smaller picture.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from keras_densepred.data.augment.lazy_image import drawn
from keras_densepred.data.augment.objects import RandomFlip, random_crop, resize
from keras_densepred.data.augment.transform import Transform
from keras_densepred.data.records import Record

SHORT_SIDES = tuple(range(480, 801, 32))  # of the network's input, in pixels
LONG_SIDE = 1333
CROP_FROM = (400, 500, 600)  # short sides of the picture that is cropped
CROP = (384, 600)  # sides of the crop, from and to


@dataclasses.dataclass(frozen=True)
class ResizeShortSide(Transform):
    """Resizes with the aspect ratio kept, to a short side that is drawn from a list.

    Args:
        short_sides: in pixels; all are as likely.
        long_side: in pixels, which the other side does not exceed; None for no limit.
    """

    short_sides: tuple[int, ...]
    long_side: int | None = None

    takes_lazy_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"`short_sides` must be positive, and are {self.short_sides}.")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        short = self.short_sides[int(rng.integers(len(self.short_sides)))]
        factor = short / min(record.size)
        if self.long_side is not None:
            factor = min(factor, self.long_side / max(record.size))
        height, width = (max(1, int(side * factor + 0.5)) for side in record.size)
        return resize(record, height, width)


@dataclasses.dataclass(frozen=True)
class RandomSizeCrop(Transform):
    """Cuts a window of random height and width at a random place; it may hold no object.

    Args:
        smallest: least height and width in pixels, where the picture has as many.
        largest: greatest height and width.
    """

    smallest: int
    largest: int

    takes_lazy_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest:
            raise ValueError(
                f"`smallest` {self.smallest} must be positive and at most `largest` {self.largest}."
            )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = (
            int(rng.integers(min(self.smallest, side), min(self.largest, side) + 1))
            for side in record.size
        )
        return random_crop(record, height, width, rng)


@dataclasses.dataclass(frozen=True)
class Alternatives(Transform):
    """Takes one of several lists of transforms, all as likely.

    Args:
        branches: the lists; none of their transforms takes further images.
    """

    branches: tuple[tuple[Transform, ...], ...]

    takes_lazy_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        steps = [step for branch in self.branches for step in branch]
        if not self.branches or any(step.num_others for step in steps):
            raise ValueError("`branches` must be lists of transforms that take one image each.")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        for step in self.branches[int(rng.integers(len(self.branches)))]:
            if step.applies(rng):
                record = step(record if step.takes_lazy_image else drawn(record), rng)
        return record


def detr_augmentation(long_side: int = LONG_SIDE) -> list[Transform]:
    """The two ways of resizing, and flips.

    Args:
        long_side: longest side of training images in pixels; all other lengths follow from it.

    Returns:
        The transforms in order, for `train_batches(augment=...)`.
    """

    def scaled(length: int) -> int:
        return max(1, round(length * long_side / LONG_SIDE))

    final = ResizeShortSide(tuple(map(scaled, SHORT_SIDES)), long_side)
    crop = RandomSizeCrop(*map(scaled, CROP))
    branches = (final,), (ResizeShortSide(tuple(map(scaled, CROP_FROM))), crop, final)
    # The authors flip first, which is as random and draws the picture at its full size.
    return [Alternatives(branches), RandomFlip()]
