"""Detection and instance segmentation data in COCO's JSON format, with random access."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_densepred.data.image_files import load_image
from keras_densepred.data.readers.box_form import check_box_form
from keras_densepred.data.readers.coco_checks import (
    Faults,
    check_entries,
    class_names,
    find_files,
    name_annotation,
    read_annotation_file,
    repeated_ids,
    show,
)
from keras_densepred.data.readers.coco_masks import (
    SegmentationError,
    check_segmentation,
    decode_masks,
    encode_segmentation,
    mask_areas,
)
from keras_densepred.data.readers.listing import input_path
from keras_densepred.data.readers.object_table import ObjectTable
from keras_densepred.data.readers.summary import DatasetSummary, Finding
from keras_densepred.data.records import DatasetError, Record


class CocoDataset:
    """The images and objects of one COCO annotation file.

    A random-access sequence of `Record`s (a Grain data source). The annotations are checked and
    turned into arrays when it is made, an image is decoded when it is asked for. Labels are the
    positions of the categories in the order of their ids, so that files with the same categories
    agree. Boxes without area or outside their image are dropped, those partly outside are
    clipped; `summary()` counts them. Requires Pillow, and faster-coco-eval for masks: extra
    `data`.

    Args:
        annotations: the JSON file, `instances_train2017.json` for instance.
        images: the folder that its `file_name`s are in.
        with_masks: whether records have `masks`, decoded from polygons (several an object) and
            RLE (compressed or not) by COCO's own rules.

    Raises:
        DatasetError: if the file is not a COCO annotation file, contradicts itself (duplicate or
            unknown ids, boxes that are not four finite numbers, or that all look like corners or
            like shares of the image), names images that do not exist
            or lie outside `images`, has nothing to learn from, or, with `with_masks`, has a
            segmentation that gives no mask of its image's size, or no mask with a pixel.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        with_masks: bool = False,
    ) -> None:
        self.annotations_path = str(input_path(annotations))
        self.images_path = str(input_path(images))
        content = read_annotation_file(self.annotations_path)
        self._table, notes = _build_table(content, self.annotations_path, self.images_path)
        kept = [content["annotations"][i] for i in self._table.rows]
        self._masks: list[bytes] | None = None
        self._notes = (*notes, *repeated_ids(content["annotations"]))
        self._encode_masks(kept, required=with_masks)

    def _encode_masks(self, annotations: list[dict], required: bool) -> None:
        """Turns segmentations into RLE; without `required` only counts unusable ones."""
        sizes = np.repeat(self._table.image_sizes, np.diff(self._table.starts), axis=0).tolist()
        faults = Faults(self.annotations_path)
        masks = []
        for annotation, (height, width) in zip(annotations, sizes, strict=True):
            segmentation = annotation.get("segmentation")
            try:
                if required:
                    masks.append(encode_segmentation(segmentation, height, width))
                elif segmentation:
                    check_segmentation(segmentation, height, width)
            except SegmentationError as error:
                faults.add(f"{name_annotation(annotation)} {error}")
        if required:
            faults.raise_if_any("correct or remove them, or load the data set without masks")
            self._masks = masks
            self._note_empty_masks(annotations, sizes)
        elif faults.count:
            subject = "segmentation" if faults.count == 1 else "segmentations"
            what = f"unusable {subject}, not needed for boxes"
            self._notes += (Finding(faults.count, what, faults.first),)

    def _note_empty_masks(self, annotations: list[dict], sizes: list[list[int]]) -> None:
        """Counts objects of whose mask no pixel is left; refuses a file of them."""
        assert self._masks is not None
        empty = np.flatnonzero(mask_areas(self._masks, sizes) == 0)
        if not len(empty):
            return
        first = name_annotation(annotations[empty[0]])
        if len(empty) == len(self._masks):
            raise DatasetError(
                f"{self.annotations_path}: no mask has a pixel inside its image, such as that of "
                f"{first}: polygons are [x0, y0, x1, y1, ...] in pixels, not shares of the image."
            )
        subject = "mask has no pixel" if len(empty) == 1 else "masks have no pixel"
        self._notes += (Finding(len(empty), f"{subject} inside the image", first),)

    def __len__(self) -> int:
        return len(self._table.image_ids)

    def __getitem__(self, index: int) -> Record:
        """Reads image number `index` with its objects.

        Raises:
            ImageError: if the image file cannot be decoded.
            DatasetError: if its size is not the one that the annotation file states.
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
                f"{self.annotations_path} gives image id {fields['image_id']} a width of {width} "
                f"and a height of {height}, so its boxes would be wrong{hint}: correct the entry "
                "or the file."
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
        return (
            f"CocoDataset({self.annotations_path!r}, {self.images_path!r}, "
            f"with_masks={self._masks is not None}, images={len(self)})"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return self._table.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category id of each label, ascending."""
        return self._table.category_ids

    @property
    def image_ids(self) -> tuple[int, ...]:
        """COCO image id of each record, in the file's order."""
        return tuple(self._table.image_ids.tolist())

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
        return self._table.summary(self.annotations_path, self._notes)


def find_coco_splits(data_dir: str | os.PathLike[str]) -> dict[str, tuple[Path, Path]]:
    """Finds the annotation files and image folders of a COCO tree.

    The layouts known are COCO's own (`annotations/instances_train2017.json` with `train2017/` or
    `images/train2017/`, the years 2017 and 2014) and the plain one
    (`annotations/instances_train.json` with `images/train/` or `train/`), and `val` likewise.

    Args:
        data_dir: root of the tree.

    Returns:
        `{"train": (annotations, images), "val": (annotations, images)}`.

    Raises:
        DatasetError: if either split is not there; the message says what was looked for.
    """
    root = input_path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder: give the root of a COCO data set.")
    splits = {}
    for split in ("train", "val"):
        names = [f"{split}{year}" for year in ("", "2017", "2014")]
        found = [name for name in names if (root / _annotation_file(name)).is_file()]
        if not found:
            looked_for = ", ".join(_annotation_file(name) for name in names)
            raise DatasetError(
                f"{root} has no {split} annotations of a COCO data set, neither of {looked_for}: "
                "arrange it like this, or name annotation file and image folder yourself."
            )
        pairs = [
            (root / _annotation_file(name), folder)
            for name in found
            for folder in (root / "images" / name, root / name)
        ]
        existing = [(annotations, folder) for annotations, folder in pairs if folder.is_dir()]
        if not existing:
            looked_for = " and ".join(str(folder) for _, folder in pairs)
            raise DatasetError(
                f"{pairs[0][0]} has no folder of images with it, looked for {looked_for}: put the "
                "images there, or name annotation file and image folder yourself."
            )
        splits[split] = existing[0]
    return splits


def require_same_classes(datasets: Mapping[str, Any]) -> None:
    """Refuses splits whose labels mean different classes.

    Args:
        datasets: split name to detection data set.

    Raises:
        DatasetError: if class names or category ids differ from those of the first split.
    """
    (first_name, first), *others = datasets.items()
    expected = dict(zip(first.category_ids, first.class_names, strict=True))
    for name, dataset in others:
        classes = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
        if classes == expected:
            continue
        differing = sorted(
            key for key in expected.keys() | classes.keys() if expected.get(key) != classes.get(key)
        )
        key = differing[0]
        raise DatasetError(
            f"{name} has other categories than {first_name}: category id {key} is "
            f"{classes.get(key, 'missing')!r} there and {expected.get(key, 'missing')!r} here "
            f"({len(differing)} differ in all), so list the same `categories` in both files."
        )


def _annotation_file(name: str) -> str:
    return f"annotations/instances_{name}.json"


def _build_table(content: dict, path: str, folder: str) -> tuple[ObjectTable, tuple[Finding, ...]]:
    """Checks the three lists against each other; returns the objects and what is odd about them."""
    images, annotations = content["images"], content["annotations"]
    image_rows, labels, categories = check_entries(content, path)
    file_names = find_files(images, path, folder)
    names, notes = class_names(categories, path)
    areas = [annotation.get("area") for annotation in annotations]
    image_sizes = np.array([(e["height"], e["width"]) for e in images], np.int32)
    image_of = np.array([image_rows[a["image_id"]] for a in annotations], np.int64)
    boxes = np.array([a["bbox"] for a in annotations], np.float64)

    def object_name(row: int) -> str:
        return f"annotation id {show(annotations[row].get('id'))}"

    notes += check_box_form(boxes, image_sizes[image_of], path, object_name)
    table = ObjectTable.build(
        class_names=names,
        category_ids=[int(entry["id"]) for entry in categories],
        image_ids=np.array([int(entry["id"]) for entry in images], np.int64),
        image_sizes=image_sizes,
        file_names=file_names,
        image_of=image_of,
        boxes=boxes,
        labels=np.array([labels[a["category_id"]] for a in annotations], np.int32),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations]),
        areas=np.array([math.nan if area is None else area for area in areas], np.float64),
        object_name=object_name,
    )
    if not len(table.labels):
        raise DatasetError(
            f"{path}: none of its {len(annotations)} boxes has an area inside its image, so there "
            "is nothing to train on: boxes are [x, y, width, height] in pixels."
        )
    return table, notes
