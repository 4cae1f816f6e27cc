"""What a transform is: the contract between augmentation and the batches that apply it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

Size = int | tuple[int, int]
"""`(height, width)` in pixels, or one number for both."""

PAD_COLOR = (124, 116, 104)
"""ImageNet's mean colour in whole numbers: after normalisation at most 0.01 away from zero."""


def height_and_width(size: Size) -> tuple[int, int]:
    """`size` as `(height, width)`.

    Raises:
        ValueError: if it is not one or two positive numbers.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"A size must be positive, and is {height}x{width}.")
    return height, width


class Transform(abc.ABC):
    """Base of the transforms: `transform(record, rng) -> record`.

    `record` is a `data.Record` in detection and segmentation, and the image `(H, W, 3)` uint8 alone
    in classification. A transform leaves what it is given unchanged and returns something new. It
    draws every random number from `rng`, a `numpy.random.Generator` that belongs to one position of
    the stream, and keeps no state between calls: so batch k depends on k alone, an interrupted run
    resumes exactly, and worker processes change nothing.

    A plain function of the same two arguments is a transform too; it gets the defaults below.

    Attributes:
        geometric: whether pixels move, and boxes, masks and labels with them. False promises that
            only colours change; the pipeline then refuses an image of another size.
        takes_lazy_image: whether the image may be one that is not computed yet: a `LazyImage`, or
            in classification an `EncodedImage`. False gets an array. Not inherited by a subclass
            with a `__call__` of its own, which may look at pixels.
        num_others: how many further images a call takes, see `Combine`.
    """

    geometric: ClassVar[bool] = True
    takes_lazy_image: ClassVar[bool] = False
    num_others: ClassVar[int] = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls) and "takes_lazy_image" not in vars(cls):
            cls.takes_lazy_image = False

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`transform(record, rng)`, or `transform(record, *others, rng)`."""

    def applies(self, rng: np.random.Generator) -> bool:
        """Draws whether the pipeline calls this on a record at all."""
        del rng
        return True

    def most_added(self, most: int) -> int:
        """How many objects a call adds at most if no image of the data set has more than `most`."""
        del most
        return 0


@dataclasses.dataclass(frozen=True)
class Combine(Transform):
    """Base of the transforms that take further images: `transform(record, *others, rng)`.

    The pipeline draws with `probability` whether to use one on a record, reads the other images
    only then, and puts them through the steps before this one. A call always combines.

    Args:
        probability: of being used on a record.
    """

    probability: float = 0.5

    num_others: ClassVar[int] = 1

    def applies(self, rng: np.random.Generator) -> bool:
        """True with `probability`."""
        return rng.random() < self.probability

    @abc.abstractmethod
    def most_added(self, most: int) -> int:
        """How many objects a call adds at most if no image of the data set has more than `most`."""


@dataclasses.dataclass(frozen=True)
class _Function(Transform):
    """A plain function as a transform."""

    function: Callable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __str__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def as_transforms(steps: Sequence[Callable]) -> tuple[Transform, ...]:
    """Transforms as they are, plain functions with the defaults of `Transform`.

    Raises:
        ValueError: if one cannot be called.
    """
    for number, step in enumerate(steps):
        if not callable(step):
            raise ValueError(
                f"`augment` must be a list of transforms, and its entry {number} is {step!r}."
            )
    return tuple(step if isinstance(step, Transform) else _Function(step) for step in steps)
