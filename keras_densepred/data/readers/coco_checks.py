"""Checks of a COCO annotation file; each fault is reported in one sentence."""

from __future__ import annotations

import codecs
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from keras_densepred._optional import require
from keras_densepred.data.readers.listing import (
    FileFinder,
    composed,
    is_readable,
    leads_outside,
    unique_names,
)
from keras_densepred.data.readers.summary import Finding
from keras_densepred.data.records import DatasetError
from keras_densepred.memory import paused_garbage_collection

_LARGEST_ID = 2**63 - 1
_LARGEST_PIXEL = 1e9


def _parse(text: bytes) -> Any:
    """The content of a JSON file, in a third of the time that `json` takes."""
    try:
        return require("orjson", "data").loads(text)
    except ValueError:
        # What orjson refuses and `json` takes, such as NaN, is read; faults get their line.
        return json.loads(text.decode("utf-8"))


class Faults:
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


def read_annotation_file(path: str) -> dict:
    """Reads a COCO annotation file.

    Args:
        path: the JSON file.

    Returns:
        Dict whose `images`, `categories` and `annotations` are lists of objects, none empty.

    Raises:
        DatasetError: if it is not such a file.
    """
    try:
        with open(path, "rb") as file, paused_garbage_collection():
            content = _parse(file.read().removeprefix(codecs.BOM_UTF8))
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
        faults = Faults(path)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                faults.add(f"entry {number} of `{key}` is {show(entry)} and not an object")
        faults.raise_if_any("correct or remove it")
    return content


def check_entries(content: dict, path: str) -> tuple[dict[int, int], dict[int, int], list[dict]]:
    """Checks images, categories and annotations, each and against one another.

    Args:
        content: from `read_annotation_file`.
        path: what messages call it.

    Returns:
        Image id to position, category id to label, and the categories in the order of labels,
        which is that of their ids.

    Raises:
        DatasetError: naming the first faulty entry.
    """
    image_rows = _check_ids(
        content["images"], path, "image", lambda entry: _image_fault(entry) or _name_fault(entry)
    )
    categories = sorted(
        content["categories"],
        key=lambda entry: entry["id"] if _is_integer(entry.get("id")) else 0,
    )
    labels = _check_ids(categories, path, "category", _category_fault)
    faults = Faults(path)
    plain = _are_plain(content["annotations"], image_rows, labels)
    for annotation in () if plain else content["annotations"]:
        fault = _annotation_fault(annotation, image_rows, labels)
        if fault:
            faults.add(f"{name_annotation(annotation)} {fault}")
    faults.raise_if_any("correct or remove it")
    return image_rows, labels, categories


def _are_plain(
    annotations: list[dict], images: Mapping[int, int], categories: Mapping[int, int]
) -> bool:
    """Whether all annotations are certainly in order, told by whole columns: five times faster."""
    try:
        boxes = [entry["bbox"] for entry in annotations]
        areas = [entry.get("area") for entry in annotations]
        if set(map(type, boxes)) != {list} or set(map(len, boxes)) != {4}:
            return False
        for key, known in (("image_id", images), ("category_id", categories)):
            values = [entry[key] for entry in annotations]
            if not (set(map(type, values)) <= {int} and known.keys() >= set(values)):
                return False
        crowd = {entry.get("iscrowd", 0) for entry in annotations}
    except (KeyError, TypeError):
        return False
    numbers = list(itertools.chain.from_iterable(boxes))
    numbers += [area for area in areas if area is not None]
    # The sum of whole numbers and floats is NaN if one is.
    return (
        set(map(type, numbers)) <= {int, float}
        and crowd <= {0, 1}
        and min(numbers) > -_LARGEST_PIXEL
        and max(numbers) < _LARGEST_PIXEL
        and not math.isnan(sum(numbers))
    )


def repeated_ids(annotations: list[dict]) -> tuple[Finding, ...]:
    """Reports annotation ids that are used twice; nothing depends on them, so none is refused."""
    identifiers = [entry.get("id") for entry in annotations]
    if set(map(type, identifiers)) <= {int} and len(set(identifiers)) == len(identifiers):
        return ()
    seen: set[int] = set()
    repeated = []
    for identifier in identifiers:
        if _is_integer(identifier):
            if identifier in seen:
                repeated.append(identifier)
            seen.add(identifier)
    if not repeated:
        return ()
    subject = "annotation shares its id" if len(repeated) == 1 else "annotations share their ids"
    what = f"{subject} with another, numbered anew for evaluation"
    return (Finding(len(repeated), what, f"annotation id {show(repeated[0])}"),)


def _check_ids(
    entries: list[dict], path: str, kind: str, find_fault: Callable[[dict], str | None]
) -> dict[int, int]:
    """Maps each id to its position, after every entry was found valid and every id unique."""
    faults = Faults(path)
    rows: dict[int, int] = {}
    for row, entry in enumerate(entries):
        identifier = entry.get("id")
        if not _is_integer(identifier):
            faults.add(f"{kind} number {row} has id {show(identifier)}, not an integer")
        elif identifier in rows:
            faults.add(f"{kind} id {show(identifier)} is used twice")
        else:
            rows[identifier] = row
            fault = find_fault(entry)
            if fault:
                faults.add(f"{kind} id {show(identifier)} {fault}")
    faults.raise_if_any("correct or remove it")
    return rows


def _image_fault(entry: dict) -> str | None:
    for key in ("width", "height"):
        value = entry.get(key)
        if not _is_integer(value) or not 0 < value < _LARGEST_PIXEL:
            given = f"{key} {show(value)}" if key in entry else f"no {key}"
            return f"({show(entry.get('file_name'))}) has {given}, but needs its size in pixels"
    return None


def _name_fault(entry: dict) -> str | None:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        return f"has file_name {show(name)}, not the name of a file"
    if leads_outside(name):
        return f"has file_name {show(name)}, which leads out of the image folder"
    return None


def _category_fault(entry: dict) -> str | None:
    name = entry.get("name")
    if not is_readable(name):
        return f"has name {show(name)}, not a readable text"
    return None


def class_names(categories: list[dict], path: str) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """The names of checked categories; those that share one have their id added.

    Roboflow lists a parent category of the same name, for instance, which no object has.

    Args:
        categories: in the order of labels.
        path: what messages call the file.

    Raises:
        DatasetError: if names are not unique with their ids either.
    """
    names = [composed(entry["name"]) for entry in categories]
    times = Counter(names)
    shared = [name for name in names if times[name] > 1]
    unique = [
        name if times[name] == 1 else f"{name} (id {int(entry['id'])})"
        for name, entry in zip(names, categories, strict=True)
    ]
    what = "categories share their name with another, and have their id added"
    findings = (Finding(len(shared), what, shared[0]),) if shared else ()
    return unique_names(unique, path), findings


def _annotation_fault(
    entry: dict, images: Mapping[int, int], categories: Mapping[int, int]
) -> str | None:
    for key, known in (("image_id", images), ("category_id", categories)):
        value = entry.get(key)
        if not _is_integer(value):
            return f"has {key} {show(value)}, not an integer"
        if value not in known:
            listed = "images" if key == "image_id" else "categories"
            return f"has {key} {show(value)}, which `{listed}` does not list"
    box = entry.get("bbox")
    if "bbox" not in entry:
        return "has no bbox"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has bbox {show(box)}, not four finite numbers [x, y, width, height]"
    area = entry.get("area")
    if area is not None and not _is_number(area):
        return f"has area {show(area)}, not a finite number"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"has iscrowd {show(entry['iscrowd'])}, neither 0 nor 1"
    return None


def find_files(images: list[dict], path: str, folder: str) -> list[str]:
    """Finds the images in their folder.

    Args:
        images: checked entries of `images`.
        path: what messages call the annotation file.
        folder: where the images should be.

    Returns:
        The name of each as it is on the disk, relative to `folder`.

    Raises:
        DatasetError: naming the first that is missing.
    """
    if not os.path.isdir(folder):
        raise DatasetError(f"{folder} is not a folder: give the folder with the images of {path}.")
    finder = FileFinder()
    faults = Faults(path)
    names = []
    for entry in images:
        found = finder.find(folder, entry["file_name"])
        if found is None:
            shown = show(entry["file_name"]).strip('"')
            faults.add(f"image id {show(entry['id'])} is {shown}, not in {folder}")
        else:
            names.append(found)
    faults.raise_if_any("add the files, remove the entries, or give another image folder")
    return names


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


def name_annotation(annotation: dict) -> str:
    identifier, image_id = show(annotation.get("id")), show(annotation.get("image_id"))
    return f"annotation id {identifier} (image id {image_id})"


def show(value: Any) -> str:
    """A JSON value as it stands in the file, short; halves of characters are escaped."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."
