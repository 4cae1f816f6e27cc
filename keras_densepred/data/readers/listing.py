"""Folders of files by name, lists of names, and files with class names."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keras_densepred.data.records import DatasetError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".avif", ".jp2", ".pbm", ".pgm", ".ppm"),
)
"""Of images that Pillow reads."""

UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".exr", ".hdr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Of images that are not read, or by chance only; named where they lie among others."""

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")

CLASS_FILES = ("classes.txt", "classes.json")
"""Where the readers of trees look for the names of the labels."""


def input_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced, which shells leave alone behind `=` and programs never see."""
    return Path(os.path.expanduser(path))


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC).

    "é" can be one character or an e with an accent behind it. macOS' archives hold the second, most
    label files the first, and both look the same.
    """
    return unicodedata.normalize("NFC", name)


class FileFinder:
    """Finds files by names that may be written in another way than on the disk.

    Folders are listed once: 100,000 single look-ups are slow on a network drive.
    """

    def __init__(self) -> None:
        self._listings: dict[str, dict[str, str]] = {}

    def find(self, folder: str, name: str) -> str | None:
        """The name that a file has on the disk.

        Args:
            folder: where to look.
            name: relative to it. Its accents may be in another Unicode form than the file's, and
                its folders divided by backslashes, as exporters on Windows write them.

        Returns:
            The file's name relative to `folder`, or None if there is none.
        """
        parent, base = os.path.split(name)
        found = self._listing(os.path.join(folder, parent)).get(base)
        if found is not None:
            return os.path.join(parent, found)
        if os.path.exists(os.path.join(folder, name)):  # file systems that ignore case
            return name
        path = ""
        for part in re.split(r"[/\\]", name):
            found = self._listing(os.path.join(folder, path)).get(composed(part))
            if found is None:
                return None
            path = os.path.join(path, found)
        return path

    def _listing(self, folder: str) -> dict[str, str]:
        """Names as they are, and composed, to names as they are."""
        if folder not in self._listings:
            names = os.listdir(folder) if os.path.isdir(folder) else []
            known = {composed(name): name for name in names}
            self._listings[folder] = known | {name: name for name in names}
        return self._listings[folder]


def list_stems(folder: str | os.PathLike[str], suffixes: Sequence[str], what: str) -> dict:
    """The files of a folder by their names without suffix.

    Args:
        folder: whose files to list; hidden ones and folders in it are left out.
        suffixes: those that count, in lower case, with their dot.
        what: what messages call the files, in the plural.

    Returns:
        `{"2007_000032": "2007_000032.jpg"}`, in the order of the names; the keys are `composed`.

    Raises:
        DatasetError: if the folder is not there, has none of these files, two of one stem, or one
            whose name is no text.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DatasetError(f"{folder} is not a folder with {what}: {error.strerror}.") from error
    chosen = [
        name
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
    ]
    for name in chosen:
        require_text(name, folder)
    files = by_stem(chosen, folder)
    if not files:
        raise DatasetError(f"{folder} has no {what} ({', '.join(suffixes)}): put some there.")
    return files


def stem_of(name: str) -> str:
    """A name without its suffix, `composed`."""
    return composed(os.path.splitext(name)[0])


def by_stem(names: Iterable[str], folder: str | os.PathLike[str]) -> dict[str, str]:
    """Names without suffix, `composed`, to names.

    Raises:
        DatasetError: if two have the same; it says how many such pairs there are.
    """
    files: dict[str, str] = {}
    pairs = []
    for name in names:
        first = files.setdefault(stem_of(name), name)
        if first != name:
            pairs.append(" and ".join(n if is_text(n) else ascii(n) for n in (first, name)))
    if pairs:
        more = f" (one of {len(pairs):,} such pairs)" if len(pairs) > 1 else ""
        raise DatasetError(
            f"{folder} has both {pairs[0]}{more}, so a name without suffix is not enough to tell "
            "them apart: rename or remove one."
        )
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
    return [line for line in _stripped_lines(path, what) if line]


def _stripped_lines(path: str | os.PathLike[str], what: str) -> list[str]:
    """All lines up to the last that is not empty."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): give {what}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a text file: give {what}.") from error
    if not text.strip():
        raise DatasetError(f"{path} is empty: give {what}.")
    return [line.strip() for line in text.rstrip().splitlines()]


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
            names, of objects with `name` (what `training.write_classes` writes; an `id` must be the
            label), or an object `{"0": name, ...}`.

    Returns:
        Name of each label.

    Raises:
        DatasetError: if it holds neither, a line between names is empty, or a name comes twice.
    """
    if Path(path).suffix.lower() != ".json":
        lines = _stripped_lines(path, "one class name in each line")
        if not all(lines):
            number = lines.index("") + 1
            raise DatasetError(
                f"{path}: line {number} is empty, and line n (from 0) is the name of label n: "
                "remove the line, or write the name of its label there."
            )
        return unique_names(lines, str(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON ({error}): write it again.") from error
    names = _names_in(content)
    if not names or not all(is_readable(name) for name in names):
        raise DatasetError(
            f"{path} does not name the classes: write a list of names, or an object from label to "
            "name with labels 0, 1, 2 and so on."
        )
    if isinstance(content, list):
        _require_labels_as_ids(content, path)
    return unique_names(names, str(path))


def is_readable(name: Any) -> bool:
    """Whether a value is a text to be shown: not empty, no control characters or broken ones."""
    return isinstance(name, str) and bool(name.strip()) and is_text(name)


def is_text(name: str) -> bool:
    """Whether a name has no control characters, and no bytes that are no text (surrogates)."""
    return name.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)


def require_text(name: str, folder: str | os.PathLike[str]) -> None:
    """Refuses a file whose name cannot be shown, so that every message can name its file."""
    if not is_text(name):
        raise DatasetError(f"{folder} has {name!a}, whose name is not readable text: rename it.")


def unique_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Names of classes, `composed`.

    Args:
        names: one for each label.
        source: where they come from, for messages.

    Raises:
        DatasetError: if two are the same: tables and files could not tell the classes apart.
    """
    labels: dict[str, int] = {}
    for label, name in enumerate(map(composed, names)):
        if name in labels:
            raise DatasetError(
                f"{source} calls both label {labels[name]} and label {label} {name!r}: give each "
                "class a name of its own."
            )
        labels[name] = label
    return tuple(labels)


def _require_labels_as_ids(entries: Sequence[Any], path: str | os.PathLike[str]) -> None:
    """Refuses ids that are not the position, such as a detector's: names would be shifted."""
    for label, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("id", label) != label:
            raise DatasetError(
                f"{path}: entry {label} has id {entry['id']!r}, and the class at position {label} "
                f"is that of label {label}: order the entries by label, and leave out other ids."
            )


def _names_in(content: Any) -> list:
    """Class names in a JSON value, in the order of labels; empty if its form is not known."""
    if isinstance(content, dict):
        keys = [str(label) for label in range(len(content))]
        return [content[key] for key in keys] if set(keys) == set(content) else []
    if not isinstance(content, list):
        return []
    return [entry.get("name") if isinstance(entry, dict) else entry for entry in content]
