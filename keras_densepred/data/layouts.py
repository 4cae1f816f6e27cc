"""Which layout a folder of detection data has, and where its splits are."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from keras_densepred.data.readers.coco import CocoDataset, find_coco_split
from keras_densepred.data.readers.image_tree import walk
from keras_densepred.data.readers.listing import (
    CLASS_FILES,
    FileFinder,
    find_class_names,
    input_path,
    leads_outside,
)
from keras_densepred.data.readers.object_files import ObjectFiles
from keras_densepred.data.readers.voc_boxes import VocDetection, voc_conventions
from keras_densepred.data.readers.yolo import YoloDataset
from keras_densepred.data.readers.yolo_tree import SPLIT_NAMES, find_yolo_tree, yolo_evidence
from keras_densepred.data.records import DatasetError

ROBOFLOW_FILE = "_annotations.coco.json"
_CHUNK = 1 << 20  # bytes of an annotation file looked at together
_OVERLAP = 1 << 10  # so that nothing is missed between two of them


@dataclasses.dataclass(frozen=True)
class SplitPlace:
    """Where a split is.

    Args:
        text: the same in words.
        open: whether masks are wanted -> the data set.
    """

    text: str
    open: Callable[[bool], ObjectFiles]


@dataclasses.dataclass(frozen=True)
class DetectionLayout:
    """A folder whose layout is known; `str` says what was found.

    Args:
        root: the folder.
        name: of the layout, one of `LAYOUTS`.
        title: what messages call it.
        splits: `"train"`, and `"val"` and `"test"` where there are any.
    """

    root: Path
    name: str
    title: str
    splits: Mapping[str, SplitPlace]

    def __str__(self) -> str:
        places = ", ".join(f"{name} in {place.text}" for name, place in self.splits.items())
        places = places.replace(f"{self.root}{os.sep}", "")
        return f"{self.root}: {self.title}, {places}"


def find_layout(
    data_dir: str | os.PathLike[str], layout: str | None = None, *, needs: str = "train"
) -> DetectionLayout:
    """Finds out how a folder of detection data is arranged.

    Args:
        data_dir: the folder, or a YOLO tree's yaml file.
        layout: one of `LAYOUTS`, for folders that have several.
        needs: the split without which the folder is refused.

    Returns:
        What was found; no annotation is read yet but for the names of classes.

    Raises:
        DatasetError: if it has no known layout or more than one; the message says what was found
            and how to choose.
    """
    root = input_path(data_dir)
    if not (root.is_dir() or _is_yaml(root)):
        raise DatasetError(f"{root} is not a folder: give the root of a data set.")
    found = layout_evidence(root)
    if not found and (lone := _lone_file(root)):
        found = {"single": lone}
    if layout is not None:
        if layout not in found:
            shown = _shown(found) or "none"
            raise DatasetError(f"{root} has no {LAYOUTS[layout][0]} (found: {shown}).")
        return _open_layout(root, layout, found[layout], needs)
    if not found:
        raise DatasetError(
            f"{root} has no detection data of a known layout: looked for COCO's annotations/"
            "instances_train.json, Roboflow's train/_annotations.coco.json, YOLO's data.yaml or "
            "images with labels, Pascal VOC's Annotations, and one COCO file beside its images; "
            "recipes take --train-annotations and --train-images, too."
        )
    if len(found) > 1:
        flags = " or ".join(f"--layout {name}" for name in found)
        raise DatasetError(f"{root} has more than one layout: {_shown(found)}: choose by {flags}.")
    ((name, evidence),) = found.items()
    return _open_layout(root, name, evidence, needs)


def layout_evidence(data_dir: str | os.PathLike[str]) -> dict[str, str]:
    """The layouts that a folder certainly has, each with what shows it."""
    root = input_path(data_dir)
    if not root.is_dir():
        return {"yolo": root.name} if _is_yaml(root) else {}
    found = {name: evidence(root) for name, (_, evidence, _) in LAYOUTS.items()}
    return {name: text for name, text in found.items() if text}


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml") and path.is_file()


def explicit_layout(
    train: tuple[str, str] | None, val: tuple[str, str] | None
) -> DetectionLayout | None:
    """The same of COCO files that are named with their folders of images."""
    if train is None:
        return None
    pairs = {"train": train} if val is None else {"train": train, "val": val}
    places = {
        split: _coco_place(Path(annotations), Path(images))
        for split, (annotations, images) in pairs.items()
    }
    return DetectionLayout(Path(train[0]), "single", "a COCO file", places)


def _shown(found: Mapping[str, str]) -> str:
    return " and ".join(f"{LAYOUTS[name][0]} ({text})" for name, text in found.items())


def _open_layout(root: Path, name: str, evidence: str, needs: str) -> DetectionLayout:
    title, _, find_splits = LAYOUTS[name]
    splits = find_splits(root)
    if needs not in splits:
        there = ", ".join(f"{split} in {place.text}" for split, place in splits.items())
        called = {"train": "training", "val": "validation"}.get(needs, needs)
        raise DatasetError(
            f"{root} has {title} without a {called} split (found: {there}): add one."
        )
    return DetectionLayout(root, name, f"{title} ({evidence})", splits)


def _coco_place(annotations: Path, images: Path) -> SplitPlace:
    def open_split(with_masks: bool) -> ObjectFiles:
        return CocoDataset(annotations, images, with_masks=with_masks)

    return SplitPlace(str(annotations), open_split)


# --- COCO's own ------------------------------------------------------------------------------


def _coco_evidence(root: Path) -> str | None:
    for split in ("train", "val", "test"):
        for year in ("", "2017", "2014"):
            name = f"annotations/instances_{split}{year}.json"
            if (root / name).is_file():
                return name
    return None


def _coco_splits(root: Path) -> dict[str, SplitPlace]:
    splits = {
        split: _coco_place(*find_coco_split(root, split))
        for split in ("train", "val")
        if any(root.glob(f"annotations/instances_{split}*.json"))
    }
    test = (root / "annotations" / "instances_test.json", root / "images" / "test")
    if test[0].is_file() and test[1].is_dir():
        splits["test"] = _coco_place(*test)
    return splits


# --- Roboflow's COCO -------------------------------------------------------------------------


def _roboflow_files(root: Path) -> dict[str, Path]:
    return {
        split: root / name / ROBOFLOW_FILE
        for split, spellings in SPLIT_NAMES.items()
        for name in spellings
        if (root / name / ROBOFLOW_FILE).is_file()
    }


def _roboflow_evidence(root: Path) -> str | None:
    files = list(_roboflow_files(root).values())
    return files[0].relative_to(root).as_posix() if files else None


def _roboflow_splits(root: Path) -> dict[str, SplitPlace]:
    files = _roboflow_files(root)
    return {split: _coco_place(path, path.parent) for split, path in files.items()}


# --- one COCO file ---------------------------------------------------------------------------


def _single_evidence(root: Path) -> str | None:
    return ROBOFLOW_FILE if (root / ROBOFLOW_FILE).is_file() else None


def _json_files(root: Path) -> list[Path]:
    """What may be the one annotation file of a folder."""
    found = [path for folder in (root, root / "annotations") for path in folder.glob("*.json")]
    others = {*CLASS_FILES, "notes.json"}  # Label Studio writes the latter
    return sorted(path for path in found if path.name not in others and path.is_file())


def _lone_file(root: Path) -> str | None:
    files = _json_files(root)
    if len(files) > 1:
        files = [path for path in files if _first_file_name(path) is not None]
    if len(files) > 1:
        names = " and ".join(path.relative_to(root).as_posix() for path in files[:4])
        raise DatasetError(
            f"{root} has {names}: say which is which with --train-annotations, --train-images, "
            "--val-annotations and --val-images."
        )
    return files[0].relative_to(root).as_posix() if files else None


def _single_splits(root: Path) -> dict[str, SplitPlace]:
    path = root / (_single_evidence(root) or _lone_file(root) or "")
    folders = [f for f in (path.parent, root / "images", root) if f.is_dir()]
    name = _first_file_name(path)
    finder = FileFinder()
    holding = [f for f in folders if name is not None and finder.find(str(f), name) is not None]
    images = [f for f in folders if f.name == "images"]
    return {"train": _coco_place(path, (holding or images or folders)[0])}


def _first_file_name(path: Path) -> str | None:
    """The first `file_name` in a JSON file, which may be too large to be read twice."""
    before = b""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                match = re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', before + chunk)
                if match:
                    name = json.loads(match[1])
                    return name if name and "\0" not in name and not leads_outside(name) else None
                before = chunk[-_OVERLAP:]
    except (OSError, ValueError):
        pass  # the reader says what is wrong
    return None


# --- YOLO ------------------------------------------------------------------------------------


def _yolo_splits(root: Path) -> dict[str, SplitPlace]:
    tree = find_yolo_tree(root)

    def open_split(split: str, with_masks: bool) -> ObjectFiles:
        return YoloDataset(
            tree.splits[split],
            tree.class_names,
            root=tree.root,
            with_masks=with_masks,
            with_keypoints=tree.with_keypoints,
        )

    return {
        split: SplitPlace(", ".join(map(str, places)), functools.partial(open_split, split))
        for split, places in tree.splits.items()
    }


# --- Pascal VOC ------------------------------------------------------------------------------


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and any(name.lower().endswith(".xml") for name in os.listdir(folder))


def _voc_folders(root: Path) -> dict[str, Path]:
    """Folders of XML files: by split, or all of them as `"train"`."""
    annotations = root / "Annotations"
    if annotations.is_dir() and any(n.lower().endswith(".xml") for n in walk(str(annotations))):
        return {"train": annotations}
    found = {
        split: root / name
        for split, spellings in SPLIT_NAMES.items()
        for name in spellings
        if _has_xml(root / name)
    }
    return found or ({"train": root} if _has_xml(root) else {})


def _voc_evidence(root: Path) -> str | None:
    folders = list(_voc_folders(root).values())
    if not folders:
        return None
    return "XML files" if folders[0] == root else folders[0].relative_to(root).as_posix()


def _voc_splits(root: Path) -> dict[str, SplitPlace]:
    folders = _voc_folders(root)
    images = dict(folders)
    lists: dict[str, Path] = {}
    if folders.get("train") == root / "Annotations":
        beside = [root / name for name in ("JPEGImages", "images", "Images")]
        images["train"] = next((folder for folder in beside if folder.is_dir()), root)
        main = root / "ImageSets" / "Main"
        for split, names in (
            ("train", ("train", "trainval")),
            ("val", ("val",)),
            ("test", ("test",)),
        ):
            files = [main / f"{name}.txt" for name in names if (main / f"{name}.txt").is_file()]
            if files and (split != "test" or _all_annotated(files[0], folders["train"])):
                lists[split] = files[0]
        if lists:
            folders = dict.fromkeys(lists, folders["train"])
            images = dict.fromkeys(lists, images["train"])
    found, from_one = voc_conventions(sorted(set(folders.values())))
    class_names = find_class_names(root) or found

    def open_split(split: str, with_masks: bool) -> ObjectFiles:
        if with_masks:
            raise DatasetError(
                f"{folders[split]}: Pascal VOC's XML files have boxes and no masks: give COCO or "
                "YOLO polygons, or train without masks."
            )
        return VocDetection(
            folders[split], images[split], lists.get(split), class_names or None, from_one
        )

    return {
        split: SplitPlace(str(lists.get(split, folder)), functools.partial(open_split, split))
        for split, folder in folders.items()
    }


def _all_annotated(path: Path, annotations: Path) -> bool:
    """Whether a list has an XML file for its first name: VOC's test lists come without."""
    names = path.read_text("utf-8-sig", errors="replace").split()
    return (
        bool(names) and not leads_outside(names[0]) and (annotations / f"{names[0]}.xml").is_file()
    )


LAYOUTS: Mapping[
    str,
    tuple[str, Callable[[Path], str | None], Callable[[Path], dict[str, SplitPlace]]],
] = {
    "coco": ("COCO annotations", _coco_evidence, _coco_splits),
    "roboflow": ("Roboflow's COCO annotations", _roboflow_evidence, _roboflow_splits),
    "yolo": ("YOLO labels", yolo_evidence, _yolo_splits),
    "voc": ("Pascal VOC boxes", _voc_evidence, _voc_splits),
    "single": ("one COCO file", _single_evidence, _single_splits),
}
"""Name of each layout to its title, what shows it, and what finds its splits."""
