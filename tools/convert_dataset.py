"""Writes detection data in another layout, images and all.

    python -m keras_densepred convert-dataset MY_IMAGES MY_YOLO --format yolo
    python -m keras_densepred convert-dataset MY_YOLO MY_COCO --format coco --masks

Reads every layout that `--data-dir` of the recipes takes, and checks the data as they do. Boxes are
the same to half a pixel (YOLO, COCO: exactly). With `--masks` COCO has them as RLE and YOLO as
polygons, drawn out to the object's box; Pascal VOC has none. Crowd regions become
`difficult` in Pascal VOC, YOLO has no word for them: they are left out and counted. TO must not
exist.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keras_densepred import command, data, files
from keras_densepred._optional import require
from keras_densepred.data.layouts import LAYOUTS
from keras_densepred.data.open import same_classes

_SNAP = 2.0  # pixels by which a mask's edges may miss those of the box that it is drawn out to


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns the exit code."""
    return command.run(_convert, argv)


def _convert(argv: Sequence[str] | None) -> int:
    options = _parse(argv)
    place = files.require_new_folder(options.to, inputs=[options.source])
    source = files.expanded(options.source)
    if source.resolve() in place.resolve().parents:
        raise ValueError(f"{place} lies in {source}, which is read: give another folder.")
    if options.masks and options.format == "voc":
        raise ValueError("Pascal VOC's XML files have no masks: leave --masks out.")
    layout = data.find_layout(source, options.layout)
    print(f"Found {layout}")
    splits = same_classes({n: place.open(options.masks) for n, place in layout.splits.items()})
    with files.replacing(place, "converted") as folder:
        notes = WRITERS[options.format](folder, splits)
    for name, split in splits.items():
        summary = split.summary()
        print(f"{name}: {summary.images:,} images, {summary.boxes + summary.crowd:,} objects")
        for finding in summary.findings:
            print(f"  ! {finding}")
    for note in notes:
        print(f"  ! {note}")
    print(f"Wrote {place}")
    return 0


class _Names:
    """File names in a new tree: those of before, unless another image would have the same labels.

    Args:
        shared: whether all splits are in one folder.
    """

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._taken: set[str] = set()

    def name(self, split: str, name: str) -> str:
        stem, suffix = os.path.splitext(name)
        candidates = (
            stem,
            f"{stem}_{suffix[1:]}",
            f"{split}_{stem}",
            f"{split}_{stem}_{suffix[1:]}",
        )
        for candidate in map(os.path.normpath, candidates):
            key = candidate.casefold() if self._shared else f"{split}/{candidate.casefold()}"
            if key not in self._taken:
                self._taken.add(key)
                return candidate + suffix
        raise ValueError(f"Several images are called {name}: rename them.")


def _copy(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _objects(split: Any, truth: Mapping[str, Any]) -> list[list[dict]]:
    """The annotations of each image, in the order of the images."""
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return list(by_image.values())


def write_coco(folder: Path, splits: Mapping[str, Any]) -> list[str]:
    """`annotations/instances_{split}.json` with `images/{split}`."""
    for name, split in splits.items():
        content = split.ground_truth()
        for index, image in enumerate(content["images"]):
            _copy(split.image_path(index), folder / "images" / name / image["file_name"])
        _write(folder / "annotations" / f"instances_{name}.json", json.dumps(content))
    return []


def write_yolo(folder: Path, splits: Mapping[str, Any]) -> list[str]:
    """`data.yaml`, `images/{split}` and `labels/{split}`."""
    names, crowd, apart = _Names(shared=False), 0, 0
    for split_name, split in splits.items():
        truth = split.ground_truth()
        label_of = {category["id"]: k for k, category in enumerate(truth["categories"])}
        for index, (image, objects) in enumerate(
            zip(truth["images"], _objects(split, truth), strict=True)
        ):
            # Labels are found by the last folder `images` in a path.
            parts = [part for part in Path(image["file_name"]).parts if part != "images"]
            file = names.name(split_name, str(Path(*parts)))
            _copy(split.image_path(index), folder / "images" / split_name / file)
            lines = []
            for entry in objects:
                if entry["iscrowd"]:
                    crowd += 1
                    continue
                numbers, fits = _yolo_numbers(entry, image["height"], image["width"])
                apart += not fits
                label = label_of[entry["category_id"]]
                lines.append(" ".join([str(label), *(f"{value:.10g}" for value in numbers)]))
            text = "".join(f"{line}\n" for line in lines)
            _write((folder / "labels" / split_name / file).with_suffix(".txt"), text)
    classes = dict(enumerate(next(iter(splits.values())).class_names))
    # Without `path`, which trainers would take from where they are started: from the file's folder.
    content = {**{n: f"images/{n}" for n in splits}, "names": classes}
    yaml = require("yaml", "data")
    _write(folder / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    notes = [f"{crowd:,} crowd regions left out: YOLO has none"] if crowd else []
    if apart:
        notes.append(
            f"{apart:,} boxes are now those of their masks, {_SNAP:g} pixels or more apart"
        )
    return notes


def _yolo_numbers(entry: Mapping[str, Any], height: int, width: int) -> tuple[list[float], bool]:
    """What stands behind the class, and whether it has the box of the entry."""
    x, y, w, h = entry["bbox"]
    if "segmentation" in entry:
        points = mask_polygon(entry["segmentation"])
        if len(points):
            low, high = points.min(axis=0), points.max(axis=0)
            box_low, box_high = np.array([x, y]), np.array([x + w, y + h])
            fits = max(np.abs(low - box_low).max(), np.abs(high - box_high).max()) < _SNAP
            if fits:
                points = box_low + (points - low) * (box_high - box_low) / (high - low)
            return (points / [width, height]).ravel().tolist(), fits
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height], True


def mask_polygon(segmentation: Mapping[str, Any]) -> np.ndarray:
    """The outline of a mask as one polygon, parts and holes joined by lines there and back.

    Args:
        segmentation: COCO's compressed RLE.

    Returns:
        `(N, 2)` float64, x and y in pixels, edges of pixels at whole numbers; N is 0 without one.
    """
    cv2, api = require("cv2", "data"), require("faster_coco_eval.core.mask", "data")
    mask = api.decode(dict(segmentation))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros((0, 2))
    corner = np.array([columns[0], rows[0]])
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # OpenCV gives centres of pixels: of an image twice as large they are near the edges.
    mask = np.ascontiguousarray(mask.repeat(2, axis=0).repeat(2, axis=1))
    parts, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    outline = parts[0][:, 0].astype(np.float64)
    for part in parts[1:]:
        outline = _joined(outline, part[:, 0].astype(np.float64))
    return corner + (outline + 0.5) / 2


def _joined(outline: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Two polygons as one, joined where they are closest."""
    distances = ((outline[:, None] - part[None]) ** 2).sum(axis=2)
    i, j = np.unravel_index(int(distances.argmin()), distances.shape)
    return np.concatenate([outline[: i + 1], part[j:], part[: j + 1], outline[i:]])


def write_voc(folder: Path, splits: Mapping[str, Any]) -> list[str]:
    """`JPEGImages`, `Annotations`, `ImageSets/Main/{split}.txt`, and the order of the classes."""
    names = _Names(shared=True)
    truths = {name: split.ground_truth() for name, split in splits.items()}
    whole = all(
        min(entry["bbox"][2:]) >= 2 for truth in truths.values() for entry in truth["annotations"]
    )
    for split_name, split in splits.items():
        truth = truths[split_name]
        classes = {category["id"]: category["name"] for category in truth["categories"]}
        listed = []
        for index, (image, objects) in enumerate(
            zip(truth["images"], _objects(split, truth), strict=True)
        ):
            file = names.name(split_name, image["file_name"])
            _copy(split.image_path(index), folder / "JPEGImages" / file)
            listed.append(os.path.splitext(file)[0])
            text = _voc_xml(file, image, objects, classes, whole)
            _write((folder / "Annotations" / file).with_suffix(".xml"), text)
        text = "".join(f"{name}\n" for name in listed)
        _write(folder / "ImageSets" / "Main" / f"{split_name}.txt", text)
    class_names = next(iter(splits.values())).class_names
    _write(folder / "classes.txt", "".join(f"{name}\n" for name in class_names))
    return []


def _voc_xml(
    file: str,
    image: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    classes: Mapping[int, str],
    whole: bool,
) -> str:
    """An XML file; with `whole` the corners are whole pixels from 1, else edges with decimals."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = os.path.basename(file)
    size = ElementTree.SubElement(root, "size")
    for side, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
        ElementTree.SubElement(size, side).text = str(value)
    for entry in objects:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = classes[entry["category_id"]]
        ElementTree.SubElement(item, "difficult").text = str(int(entry["iscrowd"]))
        box = ElementTree.SubElement(item, "bndbox")
        x, y, w, h = entry["bbox"]
        corners = {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}
        for name, value in corners.items():
            from_one = round(value) + (1 if name.endswith("min") else 0)
            ElementTree.SubElement(box, name).text = str(from_one) if whole else f"{value:.6f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FROM", help="folder of the data, in any known layout")
    parser.add_argument("to", metavar="TO", help="folder to write, which must not exist")
    parser.add_argument("--format", choices=tuple(WRITERS), required=True, help="of the new folder")
    parser.add_argument("--layout", choices=tuple(LAYOUTS), help="of a folder that has several")
    parser.add_argument("--masks", action="store_true", help="instance masks too")
    parser.add_argument("--debug", action="store_true", help=command.DEBUG_HELP)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
