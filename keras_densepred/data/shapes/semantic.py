"""The built-in shapes as a semantic segmentation data set."""

from __future__ import annotations

from typing import Literal

import numpy as np

from keras_densepred.data.readers.mask_summary import SegmentationSummary, summarize_masks
from keras_densepred.data.records import Record, semantic_record
from keras_densepred.data.shapes.detection import ShapesDataset
from keras_densepred.data.shapes.painting import CLASS_NAMES


class ShapesSegmentation:
    """The images of `ShapesDataset`, each pixel labelled: 0 the ground, 1 to 6 the shapes.

    Args:
        num_images: how many images, at least 1.
        image_size: `(H, W)` in pixels or one number for both, at least 32.
        seed: not negative; other seeds give other images.
        split: `"train"` or `"val"`; the splits of one seed share no image.

    Raises:
        ValueError: if an argument is outside of what is said above.
        ImportError: if OpenCV is not installed.
    """

    class_names: tuple[str, ...] = ("background", *CLASS_NAMES)
    category_ids: tuple[int, ...] = tuple(range(len(CLASS_NAMES) + 1))
    num_classes: int = len(CLASS_NAMES) + 1

    def __init__(
        self,
        num_images: int,
        image_size: int | tuple[int, int] = 128,
        seed: int = 0,
        split: Literal["train", "val"] = "train",
    ) -> None:
        self._shapes = ShapesDataset(num_images, image_size, seed, split, with_semantic=True)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Record:
        record = self._shapes[index]
        assert record.semantic is not None
        return semantic_record(record.image, record.semantic, index, record.file_name)

    def __repr__(self) -> str:
        # Grain compares this when a position is restored.
        shapes = self._shapes
        return (
            f"ShapesSegmentation({len(self)}, {shapes.image_size}, {shapes.seed}, {shapes.split!r})"
        )

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The position of each image."""
        return tuple(range(len(self)))

    @property
    def image_sizes(self) -> np.ndarray:
        """Height and width of each image, `(N, 2)` int64."""
        return np.tile(np.array(self._shapes.image_size, np.int64), (len(self), 1))

    def summary(self) -> SegmentationSummary:
        """Counts pixels of each class; draws every image once, some milliseconds each."""
        return summarize_masks(self, f"shapes, {self._shapes.split}")
