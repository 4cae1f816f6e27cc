"""The shapes data set as files: a COCO tree and a Pascal VOC tree, for whoever reads those.

The list of a split is written last, so that a reader never meets a list of images that are not
there yet.
"""

from __future__ import annotations

import io
import json
from os import PathLike
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.records import IGNORE_LABEL, Record
from keras_densepred.files import write_atomically

_JPEG_QUALITY = 95


class MaskedShapes(Protocol):
    """A split of the shapes whose records have masks."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def category_ids(self) -> tuple[int, ...]: ...

    @property
    def seed(self) -> int: ...

    @property
    def split(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def coco_ground_truth(dataset: MaskedShapes, with_segmentation: bool) -> dict:
    """A split as a COCO dictionary.

    Args:
        dataset: the split.
        with_segmentation: whether annotations have their `segmentation`.

    Returns:
        `{"info", "images", "categories", "annotations"}`. Annotation ids start at 1, boxes are
        `[x, y, width, height]`, masks are compressed run lengths.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    for record in (dataset[index] for index in range(len(dataset))):
        height, width = record.size
        images.append(
            {
                "id": record.image_id,
                "file_name": record.file_name,
                "width": width,
                "height": height,
            }
        )
        masks = record.masks
        assert masks is not None
        for box, label, mask in zip(record.boxes, record.labels, masks, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": record.image_id,
                "category_id": dataset.category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(mask.sum()),
                "iscrowd": 0,
            }
            if with_segmentation:
                annotation["segmentation"] = _run_lengths(mask)
            annotations.append(annotation)
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    info = {"description": f"keras_densepred shapes, seed {dataset.seed}, {dataset.split}"}
    return {
        "info": info,
        "images": images,
        "categories": categories,
        "annotations": annotations,
    }


def write_coco(dataset: MaskedShapes, directory: str | PathLike[str]) -> None:
    """Writes `images/{split}/*.jpg` and `annotations/instances_{split}.json` with masks.

    Args:
        dataset: the split to write.
        directory: made if it is not there.
    """
    root = Path(directory)
    for record in (dataset[index] for index in range(len(dataset))):
        write_atomically(root / "images" / dataset.split / record.file_name, _jpeg(record.image))
    text = json.dumps(coco_ground_truth(dataset, with_segmentation=True))
    write_atomically(root / "annotations" / f"instances_{dataset.split}.json", text.encode())


def write_voc(dataset: MaskedShapes, directory: str | PathLike[str]) -> None:
    """Writes the folders of a Pascal VOC tree.

    `JPEGImages`, `Annotations` (pixel numbers from 1, both ends included, as VOC counts),
    `SegmentationClass` and `SegmentationObject` (palette PNG; 0 is the ground; a border of
    one to two pixels around every object is 255), `ImageSets/{Main,Segmentation}/{split}.txt`, and
    `classes.txt` with the names of the labels, which are not VOC's.

    Args:
        dataset: the split to write.
        directory: made if it is not there.
    """
    root = Path(directory)
    names = []
    for record in (dataset[index] for index in range(len(dataset))):
        name = Path(record.file_name).stem
        classes, objects = _voc_maps(record)
        write_atomically(root / "JPEGImages" / record.file_name, _jpeg(record.image))
        write_atomically(
            root / "Annotations" / f"{name}.xml", _voc_xml(record, dataset.class_names)
        )
        write_atomically(root / "SegmentationClass" / f"{name}.png", _palette_png(classes))
        write_atomically(root / "SegmentationObject" / f"{name}.png", _palette_png(objects))
        names.append(name)
    listed = ("background", *dataset.class_names)
    write_atomically(root / "classes.txt", "".join(f"{name}\n" for name in listed).encode())
    for task in ("Main", "Segmentation"):
        lines = "".join(f"{name}\n" for name in names)
        write_atomically(root / "ImageSets" / task / f"{dataset.split}.txt", lines.encode())


def _run_lengths(mask: np.ndarray) -> dict:
    coder = require("faster_coco_eval.core.mask", "data")
    encoded = coder.encode(np.asfortranarray(mask, np.uint8))
    counts = encoded["counts"]
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def _voc_maps(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Class and object number of each pixel `(H, W)` uint8, 255 along the borders of objects."""
    cv2 = require("cv2", "data")
    assert record.masks is not None
    classes, objects = np.zeros((2, *record.size), np.uint8)
    for number, (label, mask) in enumerate(zip(record.labels, record.masks, strict=True), 1):
        classes[mask], objects[mask] = label + 1, number
    border = cv2.morphologyEx(objects, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    classes[border] = objects[border] = IGNORE_LABEL
    return classes, objects


def _voc_xml(record: Record, class_names: tuple[str, ...]) -> bytes:
    height, width = record.size
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **fields: object) -> None:
        for name, value in fields.items():
            ElementTree.SubElement(parent, name).text = str(value)

    add(root, folder="VOC2012", filename=record.file_name)
    add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    add(root, segmented=1)
    for box, label in zip(record.boxes.astype(int).tolist(), record.labels, strict=True):
        x1, y1, x2, y2 = box
        item = ElementTree.SubElement(root, "object")
        cut = int(x1 == 0 or y1 == 0 or x2 == width or y2 == height)
        add(item, name=class_names[label], pose="Unspecified", truncated=cut, difficult=0)
        add(ElementTree.SubElement(item, "bndbox"), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
    ElementTree.indent(root)
    return ElementTree.tostring(root)


def _voc_palette() -> list[int]:
    """VOC's colours: the bits of a number, dealt in turn to red, green and blue."""
    numbers = np.arange(256, dtype=np.int64)
    colors = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return [int(value) for value in colors.ravel()]


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    require("PIL.Image", "data").fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _palette_png(labels: np.ndarray) -> bytes:
    picture = require("PIL.Image", "data").fromarray(labels)
    picture.putpalette(_voc_palette())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
