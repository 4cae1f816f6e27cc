"""Saving a trained model for prediction: its weights, without what its training needs."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_densepred.files import replacing, write_atomically
from keras_densepred.saved.classes import FILE_NAME as CLASSES
from keras_densepred.saved.opening import SavedModel
from keras_densepred.saved.preprocessing import FILE_NAME as PREPROCESSING

STORED = ("float32", "float16")  # how weights may lie in a file
_WEIGHTS = "model.weights.h5"  # in a .keras file


@contextlib.contextmanager
def without_training_state(model: keras.Model) -> Iterator[None]:
    """Within it, what is saved of a model holds neither optimizer nor arguments of `compile`.

    An optimizer's state is two or three times the weights; a run goes on from its checkpoints.

    Args:
        model: compiled or not; the same afterwards.
    """
    optimizer, compiled = getattr(model, "optimizer", None), model.compiled
    # KerasHub's tasks compile themselves when they are made (keras-hub 0.32.0), with an optimizer
    # whose two variables Keras looks for in the file, and warns where it finds none.
    unused = keras.optimizers.Adam() if isinstance(model, keras_hub.models.Task) else None
    model.optimizer, model.compiled = unused, False
    try:
        yield
    finally:
        model.optimizer, model.compiled = optimizer, compiled


def save_copy(model: SavedModel, folder: str | os.PathLike[str], weights: str = "float32") -> Path:
    """Writes a folder that is a preset of its own, with nothing that only training needs.

    Args:
        model: a detector, segmenter or classifier.
        folder: to write; one that `files.replacing` made is replaced.
        weights: `"float32"`, or `"float16"`: kernels are stored in half of the bytes, and are
            float32 again once loaded, by any version. A kernel beyond float16's range stays.

    Returns:
        The folder.

    Raises:
        ValueError: if `weights` is neither.
    """
    if weights not in STORED:
        raise ValueError(f"`weights` must be one of {STORED}, and is {weights!r}.")
    folder = Path(folder)
    with replacing(folder, "preset") as unfinished:
        unfinished.mkdir()
        copy = unfinished / model.path.name
        with without_training_state(model.model):
            if model.path.is_dir():
                model.model.save_to_preset(str(copy))
            else:
                model.model.save(copy)
        folders = [model.path] if model.path.is_dir() else []
        for file in (CLASSES, PREPROCESSING):
            places = (place / file for place in [*folders, model.path.parent])
            if source := next((path for path in places if path.is_file()), None):
                write_atomically(unfinished / file, source.read_bytes())
        if weights == "float16":
            for path in unfinished.rglob("*"):
                if path.suffix == ".h5":
                    write_atomically(path, _halved(path.read_bytes()))
                elif path.suffix == ".keras":
                    write_atomically(path, _halved_archive(path))
    return folder


def _halved_archive(path: Path) -> bytes:
    """A .keras file with its weights `_halved`."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, _halved(part) if name == _WEIGHTS else part)
    return content.getvalue()


def _halved(content: bytes) -> bytes:
    """An HDF5 file whose float32 arrays of two axes and more are float16.

    Norms and biases are a small part, and a variance may be less than float16's least number.
    """
    import h5py  # of Keras

    def copy(source: Any, target: Any) -> None:
        target.attrs.update(source.attrs)
        for name, part in source.items():
            if isinstance(part, h5py.Group):
                copy(part, target.create_group(name))
                continue
            values = part[()]
            if values.dtype == np.float32 and values.ndim > 1:
                with np.errstate(over="ignore"):
                    half = values.astype(np.float16)
                values = half if np.isfinite(half).all() else values
            target.create_dataset(name, data=values).attrs.update(part.attrs)

    written = io.BytesIO()
    with h5py.File(io.BytesIO(content), "r") as old, h5py.File(written, "w") as new:
        copy(old, new)
    return written.getvalue()
