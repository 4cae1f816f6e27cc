"""Detection and instance segmentation data in COCO's JSON format, read lazily and at random."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from keras_densepred.data.coco_masks import (
    SegmentationError,
    check_segmentation,
    decode_masks,
    encode_segmentation,
)
from keras_densepred.data.images import load_image
from keras_densepred.data.objects import DatasetError, ObjectTable
from keras_densepred.data.records import Record
from keras_densepred.data.summary import DatasetSummary, Finding

_LARGEST_ID = 2**63 - 1
_LARGEST_PIXEL = 1e9


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
            unknown ids, boxes that are not four finite numbers), names images that do not exist
            or lie outside `images`, has nothing to learn from, or, with `with_masks`, has a
            segmentation that gives no mask of its image's size.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        with_masks: bool = False,
    ) -> None:
        self.annotations_path = os.fspath(annotations)
        self.images_path = os.fspath(images)
        content = _read_json(self.annotations_path)
        self._table, order = _build_table(content, self.annotations_path, self.images_path)
        kept = [content["annotations"][i] for i in order]
        self._masks: list[bytes] | None = None
        self._notes = _repeated_ids(content["annotations"])
        self._encode_masks(kept, required=with_masks)

    def _encode_masks(self, annotations: list[dict], required: bool) -> None:
        """Turns segmentations into RLE, or, where masks are not asked for, counts unusable ones."""
        sizes = np.repeat(self._table.image_sizes, np.diff(self._table.starts), axis=0).tolist()
        faults = _Faults(self.annotations_path)
        masks = []
        for annotation, (height, width) in zip(annotations, sizes, strict=True):
            segmentation = annotation.get("segmentation")
            try:
                if required:
                    masks.append(encode_segmentation(segmentation, height, width))
                elif segmentation:
                    check_segmentation(segmentation, height, width)
            except SegmentationError as error:
                faults.add(f"{_name_annotation(annotation)} {error}")
        if required:
            faults.raise_if_any("correct or remove them, or load the data set without masks")
            self._masks = masks
        elif faults.count:
            subject = "segmentation" if faults.count == 1 else "segmentations"
            what = f"unusable {subject}, not needed for boxes"
            self._notes += (Finding(faults.count, what, faults.first),)

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
        path = os.path.join(self.images_path, fields["file_name"])
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
    root = Path(data_dir)
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
    """Refuses splits whose labels would not mean the same.

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


class _Faults:
    """The first fault of a file in words, and how many there are."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.first = ""
        self.count = 0

    def add(self, text: str) -> None:
        self.first = self.first or text
        self.count += 1

    def raise_if_any(self, advice: str) -> None:
        if self.count:
            more = f" ({self.count - 1:,} more entries have faults)" if self.count > 1 else ""
            raise DatasetError(f"{self.path}: {self.first}{more}: {advice}.")


@contextlib.contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no cycles: 27 instead of 38 seconds on COCO's size."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_json(path: str) -> dict:
    try:
        with open(path, encoding="utf-8-sig") as file, _paused_garbage_collection():
            content = json.load(file)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist: give a COCO annotation file.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path} is not valid JSON, or was cut off ({error}): write or copy it again."
        ) from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} is not a COCO annotation file: its top level is a {type(content).__name__}, "
            "and must be an object with `images`, `categories` and `annotations`."
        )
    for key in ("images", "categories", "annotations"):
        entries = content.get(key)
        if not isinstance(entries, list):
            fault = "is not a list" if key in content else "is missing"
            raise DatasetError(
                f"{path}: `{key}` {fault}; a COCO annotation file has lists `images`, `categories` "
                "and `annotations`."
            )
        if not entries:
            raise DatasetError(
                f"{path}: `{key}` is empty, so there is nothing to train or evaluate on: give a "
                "file with images, categories and annotated objects."
            )
        faults = _Faults(path)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                faults.add(f"entry {number} of `{key}` is {_show(entry)} and not an object")
        faults.raise_if_any("correct or remove it")
    return content


def _build_table(content: dict, path: str, folder: str) -> tuple[ObjectTable, np.ndarray]:
    """Checks the three lists against each other; returns the objects and their rows."""
    images = content["images"]
    image_rows = _check_ids(
        images, path, "image", lambda entry: _image_fault(entry) or _name_fault(entry)
    )
    _check_files(images, path, folder)
    categories = sorted(
        content["categories"],
        key=lambda entry: entry["id"] if _is_integer(entry.get("id")) else 0,
    )
    labels = _check_ids(categories, path, "category", _category_fault)
    annotations = content["annotations"]
    faults = _Faults(path)
    for annotation in annotations:
        fault = _annotation_fault(annotation, image_rows, labels)
        if fault:
            faults.add(f"{_name_annotation(annotation)} {fault}")
    faults.raise_if_any("correct or remove it")

    areas = [annotation.get("area") for annotation in annotations]
    table = ObjectTable.build(
        class_names=[entry["name"] for entry in categories],
        category_ids=[int(entry["id"]) for entry in categories],
        image_ids=np.array([int(entry["id"]) for entry in images], np.int64),
        image_sizes=np.array([(e["height"], e["width"]) for e in images], np.int32),
        file_names=[entry["file_name"] for entry in images],
        image_of=np.array([image_rows[a["image_id"]] for a in annotations], np.int64),
        boxes=np.array([a["bbox"] for a in annotations], np.float64),
        labels=np.array([labels[a["category_id"]] for a in annotations], np.int32),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations]),
        areas=np.array([math.nan if area is None else area for area in areas], np.float64),
        object_name=lambda row: f"annotation id {_show(annotations[row].get('id'))}",
    )
    if not len(table.labels):
        raise DatasetError(
            f"{path}: none of its {len(annotations)} boxes has an area inside its image, so there "
            "is nothing to train on: boxes are [x, y, width, height] in pixels."
        )
    return table, table.rows


def _repeated_ids(annotations: list[dict]) -> tuple[Finding, ...]:
    """Annotation ids are only names here, so repeated ones are told of and not refused."""
    seen: set[int] = set()
    repeated = []
    for identifier in (entry.get("id") for entry in annotations):
        if _is_integer(identifier):
            if identifier in seen:
                repeated.append(identifier)
            seen.add(identifier)
    if not repeated:
        return ()
    subject = "annotation shares its id" if len(repeated) == 1 else "annotations share their ids"
    what = f"{subject} with another, numbered anew for evaluation"
    return (Finding(len(repeated), what, f"annotation id {_show(repeated[0])}"),)


def _check_ids(
    entries: list[dict], path: str, kind: str, find_fault: Callable[[dict], str | None]
) -> dict[int, int]:
    """Maps each id to its position, after every entry was found valid and every id unique."""
    faults = _Faults(path)
    rows: dict[int, int] = {}
    for row, entry in enumerate(entries):
        identifier = entry.get("id")
        if not _is_integer(identifier):
            faults.add(f"{kind} number {row} has id {_show(identifier)}, not an integer")
        elif identifier in rows:
            faults.add(f"{kind} id {_show(identifier)} is used twice")
        else:
            rows[identifier] = row
            fault = find_fault(entry)
            if fault:
                faults.add(f"{kind} id {_show(identifier)} {fault}")
    faults.raise_if_any("correct or remove it")
    return rows


def _image_fault(entry: dict) -> str | None:
    for key in ("width", "height"):
        value = entry.get(key)
        if not _is_integer(value) or not 0 < value < _LARGEST_PIXEL:
            given = f"{key} {_show(value)}" if key in entry else f"no {key}"
            return f"({entry.get('file_name')}) has {given}, but needs its size in pixels"
    return None


def _name_fault(entry: dict) -> str | None:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        return f"has file_name {_show(name)}, not the name of a file"
    # Backslashes and drive letters too: the same file must not be safe here and unsafe there.
    if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        return f"has file_name {_show(name)}, which leads out of the image folder"
    return None


def _category_fault(entry: dict) -> str | None:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        return f"has name {_show(name)}, not a text"
    return None


def _annotation_fault(
    entry: dict, images: Mapping[int, int], categories: Mapping[int, int]
) -> str | None:
    for key, known in (("image_id", images), ("category_id", categories)):
        value = entry.get(key)
        if not _is_integer(value):
            return f"has {key} {_show(value)}, not an integer"
        if value not in known:
            listed = "images" if key == "image_id" else "categories"
            return f"has {key} {_show(value)}, which `{listed}` does not list"
    box = entry.get("bbox")
    if "bbox" not in entry:
        return "has no bbox"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has bbox {_show(box)}, not four finite numbers [x, y, width, height]"
    area = entry.get("area")
    if area is not None and not _is_number(area):
        return f"has area {_show(area)}, not a finite number"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"has iscrowd {_show(entry['iscrowd'])}, neither 0 nor 1"
    return None


def _check_files(images: list[dict], path: str, folder: str) -> None:
    """Refuses images that are not there; lists folders, as 100,000 single look-ups are slow."""
    if not os.path.isdir(folder):
        raise DatasetError(f"{folder} is not a folder: give the folder with the images of {path}.")
    listings: dict[str, set[str]] = {}
    faults = _Faults(path)
    for entry in images:
        parent, name = os.path.split(os.path.join(folder, entry["file_name"]))
        if parent not in listings:
            listings[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        # The second look is for file systems that do not tell upper from lower case.
        if name not in listings[parent] and not os.path.exists(os.path.join(parent, name)):
            faults.add(f"image id {_show(entry['id'])} is {entry['file_name']}, not in {folder}")
    faults.raise_if_any("add the files, remove the entries, or give another image folder")


def _is_integer(value: Any) -> TypeGuard[int]:
    """Whether JSON gave a whole number, 3.0 included: some exporters write every number so."""
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**53
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID


def _is_number(value: Any) -> bool:
    """Whether JSON gave a finite number of a size that pixels can have."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -(_LARGEST_PIXEL**2) < value < _LARGEST_PIXEL**2
    )


def _name_annotation(annotation: dict) -> str:
    identifier, image_id = _show(annotation.get("id")), _show(annotation.get("image_id"))
    return f"annotation id {identifier} (image id {image_id})"


def _show(value: Any) -> str:
    """A JSON value as it stands in the file, short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
