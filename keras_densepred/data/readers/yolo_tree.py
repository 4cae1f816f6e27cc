"""Where the splits of a YOLO tree are: `data.yaml`, or folders of images and labels."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_densepred._optional import require
from keras_densepred.data.readers.image_tree import walk
from keras_densepred.data.readers.listing import (
    IMAGE_SUFFIXES,
    is_readable,
    is_text,
    read_class_names,
    unique_names,
)
from keras_densepred.data.records import DatasetError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Split to what its folders and keys are called."""


@dataclasses.dataclass(frozen=True)
class YoloTree:
    """What a YOLO tree consists of.

    Args:
        named_by: the file with the names of the classes.
        root: the folder that everything is in.
        class_names: by number.
        splits: `"train"`, `"val"`, `"test"` to folders of images or lists of them.
        with_keypoints: whether lines have key points behind the box.
    """

    named_by: Path
    root: Path
    class_names: tuple[str, ...]
    splits: Mapping[str, Sequence[Path]]
    with_keypoints: bool = False


def yolo_evidence(root: Path) -> str | None:
    """What makes a folder a YOLO tree, in words; None if it is none."""
    if root.is_file():
        return root.name
    configs = _configs(root)
    if configs:
        return " and ".join(path.name for path in configs)
    for images, labels in _folder_pairs(root):
        if images.is_dir() and labels.is_dir() and _has_labels(labels):
            return f"{images.relative_to(root)} with {labels.relative_to(root)}"
    if _names_file(root) is not None and _has_labels(root) and _images_beside_labels(root):
        return "images with text files beside them"
    return None


def find_yolo_tree(root: Path) -> YoloTree:
    """Finds the splits of a folder that has `yolo_evidence`, or of a yaml file.

    Args:
        root: the folder, or its `data.yaml`.

    Returns:
        What is there; without splits in the tree all images are `"train"`.

    Raises:
        DatasetError: if the classes have no names, or the yaml names what is not there.
    """
    configs = [root] if root.is_file() else _configs(root)
    if len(configs) > 1:
        names = " and ".join(path.name for path in configs)
        raise DatasetError(f"{root} has {names}: give the one to use as --data-dir.")
    if configs:
        return _read_config(configs[0])
    file = _names_file(root)
    if file is None:
        raise DatasetError(
            f"{root} has labels in YOLO's form, and no names of the classes: write a data.yaml "
            "(names: [cat, dog]), or a classes.txt with one name in each line."
        )
    return YoloTree(file, root, read_class_names(file), _folders(root))


def _folder_pairs(root: Path) -> list[tuple[Path, Path]]:
    names = [name for spellings in SPLIT_NAMES.values() for name in spellings]
    return [
        *((root / "images" / name, root / "labels" / name) for name in names),
        *((root / name / "images", root / name / "labels") for name in names),
        (root / "images", root / "labels"),
    ]


def _folders(root: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for split, spellings in SPLIT_NAMES.items():
        for name in spellings:
            for folder in (root / "images" / name, root / name / "images"):
                if split not in splits and folder.is_dir():
                    splits[split] = [folder]
    if splits:
        return splits
    return {"train": [root / "images" if (root / "images").is_dir() else root]}


def _has_labels(folder: Path) -> bool:
    return any(name.lower().endswith(".txt") for name in walk(str(folder)))


def _images_beside_labels(folder: Path) -> bool:
    names = {os.path.splitext(name) for name in os.listdir(folder)}
    texts = {stem for stem, suffix in names if suffix.lower() == ".txt"}
    return any(stem in texts for stem, suffix in names if suffix.lower() in IMAGE_SUFFIXES)


def _names_file(root: Path) -> Path | None:
    """A file with the names of the classes: `classes.txt`, Darknet's `obj.names`."""
    for folder in (root, root / "labels"):
        for name in ("classes.txt", "classes.json"):
            if (folder / name).is_file():
                return folder / name
    darknet = sorted(root.glob("*.names"))
    return darknet[0] if len(darknet) == 1 else None


def _configs(root: Path) -> list[Path]:
    """The yaml files of a folder that describe a data set; `data.yaml` before others."""
    found = sorted(
        path
        for path in root.iterdir()
        if path.suffix.lower() in (".yaml", ".yml") and path.is_file() and _describes_data(path)
    )
    preferred = [path for path in found if path.stem.lower() == "data"]
    return preferred[:1] or found


def _describes_data(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return False
    return all(re.search(rf"(?m)^\W*{key}\W*:", text) for key in ("(names|nc)", "(train|val|test)"))


def _read_config(path: Path) -> YoloTree:
    content = _read_yaml(path)
    names = _class_names(content, path)
    root = path.parent
    given = content.get("path")
    if isinstance(given, str) and given:
        stated = path.parent / os.path.expanduser(given)
        # Exporters write where the folder was on their machine.
        root = stated if stated.is_dir() else path.parent
    splits: dict[str, list[Path]] = {}
    for split, spellings in SPLIT_NAMES.items():
        value = next((content[key] for key in spellings if content.get(key)), None)
        if value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        # Exporters name a `test` that they leave out.
        if split == "test" and not any(_inside(root, str(entry)) for entry in entries):
            continue
        splits[split] = [_resolve(entry, root, path, split) for entry in entries]
    if "train" not in splits:
        splits = {**_folders(root), **splits}
    keypoints = bool(content.get("kpt_shape"))
    return YoloTree(path, root, names, splits, keypoints)


def _read_yaml(path: Path) -> dict[str, Any]:
    yaml = require("yaml", "data")
    try:
        # Makes nothing but texts, lists and dictionaries: safer than `safe_load`, to which a class
        # `no` is a boolean and `007` a number.
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise DatasetError(f"{path}{line} is not valid YAML ({what}): write it again.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not a data set's YAML: write train, val and names into it.")
    return content


def _class_names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        keys = [str(label) for label in range(len(names))]
        if set(keys) != set(names):
            raise DatasetError(
                f"{path}: `names` has the keys {', '.join(map(ascii, list(names)[:5]))}: name "
                "classes 0, 1, 2 and so on, none left out."
            )
        names = [names[key] for key in keys]
    if not names and isinstance(count, str) and count.isdecimal() and 0 < int(count) < 100_000:
        names = [f"class_{label}" for label in range(int(count))]
    if not isinstance(names, list) or not names or not all(map(is_readable, names)):
        raise DatasetError(f"{path} does not name the classes: write `names: [cat, dog]`.")
    if isinstance(count, str) and count and count != str(len(names)):
        raise DatasetError(
            f"{path} has {len(names)} names of classes, and `nc` is {count[:20]!a}: correct the "
            "wrong one, because labels are numbers of names."
        )
    return unique_names(names, str(path))


def _inside(root: Path, entry: str) -> Path | None:
    """An entry of the yaml in its root, or None; Roboflow writes `../train/images` for it."""
    text = entry.strip().replace("\\", "/")
    base = Path(os.path.normpath(root))
    for candidate in (text, re.sub(r"^(\.\./)+", "", text)):
        place = Path(os.path.normpath(root / candidate))
        is_within = place == base or base in place.parents
        if is_within and is_text(candidate) and place.exists():
            return place
    return None


def _resolve(entry: Any, root: Path, path: Path, split: str) -> Path:
    place = _inside(root, entry) if isinstance(entry, str) and entry.strip() else None
    if place is None:
        shown = ascii(entry) if isinstance(entry, str) else f"a {type(entry).__name__}"
        raise DatasetError(
            f"{path}: `{split}` is {shown}, which is no folder and no list of images in {root}: "
            "write the path relative to that folder, or set `path`."
        )
    return place
