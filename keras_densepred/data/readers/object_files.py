"""Image files and their objects in a table: what all readers of detection data have in common."""

from __future__ import annotations

import copy
import dataclasses
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_densepred.data.image_files import load_image
from keras_densepred.data.readers.coco_checks import Faults
from keras_densepred.data.readers.coco_masks import (
    SegmentationError,
    check_segmentation,
    decode_masks,
    encode_segmentation,
    mask_areas,
    mask_boxes,
)
from keras_densepred.data.readers.object_table import ObjectTable
from keras_densepred.data.readers.summary import DatasetSummary, Finding
from keras_densepred.data.records import DatasetError, Record

_FEW_PIXELS = 8  # side of a box or mask that is too small to compare
_LEAST_IOU = 0.5  # of an object's box and the box around its mask


class ObjectFiles:
    """A random-access sequence of `Record`s (a Grain data source); readers are subclasses.

    The annotations are arrays from the beginning, an image is decoded when it is asked for.

    Args:
        source: the file or folder of the annotations, which messages and summaries name.
        images_path: the folder that the table's file names are in.
        table: the objects.
        given: how many objects there were before the table dropped some.
        notes: what the reader found, beside what the table did.

    Attributes:
        segmented: objects that have a segmentation in the files, whether masks are read or not.

    Raises:
        DatasetError: if no object is left.
    """

    def __init__(
        self,
        source: str,
        images_path: str,
        table: ObjectTable,
        given: int,
        notes: Sequence[Finding] = (),
    ) -> None:
        self.source = source
        self.images_path = images_path
        self._table = table
        self._notes = tuple(notes)
        self._masks: list[bytes] | None = None
        self.segmented = 0
        self._part = ""
        if not given:
            raise DatasetError(
                f"{source} has no objects, so there is nothing to train or evaluate on: annotate "
                "some."
            )
        if not len(table.labels):
            raise DatasetError(
                f"{source}: none of its {given} boxes has an area inside its image, so there is "
                f"nothing to train on: {self.box_form}."
            )

    box_form = "boxes are [x, y, width, height] in pixels"
    """What messages say about boxes that cannot be right."""

    def _stated_size(self, index: int) -> str:
        """Who says how large image number `index` is, as in "labels.json gives image id 7"."""
        raise NotImplementedError

    def _encode_masks(
        self, segmentations: Sequence[Any], object_name: Callable[[int], str], required: bool
    ) -> None:
        """Turns segmentations into RLE; without `required` only counts unusable ones.

        Args:
            segmentations: COCO's, one for each row of the table.
            object_name: row of the table -> what messages call the object.
            required: whether records have masks.
        """
        self.segmented = sum(map(bool, segmentations))
        if not required and not self.segmented:
            return
        sizes = np.repeat(self._table.image_sizes, np.diff(self._table.starts), axis=0).tolist()
        faults = Faults(self.source)
        masks = []
        for row, (segmentation, (height, width)) in enumerate(
            zip(segmentations, sizes, strict=True)
        ):
            try:
                if required:
                    masks.append(encode_segmentation(segmentation, height, width))
                elif segmentation:
                    check_segmentation(segmentation, height, width)
            except SegmentationError as error:
                faults.add(f"{object_name(row)} {error}")
        if required:
            faults.raise_if_any(
                "correct or remove them, or train boxes alone (by coco_dense, --detector faster, "
                "or with_masks=False in Python)"
            )
            self._masks = masks
            self._note_empty_masks(object_name, sizes)
            self._note_strange_masks(object_name, sizes)
        elif faults.count:
            subject = "segmentation" if faults.count == 1 else "segmentations"
            what = f"unusable {subject}, not needed for boxes"
            self._notes += (Finding(faults.count, what, faults.first),)

    def _note_empty_masks(self, object_name: Callable[[int], str], sizes: list[list[int]]) -> None:
        """Counts objects of whose mask no pixel is left; refuses a file of them."""
        assert self._masks is not None
        empty = np.flatnonzero(mask_areas(self._masks, sizes) == 0)
        if not len(empty):
            return
        first = object_name(int(empty[0]))
        if len(empty) == len(self._masks):
            raise DatasetError(
                f"{self.source}: no mask has a pixel inside its image, such as that of "
                f"{first}: polygons are [x0, y0, x1, y1, ...] in pixels, not shares of the image."
            )
        subject = "mask has no pixel" if len(empty) == 1 else "masks have no pixel"
        self._notes += (Finding(len(empty), f"{subject} inside the image", first),)

    def _note_strange_masks(
        self, object_name: Callable[[int], str], sizes: list[list[int]]
    ) -> None:
        """Counts objects whose mask and box are not of one place."""
        assert self._masks is not None
        around = mask_boxes(self._masks, sizes)
        boxes = self._table.boxes
        low = np.maximum(boxes[:, :2], around[:, :2])
        high = np.minimum(boxes[:, :2] + boxes[:, 2:], around[:, :2] + around[:, 2:])
        both = np.prod(np.clip(high - low, 0, None), axis=1)
        union = boxes[:, 2:].prod(axis=1) + around[:, 2:].prod(axis=1) - both
        # A polygon's box and its pixels differ by one pixel on each side, which is much of a few.
        is_small = (boxes[:, 2:] < _FEW_PIXELS).any(axis=1) | (around[:, 2:] == 0).any(axis=1)
        strange = np.flatnonzero((both < _LEAST_IOU * union) & ~is_small)
        if len(strange):
            subject = "mask is" if len(strange) == 1 else "masks are"
            what = f"{subject} not where the box is (IoU below {_LEAST_IOU:g})"
            self._notes += (Finding(len(strange), what, object_name(int(strange[0]))),)

    def __len__(self) -> int:
        return len(self._table.image_ids)

    def __getitem__(self, index: int) -> Record:
        """Reads image number `index` with its objects.

        Raises:
            ImageError: if the image file cannot be decoded.
            DatasetError: if its size is not the one that the annotations state.
        """
        index = range(len(self))[operator.index(index)]
        fields = self._table.fields(index)
        path = self.image_path(index)
        image = load_image(path)
        height, width = self._table.image_sizes[index].tolist()
        if image.shape[:2] != (height, width):
            hint = ""
            if image.shape[:2] == (width, height):
                hint = " (the sides are swapped: were the boxes drawn before its EXIF rotation?)"
            raise DatasetError(
                f"{path} is {image.shape[1]} x {image.shape[0]} pixels, but "
                f"{self._stated_size(index)} a width of {width} and a height of {height}, so its "
                f"boxes would be wrong{hint}: correct the entry or the file."
            )
        masks = None
        if self._masks is not None:
            masks = decode_masks(self._masks[self._table.of_image(index)], height, width)
        return Record(image=image, masks=masks, **fields)

    def image_path(self, index: int) -> str:
        """The file of image number `index`."""
        return os.path.join(self.images_path, self._table.file_names[index])

    def __repr__(self) -> str:
        # Grain compares this when a position is restored, so it names what the data depend on.
        part = f", part={self._part!r}" if self._part else ""
        return (
            f"{type(self).__name__}({self.source!r}, {self.images_path!r}, "
            f"with_masks={self._masks is not None}, images={len(self)}{part})"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self._table.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category id of each label, ascending."""
        return self._table.category_ids

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Id of each record's image, in order."""
        return tuple(self._table.image_ids.tolist())

    @property
    def file_names(self) -> tuple[str, ...]:
        """File of each image, relative to `images_path`."""
        return tuple(self._table.file_names)

    def ground_truth(self) -> dict:
        """The split as a COCO dictionary for evaluation.

        Returns:
            Dict with `images`, `categories` and `annotations`: the file's, with dropped and
            clipped boxes as in the records, crowd regions kept, annotation ids renumbered from 1,
            and with masks an RLE `segmentation`.
        """
        ground_truth = self._table.ground_truth()
        if self._masks is not None:
            sizes = np.repeat(self._table.image_sizes, np.diff(self._table.starts), axis=0)
            for annotation, size, counts in zip(
                ground_truth["annotations"], sizes.tolist(), self._masks, strict=True
            ):
                annotation["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
        return ground_truth

    def summary(self) -> DatasetSummary:
        """Counts images, boxes, sizes, and what was dropped; decodes no image."""
        name = f"{self.source} ({self._part})" if self._part else self.source
        return self._table.summary(name, self._notes)

    def subset(self, indices: Sequence[int], part: str, *, with_findings: bool = True) -> Any:
        """Some of the images, as a data set of the same kind.

        Args:
            indices: numbers of the images, in the wanted order.
            part: what the summary calls them.
            with_findings: whether the summary repeats what was found in all images.

        Returns:
            The data set.
        """
        made = copy.copy(self)
        made._part = part
        made._table, rows = self._table.subset(indices)
        if self._masks is not None:
            made._masks = [self._masks[row] for row in rows]
        if not with_findings:
            made._notes = ()
            made._table = dataclasses.replace(made._table, findings=())
        return made

    def without_class(self, label: int, note: Finding) -> Any:
        """The same data without a class that no object has; `note` says so in the summary."""
        made = copy.copy(self)
        made._table = self._table.without_class(label)
        made._notes = (*self._notes, note)
        return made
