"""The built-in shapes as a classification task: one shape per image, no files needed.

The class is the outline. There are up to four distractors beside the shape, and half of the shapes
have a random hue, so that colour alone gives away little more than half of them: a network has to
recognise the form, rotated, stretched, at many sizes and partly outside the image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from keras_densepred.data.readers.class_summary import ClassSummary
from keras_densepred.data.records import LabelledImage
from keras_densepred.data.shapes.detection import check_shapes_arguments, image_generator
from keras_densepred.data.shapes.painting import (
    CLASS_NAMES,
    add_distractor,
    class_outline,
    ground,
    paint,
    photograph,
    place,
    rasterize,
    scribble,
)

_DIAMETER = (0.25, 0.8)  # as a share of the shorter image side
_ODD_HUES = 0.5


class ShapesClassification:
    """Generated images of one shape each: circle, square, triangle, star, ring or cross.

    Image `i` depends on `(seed, split, i)` and the image size only. Classes are equally
    frequent: that of image `i` is `i % 6`.

    Args:
        num_images: how many images, at least 1.
        image_size: `(H, W)` in pixels or one number for both, at least 32.
        seed: not negative; other seeds give other images.
        split: `"train"` or `"val"`; the splits of one seed share no image.

    Raises:
        ValueError: if an argument is outside of what is said above.
        ImportError: if OpenCV is not installed.
    """

    class_names: tuple[str, ...] = CLASS_NAMES
    category_ids: tuple[int, ...] = tuple(range(len(CLASS_NAMES)))

    def __init__(
        self,
        num_images: int,
        image_size: int | tuple[int, int] = 128,
        seed: int = 0,
        split: Literal["train", "val"] = "train",
    ) -> None:
        self.image_size = check_shapes_arguments(num_images, image_size, seed, split)
        self.num_images = num_images
        self.seed = seed
        self.split = split

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> LabelledImage:
        if not 0 <= index < self.num_images:
            raise IndexError(f"Index {index} is outside of 0..{self.num_images - 1}.")
        rng = image_generator(self.seed, self.split, index)
        label = index % len(CLASS_NAMES)
        return LabelledImage(
            image=_draw_image(rng, *self.image_size, label),
            label=label,
            image_id=index,
            file_name=f"{self.split}_{index:06d}.jpg",
        )

    def __repr__(self) -> str:
        # Grain compares this when a position is restored.
        return (
            f"ShapesClassification({self.num_images}, {self.image_size}, {self.seed}, "
            f"{self.split!r})"
        )

    def summary(self) -> ClassSummary:
        """Counts the images of each class."""
        counts = np.bincount(np.arange(len(self)) % len(CLASS_NAMES), minlength=len(CLASS_NAMES))
        per_class = dict(zip(CLASS_NAMES, counts.tolist(), strict=True))
        return ClassSummary(f"shapes, {self.split}", per_class)


def _draw_image(rng: np.random.Generator, height: int, width: int, label: int) -> np.ndarray:
    """An image of one shape `(H, W, 3)` uint8."""
    unit = min(height, width)
    canvas = ground(rng, height, width)
    for _ in range(rng.integers(0, 5)):
        add_distractor(rng, canvas, unit)
    outline = place(rng, class_outline(rng, label), height, width, _DIAMETER)
    window, cover = rasterize(outline, height, width)
    paint(rng, canvas[window], cover, unit, label, _ODD_HUES)
    if rng.random() < 0.25:  # something thin in front
        window, cover = scribble(rng, height, width, thickness=max(1, unit // 100))
        paint(rng, canvas[window], cover, unit)
    return photograph(rng, canvas)
