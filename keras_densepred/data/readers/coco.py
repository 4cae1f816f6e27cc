"""Detection and instance segmentation data in COCO's JSON format, with random access."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_densepred.data.readers.box_form import check_box_form
from keras_densepred.data.readers.coco_checks import (
    check_entries,
    class_names,
    find_files,
    name_annotation,
    read_annotation_file,
    repeated_ids,
    show,
)
from keras_densepred.data.readers.listing import input_path
from keras_densepred.data.readers.object_files import ObjectFiles
from keras_densepred.data.readers.object_table import ObjectTable
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError
from keras_densepred.memory import paused_garbage_collection


class CocoDataset(ObjectFiles):
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
        # Parsing makes millions of objects and no cycles: 27 seconds for COCO's training split, 38
        # where they are searched for garbage. Reading them makes lists, which would start searches.
        with paused_garbage_collection():
            self._read(str(input_path(annotations)), str(input_path(images)), with_masks)

    def _read(self, path: str, folder: str, with_masks: bool) -> None:
        content = read_annotation_file(path)
        table, categories, notes = _build_table(content, path, folder)
        self._categories = categories
        self._name_notes = class_names(categories, path)[1]
        notes = (*notes, *repeated_ids(content["annotations"]))
        super().__init__(path, folder, table, len(content["annotations"]), notes)
        kept = [content["annotations"][i] for i in table.rows]
        self._encode_masks(
            [annotation.get("segmentation") for annotation in kept],
            lambda row: name_annotation(kept[row]),
            required=with_masks,
        )

    @property
    def annotations_path(self) -> str:
        """The annotation file."""
        return self.source

    @property
    def has_unused_parent(self) -> bool:
        """Whether the first category is the parent of all others, and no object has it."""
        first, *others = self._categories
        is_parent = all(entry.get("supercategory") == first["name"] for entry in others)
        return bool(others) and is_parent and not (self._table.labels == 0).any()

    def without_class(self, label: int, note: Finding) -> CocoDataset:
        """See `ObjectFiles.without_class`; a name that two classes shared is now plain."""
        made = super().without_class(label, note)
        made._categories = self._categories[:label] + self._categories[label + 1 :]
        names, made._name_notes = class_names(made._categories, self.source)
        made._table = dataclasses.replace(made._table, class_names=names)
        kept = [finding for finding in made._notes if finding not in self._name_notes]
        made._notes = (*made._name_notes, *kept)
        return made

    def _stated_size(self, index: int) -> str:
        return f"{self.source} gives image id {self._table.image_ids[index]}"


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
    return {split: find_coco_split(data_dir, split) for split in ("train", "val")}


def find_coco_split(data_dir: str | os.PathLike[str], split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of `"train"` or `"val"`, see `find_coco_splits`."""
    root = input_path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder: give the root of a COCO data set.")
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
    return existing[0]


def require_same_classes(datasets: Mapping[str, Any]) -> None:
    """Refuses splits whose labels mean different classes.

    Args:
        datasets: split name to detection data set.

    Raises:
        DatasetError: if class names or category ids differ from those of the first split.
    """
    if not datasets:  # none could be read
        return
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


def _build_table(
    content: dict, path: str, folder: str
) -> tuple[ObjectTable, list[dict], tuple[Finding, ...]]:
    """Checks the three lists against each other; the objects, categories and what is odd."""
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
    return table, categories, notes
