"""Semantic masks in files: class numbers as they were written, each mask with its image."""

from __future__ import annotations

import functools
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
    return decode_mask(_content_of(name), name)


def _content_of(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist.") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}.") from error


def palette_of(content: bytes, name: str) -> np.ndarray | None:
    """The colours of a palette image `(N, 3)` uint8; None for others and for ramps of gray.

    Args:
        content: the file's bytes.
        name: what messages call it.

    Raises:
        ImageError: if it is no image.
    """
    image_module = require("PIL.Image", "data")
    with explained(content, name), image_module.open(io.BytesIO(content)) as image:
        palette = image.palette if image.mode == "P" else None
        if palette is None:
            return None
        # What the header has; `getpalette` decodes the image.
        in_header = palette.rawmode == "RGB"
        values = np.frombuffer(palette.palette, np.uint8) if in_header else image.getpalette()
    colours = np.array(values, np.uint8).reshape(-1, 3)
    return None if (colours == colours[:, :1]).all() else colours


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


def check_labels(mask: np.ndarray, num_classes: int, name: str, first_label: int = 0) -> None:
    """Refuses labels without a class.

    Args:
        mask: `(H, W)` uint8, as it is in the file.
        num_classes: C; labels are `first_label .. first_label + C - 1`, and `IGNORE_LABEL`.
        name: what messages call the mask.
        first_label: number of the first class; those below stand for none.

    Raises:
        DatasetError: naming the first such label and where it is.
    """
    end = first_label + num_classes
    unknown = (mask >= end) & (mask != IGNORE_LABEL)
    if unknown.any():
        row, column = _first(unknown)
        raise DatasetError(
            f"{name} has label {mask[row, column]} at row {row}, column {column} "
            f"({unknown.sum():,} pixels have such labels), but the data set has {num_classes} "
            f"classes, labels {first_label} to {end - 1}, and "
            f"{f'0 or {IGNORE_LABEL}' if first_label else IGNORE_LABEL} for none: correct the mask "
            "or the list of classes."
        )


def from_label(mask: np.ndarray, first_label: int) -> np.ndarray:
    """Labels from 0 of numbers from `first_label`; lower ones, and `IGNORE_LABEL`, are ignored.

    Args:
        mask: `(H, W)` uint8.
        first_label: number of the first class.
    """
    if not first_label:
        return mask
    unlabelled = (mask < first_label) | (mask == IGNORE_LABEL)
    return np.where(unlabelled, np.uint8(IGNORE_LABEL), mask - np.uint8(first_label))


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
        first_label: number of the first class in the masks; lower ones stand for no class.

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
        first_label: int = 0,
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
        self._first_label = first_label

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
        check_labels(mask, self.num_classes, self._masks[index], self._first_label)
        return from_label(mask, self._first_label)

    def _load_mask(self, path: str) -> np.ndarray:
        """The numbers `(H, W)` uint8 in a file, whose palette is that of the others."""
        content = _content_of(path)
        mask = decode_mask(content, path)
        _check_palette(mask, palette_of(content, path), path, self._palette, self._masks[0])
        return mask

    @functools.cached_property
    def _palette(self) -> np.ndarray | None:
        """The colours of the first mask, which those of all others have to be."""
        try:
            return palette_of(_content_of(self._masks[0]), self._masks[0])
        except ImageError:  # which is said when this mask is read
            return None

    @property
    def class_colours(self) -> tuple[tuple[int, int, int], ...] | None:
        """Red, green, blue of each label, of the masks' palette; None where they have none."""
        palette = self._palette
        if palette is None:
            return None
        used = palette[self._first_label :][: self.num_classes].tolist()
        if len(used) < self.num_classes or len({*map(tuple, used)}) < self.num_classes:
            return None  # it tells some classes from each other only
        return tuple((red, green, blue) for red, green, blue in used)

    def image_path(self, index: int) -> str:
        """The file of image number `index`."""
        return self._images[index]

    def __repr__(self) -> str:
        # Grain compares this when a position is restored, so it names what the data depend on.
        return (
            f"{type(self).__name__}({self.name!r}, images={len(self)}, classes={self.num_classes}"
            f"{f', first_label={self._first_label}' if self._first_label else ''})"
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


def _check_palette(
    mask: np.ndarray,
    palette: np.ndarray | None,
    path: str,
    first_palette: np.ndarray | None,
    first_path: str,
) -> None:
    """Refuses a mask that shows one of its numbers in another colour than the first mask does.

    Programs that make a palette for each file give a class another number in each.

    Raises:
        DatasetError: naming both files.
    """
    if palette is None or first_palette is None or palette is first_palette:
        return
    both = min(len(palette), len(first_palette))
    differ = np.flatnonzero((palette[:both] != first_palette[:both]).any(axis=1))
    if not len(differ):
        return
    used = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE_LABEL + 1))
    wrong = np.intersect1d(differ, used)
    if len(wrong):
        label = int(wrong[0])
        raise DatasetError(
            f"{path} shows label {label} in the colour {tuple(palette[label].tolist())} and "
            f"{first_path} in {tuple(first_palette[label].tolist())}: their palettes differ, so "
            "a number may not mean one class; write all masks with one palette, or in gray."
        )


def _first(where: np.ndarray) -> tuple[int, int]:
    """Row and column of the first True of `(H, W)`, which has one."""
    row, column = np.unravel_index(int(np.argmax(where)), where.shape)
    return int(row), int(column)
