"""The built-in data set: generated images of shapes to detect and segment, no files needed.

Six classes of textured shapes, rotated, stretched, overlapping and partly outside, on a textured
ground among distractors: blobs, scribbles and writing. Every recipe runs on it when it is given no
data, so it has to be a real task, and one that a small network learns on a laptop from random
weights in minutes. That is why each class has a hue, as real things have; it is only a hint,
because distractors come in all hues, and so do some of the objects.
"""

from __future__ import annotations

import functools
from os import PathLike
from typing import Literal

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.boxes import mask_boxes
from keras_densepred.data.readers.summary import DatasetSummary, summarize
from keras_densepred.data.records import Record
from keras_densepred.data.shapes.export import coco_ground_truth, write_coco, write_voc
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

MAX_OBJECTS = 8  # in one image
_SPLITS = ("train", "val")

# Share of an object inside the frame that always stays visible.
_MIN_VISIBLE = 0.6
_EMPTY_IMAGES = 0.03

# Drawing an image of 96 pixels takes 4 ms, a third of a small detector's step, and a run wants each
# image once an epoch: as many as fit into so much memory are kept.
_KEPT_BYTES = 128 * 2**20
_Drawing = tuple[np.ndarray, np.ndarray, np.ndarray]
_kept: dict[tuple, _Drawing] = {}
_kept_bytes = 0


class ShapesDataset:
    """Generated images of six kinds of shapes, with boxes and on request masks and labels.

    Image `i` depends on `(seed, split, i)` and the image size only, so that the data set can be
    indexed from any process in any order. Boxes and masks are of what is visible, as in COCO.

    Args:
        num_images: how many images, at least 1.
        image_size: `(H, W)` in pixels or one number for both, at least 32.
        seed: not negative; other seeds give other images.
        split: `"train"` or `"val"`; the splits of one seed share no image.
        with_masks: whether records have `masks` (and `ground_truth` has `segmentation`).
        with_semantic: whether records have `semantic`: 0 for the ground, `label + 1` for shapes.

    Raises:
        ValueError: if an argument is outside of what is said above.
        ImportError: if OpenCV is not installed.
    """

    class_names: tuple[str, ...] = CLASS_NAMES
    category_ids: tuple[int, ...] = tuple(range(1, len(CLASS_NAMES) + 1))
    max_objects: int = MAX_OBJECTS

    def __init__(
        self,
        num_images: int,
        image_size: int | tuple[int, int] = 128,
        seed: int = 0,
        split: Literal["train", "val"] = "train",
        with_masks: bool = False,
        with_semantic: bool = False,
    ) -> None:
        height, width = check_shapes_arguments(num_images, image_size, seed, split)
        self.num_images = num_images
        self.image_size = (height, width)
        self.seed = seed
        self.split = split
        self.with_masks = with_masks
        self.with_semantic = with_semantic

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_images:
            raise IndexError(f"Index {index} is outside of 0..{self.num_images - 1}.")
        image, owner, labels = _drawn(self.seed, self.split, index, self.image_size)
        masks = owner[None] == np.arange(1, len(labels) + 1, dtype=np.uint8)[:, None, None]
        seen = masks.any(axis=(1, 2))
        labels, masks = labels[seen], masks[seen]
        semantic = None
        if self.with_semantic:
            semantic = np.zeros(self.image_size, np.uint8)
            for label, mask in zip(labels, masks, strict=True):
                semantic[mask] = label + 1
        return Record(
            image=image.copy(),  # whoever writes into it has not changed the next epoch's
            boxes=mask_boxes(masks),
            labels=labels,
            crowd=np.zeros(len(labels), bool),
            image_id=index + 1,
            file_name=f"{self.split}_{index:06d}.jpg",
            masks=masks if self.with_masks else None,
            semantic=semantic,
        )

    def __repr__(self) -> str:
        # Grain compares this when a position is restored.
        return (
            f"ShapesDataset({self.num_images}, {self.image_size}, {self.seed}, {self.split!r}, "
            f"{self.with_masks}, {self.with_semantic})"
        )

    @property
    def image_ids(self) -> tuple[int, ...]:
        """`index + 1` for each image."""
        return tuple(range(1, self.num_images + 1))

    def ground_truth(self) -> dict:
        """The whole split as a COCO dictionary, in pixels of the images.

        Returns:
            `{"images", "categories", "annotations"}`; with `with_masks` the annotations have their
            mask as compressed run lengths. `area` is the number of visible pixels. The images
            are drawn for it once, some milliseconds each.
        """
        return self._ground_truth

    def summary(self) -> DatasetSummary:
        """What the data set holds: objects per class and box sizes, among others."""
        return summarize(self.ground_truth(), f"shapes, {self.split}")

    def write_coco(self, directory: str | PathLike[str]) -> None:
        """Writes `images/{split}/*.jpg` and `annotations/instances_{split}.json`.

        Args:
            directory: made if it is not there. Splits may share one directory.
        """
        write_coco(self._with_masks(), directory)

    def write_voc(self, directory: str | PathLike[str]) -> None:
        """Writes a Pascal VOC tree: boxes, classes and objects as palette images, split lists.

        Args:
            directory: becomes the `VOC2012`-like root. Splits may share one directory.
        """
        write_voc(self._with_masks(), directory)

    @functools.cached_property
    def _ground_truth(self) -> dict:
        return coco_ground_truth(self._with_masks(), with_segmentation=self.with_masks)

    def _with_masks(self) -> ShapesDataset:
        """The same images with masks."""
        settings = self.num_images, self.image_size, self.seed, self.split
        return self if self.with_masks else type(self)(*settings, with_masks=True)


def _drawn(seed: int, split: str, index: int, size: tuple[int, int]) -> _Drawing:
    """`_draw_image`, or what it gave before; not to be written into."""
    global _kept_bytes
    key = seed, split, index, size
    drawing = _kept.get(key)
    if drawing is None:
        drawing = _draw_image(image_generator(seed, split, index), *size)
        for array in drawing:
            array.setflags(write=False)
        num_bytes = sum(array.nbytes for array in drawing)
        if _kept_bytes + num_bytes <= _KEPT_BYTES:
            _kept[key] = drawing
            _kept_bytes += num_bytes
    return drawing


def _draw_image(rng: np.random.Generator, height: int, width: int) -> _Drawing:
    """Draws one image.

    Returns:
        The image `(H, W, 3)` uint8; the owner of each pixel `(H, W)` uint8, 0 for none and `k + 1`
        for object `k`; the labels `(N,)` int32 of the objects.
    """
    unit = min(height, width)
    canvas = ground(rng, height, width)
    owner = np.zeros((height, width), np.uint8)
    for _ in range(rng.integers(0, 4)):
        add_distractor(rng, canvas, unit)

    count = 0 if rng.random() < _EMPTY_IMAGES else int(rng.integers(1, MAX_OBJECTS + 1))
    labels: list[int] = []
    # Pixels of each object (first the ground): if nothing covered it, and those still visible.
    whole, visible = np.zeros(1, int), np.zeros(1, int)
    for _ in range(count):
        label = int(rng.integers(len(CLASS_NAMES)))
        for _ in range(6):  # places to try before going without this object
            outline = place(rng, class_outline(rng, label), height, width)
            window, cover = rasterize(outline, height, width)
            solid = cover >= 128
            hidden = np.bincount(owner[window][solid], minlength=len(visible))
            if hidden.any() and np.all((visible - hidden >= _MIN_VISIBLE * whole)[1:]):
                break
        else:
            continue
        paint(rng, canvas[window], cover, unit, label)
        owner[window][solid] = len(labels) + 1
        labels.append(label)
        whole = np.append(whole, hidden.sum())
        visible = np.append(visible - hidden, hidden.sum())

    if rng.random() < 0.25:  # something thin in front, not part of the masks
        window, cover = scribble(rng, height, width, thickness=max(1, unit // 100))
        paint(rng, canvas[window], cover, unit)
        owner[window][cover >= 128] = 0

    return photograph(rng, canvas), owner, np.asarray(labels, np.int32)


def check_shapes_arguments(
    num_images: int, image_size: int | tuple[int, int], seed: int, split: str
) -> tuple[int, int]:
    """Refuses arguments that no images can be drawn from.

    Returns:
        Height and width of the images.

    Raises:
        ValueError: if an argument is outside of what `ShapesDataset` says.
        ImportError: if OpenCV is not installed.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, and is {num_images}.")
    if min(height, width) < 32:
        raise ValueError(f"`image_size` must be at least 32 pixels, and is {height}x{width}.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, and is {seed}.")
    if split not in _SPLITS:
        raise ValueError(f'`split` must be "train" or "val", and is {split!r}.')
    require("cv2", "data")
    return height, width


def image_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one image, independent of those of all others."""
    entropy = np.random.SeedSequence((seed, _SPLITS.index(split), index))
    return np.random.Generator(np.random.PCG64(entropy))
