"""What the labels of a trained model mean: `classes.json` beside it."""

import json
import os
from collections.abc import Sequence
from typing import Protocol

from keras_densepred.files import write_atomically


class ClassList(Protocol):
    """A data set's classes, by label; every data set of `keras_densepred.data` has them."""

    @property
    def category_ids(self) -> Sequence[int]: ...

    @property
    def class_names(self) -> Sequence[str]: ...


def write_classes(path: str | os.PathLike[str], dataset: ClassList) -> None:
    """Writes what the labels of a detector mean, for those who get the model without the data.

    Args:
        path: of a JSON file, `[{"id": 18, "name": "dog"}, ...]`: the entry at position k is the
            class of label k, with its category id in the data set.
        dataset: the split that the detector was trained on.
    """
    classes = [
        {"id": int(category_id), "name": name}
        for category_id, name in zip(dataset.category_ids, dataset.class_names, strict=True)
    ]
    text = json.dumps(classes, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8"))
