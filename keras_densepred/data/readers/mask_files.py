"""Semantic masks in files: class numbers as they were written, each mask with its image."""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.image_files import ImageError, explained, load_image
from keras_densepred.data.readers.listing import unique_names
from keras_densepred.data.readers.mask_summary import SegmentationSummary, summarize_masks
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import IGNORE_LABEL, DatasetError, Record, semantic_record

_LOSSY = ("JPEG", "JPEG2000", "MPO")
_INTEGER_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def load_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a mask file: one class number in each pixel.

    - Palette images give their indices: the colours are only for looking at.
    - 8-bit gray, 16- and 32-bit integers give their values, 1-bit images 0 and 1.

    Requires Pillow, extra `data`.

    Args:
        path: the file; PNG, or anything without loss that Pillow reads.

    Returns:
        `(H, W)` uint8, with `IGNORE_LABEL` (255) where there is no class.

    Raises:
        ImageError: if the file is missing, damaged, lossy (JPEG), in colours, has gray values that
            can be read in two ways (2 and 4 bits), or a value above 255.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist.") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from error
    return decode_mask(content, name)


def decode_mask(content: bytes, name: str) -> np.ndarray:
    """Decodes the content of a mask file, by the rules of `load_mask`.

    Args:
        content: the file's bytes.
        name: what messages call it.

    Returns:
        `(H, W)` uint8.

    Raises:
        ImageError: if it holds no class numbers.
    """
    image_module = require("PIL.Image", "data")
    with explained(content, name), image_module.open(io.BytesIO(content)) as image:
        if image.format in _LOSSY:
            raise ImageError(
                f"{name} is a JPEG, whose compression changes class numbers: give the mask as it "
                "was before, as PNG."
            )
        # Pillow, like every viewer, stretches these to 0..255; the program that wrote them may not.
        bits = content[24] if image.format == "PNG" else 8
        if image.mode == "L" and bits in (2, 4):
            raise ImageError(
                f"{name} is a gray image of {bits} bits, whose class numbers could be 0 to "
                f"{2**bits - 1} or stretched to 255: write it with 8 bits or a palette."
            )
        if image.mode in ("P", "L"):
            return np.array(image)
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        if image.mode not in _INTEGER_MODES:
            kind = "has floating-point pixels" if image.mode == "F" else "is a colour picture"
            raise ImageError(
                f"{name} {kind} ({image.mode}), but a mask holds one class number in each pixel: "
                "convert it to a palette or 8-bit gray PNG."
            )
        values = np.array(image).astype(np.int64)
        outside = (values < 0) | (values > IGNORE_LABEL)
        if outside.any():
            row, column = _first(outside)
            raise ImageError(
                f"{name} has the value {values[row, column]} at row {row}, column {column}: class "
                f"numbers are 0 to {IGNORE_LABEL - 1}, and {IGNORE_LABEL} where there is none."
            )
        return values.astype(np.uint8)


def check_labels(mask: np.ndarray, num_classes: int, name: str) -> None:
    """Refuses labels without a class.

    Args:
        mask: `(H, W)` uint8.
        num_classes: C; labels are `0 .. C - 1`, and `IGNORE_LABEL`.
        name: what messages call the mask.

    Raises:
        DatasetError: naming the first such label and where it is.
    """
    unknown = (mask >= num_classes) & (mask != IGNORE_LABEL)
    if unknown.any():
        row, column = _first(unknown)
        raise DatasetError(
            f"{name} has label {mask[row, column]} at row {row}, column {column} "
            f"({unknown.sum():,} pixels have such labels), but the data set has {num_classes} "
            f"classes, labels 0 to {num_classes - 1}, and {IGNORE_LABEL} for none: correct the "
            "mask or the list of classes."
        )


def check_size(mask: np.ndarray, image: np.ndarray, mask_name: str, image_name: str) -> None:
    """Refuses a mask of another size than its image.

    Args:
        mask: `(H, W)`.
        image: `(H, W, 3)`.
        mask_name: what messages call the mask.
        image_name: what messages call the image.

    Raises:
        DatasetError: if their sizes differ.
    """
    if mask.shape == image.shape[:2]:
        return
    hint = ""
    if mask.shape == image.shape[1::-1]:
        hint = " (the sides are swapped: was the mask drawn before the image's EXIF rotation?)"
    raise DatasetError(
        f"{mask_name} is {mask.shape[1]} x {mask.shape[0]} pixels and its image {image_name} "
        f"{image.shape[1]} x {image.shape[0]}{hint}: give a mask of the image's size."
    )


class MaskFiles:
    """Images with a mask file each: what the readers of semantic segmentation data share.

    A random-access sequence of `Record`s (a Grain data source) with `semantic` and without boxes.
    Files are found when it is made and decoded when they are asked for. Requires Pillow and
    OpenCV, extra `data`.

    Args:
        name: what messages and the summary call the split.
        images: paths of the image files.
        masks: path of the mask of each.
        class_names: name of each label, at most 255.
        notes: what was noticed when the files were looked for.

    Raises:
        DatasetError: if there are no images or too many classes, or two classes have one name.
    """

    def __init__(
        self,
        name: str,
        images: Sequence[str],
        masks: Sequence[str],
        class_names: Sequence[str],
        notes: Sequence[Finding] = (),
    ) -> None:
        if not images:
            raise DatasetError(
                f"{name} has no images, so there is nothing to train or evaluate on: give a split "
                "with images and masks."
            )
        if not 0 < len(class_names) <= IGNORE_LABEL:
            raise DatasetError(
                f"{name} has {len(class_names)} classes, and a mask of 8 bits has room for 1 to "
                f"{IGNORE_LABEL}: correct the list of classes."
            )
        self.name = name
        self._images = tuple(images)
        self._masks = tuple(masks)
        self._class_names = unique_names(class_names, f"The list of classes of {name}")
        self._notes = tuple(notes)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        """Reads image number `index` with its mask.

        Raises:
            ImageError: if image or mask cannot be decoded.
            DatasetError: if they differ in size, or the mask has a label without a class.
        """
        index = range(len(self))[operator.index(index)]
        image = load_image(self._images[index])
        semantic = self.mask(index)
        check_size(semantic, image, self._masks[index], self._images[index])
        return semantic_record(image, semantic, index, os.path.basename(self._images[index]))

    def mask(self, index: int) -> np.ndarray:
        """Reads mask number `index` alone: `(H, W)` uint8, its labels checked.

        Raises:
            ImageError: if it cannot be decoded.
            DatasetError: if it has a label without a class.
        """
        mask = self._load_mask(self._masks[index])
        check_labels(mask, self.num_classes, self._masks[index])
        return mask

    def _load_mask(self, path: str) -> np.ndarray:
        """The labels `(H, W)` uint8 in a file."""
        return load_mask(path)

    def image_path(self, index: int) -> str:
        """The file of image number `index`."""
        return self._images[index]

    def __repr__(self) -> str:
        # Grain compares this when a position is restored, so it names what the data depend on.
        return (
            f"{type(self).__name__}({self.name!r}, images={len(self)}, classes={self.num_classes})"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of labels, the background included where it is one."""
        return len(self._class_names)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The labels themselves."""
        return tuple(range(self.num_classes))

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The position of each record."""
        return tuple(range(len(self)))

    @property
    def image_files(self) -> tuple[str, ...]:
        """Path of each image."""
        return self._images

    @property
    def mask_files(self) -> tuple[str, ...]:
        """Path of each mask."""
        return self._masks

    def summary(self) -> SegmentationSummary:
        """Counts pixels of each class; reads every mask once and no image.

        Raises:
            ImageError: if a mask cannot be decoded.
            DatasetError: if a mask has a label without a class.
        """
        return summarize_masks(self, self.name, self._notes)


def _first(where: np.ndarray) -> tuple[int, int]:
    """Row and column of the first True of `(H, W)`, which has one."""
    row, column = np.unravel_index(int(np.argmax(where)), where.shape)
    return int(row), int(column)
