"""Folders of files by name, lists of names, and files with class names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keras_densepred.data.records import DatasetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")

CLASS_FILES = ("classes.txt", "classes.json")
"""Where the readers of trees look for the names of the labels."""


def list_stems(folder: str | os.PathLike[str], suffixes: Sequence[str], what: str) -> dict:
    """The files of a folder by their names without suffix.

    Args:
        folder: whose files to list; hidden ones and folders in it are left out.
        suffixes: those that count, in lower case, with their dot.
        what: what messages call the files, in the plural.

    Returns:
        `{"2007_000032": "2007_000032.jpg"}`, in the order of the names.

    Raises:
        DatasetError: if the folder is not there, has none of these files, or two of one stem.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DatasetError(f"{folder} is not a folder with {what}: {error.strerror}.") from error
    files: dict[str, str] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if name.startswith(".") or suffix.lower() not in suffixes:
            continue
        if stem in files:
            raise DatasetError(
                f"{folder} has both {files[stem]} and {name}, so a name without suffix is not "
                "enough to tell them apart: rename or remove one."
            )
        files[stem] = name
    if not files:
        raise DatasetError(f"{folder} has no {what} ({', '.join(suffixes)}): put some there.")
    return files


def require_no_missing(missing: Iterable[str], folder: str | os.PathLike[str], source: str) -> None:
    """Refuses names whose files are not there.

    Args:
        missing: names without a file.
        folder: where they should be.
        source: where the names come from.

    Raises:
        DatasetError: naming the first.
    """
    names = list(missing)
    if names:
        more = f" ({len(names) - 1:,} more are missing)" if len(names) > 1 else ""
        raise DatasetError(
            f"{source} names {names[0]}, and {folder} has no such file{more}: add the files, or "
            "remove the names."
        )


def read_lines(path: str | os.PathLike[str], what: str) -> list[str]:
    """The lines of a text file that are not empty, without white space around them.

    Args:
        path: the file.
        what: what it should hold, as messages say it.

    Raises:
        DatasetError: if it cannot be read, is no text, or has no line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): give {what}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a text file: give {what}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DatasetError(f"{path} is empty: give {what}.")
    return lines


def leads_outside(name: str) -> bool:
    """Whether a relative name may lead out of the folder that it is relative to."""
    # Backslashes and drive letters too: the same file must not be safe here and unsafe there.
    return bool(re.match(r"[/\\]|[A-Za-z]:", name)) or ".." in re.split(r"[/\\]", name)


def find_class_names(folder: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The names in `classes.txt` or `classes.json` of a folder; None if it has neither.

    Raises:
        DatasetError: if the file does not hold names of classes.
    """
    for name in CLASS_FILES:
        path = Path(folder) / name
        if path.is_file():
            return read_class_names(path)
    return None


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads what the labels are called.

    Args:
        path: a text file whose line n (from 0) is the name of label n, or a JSON file: a list of
            names, of objects with `name` (what `training.write_classes` writes), or an object
            `{"0": name, ...}`.

    Returns:
        Name of each label.

    Raises:
        DatasetError: if it holds neither.
    """
    if Path(path).suffix.lower() != ".json":
        return tuple(read_lines(path, "one class name in each line"))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON ({error}): write it again.") from error
    names = _names_in(content)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DatasetError(
            f"{path} does not name the classes: write a list of names, or an object from label to "
            "name with labels 0, 1, 2 and so on."
        )
    return tuple(names)


def _names_in(content: Any) -> list:
    """Class names in a JSON value, in the order of labels; empty if its form is not known."""
    if isinstance(content, dict):
        keys = [str(label) for label in range(len(content))]
        return [content[key] for key in keys] if set(keys) == set(content) else []
    if not isinstance(content, list):
        return []
    return [entry.get("name") if isinstance(entry, dict) else entry for entry in content]
