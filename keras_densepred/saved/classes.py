"""What the labels of a trained model mean: `classes.json` beside it."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from keras_densepred.faults import sentence
from keras_densepred.files import write_atomically

FILE_NAME = "classes.json"


class ClassList(Protocol):
    """A data set's classes, by label; every data set of `keras_densepred.data` has them."""

    @property
    def category_ids(self) -> Sequence[int]: ...

    @property
    def class_names(self) -> Sequence[str]: ...


@dataclasses.dataclass(frozen=True)
class Classes:
    """Category id in the training data, name, and colour if any, of each label: a `ClassList`."""

    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    class_colours: tuple[tuple[int, int, int], ...] | None = None


def write_classes(path: str | os.PathLike[str], dataset: ClassList) -> None:
    """Writes what the labels of a model mean, for those who get the model without the data.

    Args:
        path: of a JSON file, `[{"id": 18, "name": "dog"}, ...]`: the entry at position k is the
            class of label k, with its category id in the data set, and `"colour": [r, g, b]` where
            that has colours of its own.
        dataset: the split that the model was trained on.
    """
    classes: list[dict[str, Any]] = [
        {"id": int(category_id), "name": name}
        for category_id, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    for entry, colour in zip(classes, getattr(dataset, "class_colours", None) or (), strict=False):
        entry["colour"] = list(colour)
    text = json.dumps(classes, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8"))


def read_classes(directory: str | os.PathLike[str]) -> Classes | None:
    """Reads the `classes.json` of a directory; None if there is none.

    Raises:
        ValueError: if the file is not one that `write_classes` wrote.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        colours = [_colour(entry["colour"]) for entry in entries if "colour" in entry]
        return Classes(
            tuple(int(entry["id"]) for entry in entries),
            tuple(str(entry["name"]) for entry in entries),
            tuple(colours) if entries and len(colours) == len(entries) else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of classes with ids and names ({sentence(error).rstrip('.')}): put "
            "that of the run there."
        ) from error


def _colour(values: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue
