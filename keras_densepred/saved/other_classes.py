"""Loads models of which a layer had another class when they were saved.

Keras finds the weights of a network's layers by class (`layers/conv_batch_norm_3`), so that a file
no longer loads once the class of a layer has changed. The layers' names, which it holds too, stay.
"""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"  # in a .keras file
_VARIABLES = "vars"  # of a layer, beside the folders of its layers


def load_by_layer_names(path: Path, compile: bool = False) -> keras.Model:
    """Loads a `.keras` file; each layer gets what the layer of its name had.

    Args:
        path: the file.
        compile: whether the model is compiled as it was saved; its optimizer starts anew.

    Raises:
        ValueError: if the file has no weights for a layer, or has them of another shape.
    """
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        config = json.loads(archive.read(_CONFIG))
        if not compile:
            config.pop("compile_config", None)
        model = keras.saving.deserialize_keras_object(config)
        place = Path(folder) / _WEIGHTS
        model.save_weights(place)
        with (
            archive.open(_WEIGHTS) as content,
            h5py.File(content) as saved,
            h5py.File(place, "r+") as wanted,
        ):
            _fill(wanted, saved)
        model.load_weights(place)
    return model


def _fill(wanted: h5py.Group, saved: h5py.Group) -> None:
    """Puts the saved numbers into a file of the same model as it is now."""
    there = _parts(saved)
    by_name = {_layer_name(part): part for part in there.values()}
    for key, part in _parts(wanted).items():
        source, name = there.get(key), _layer_name(part)
        if name is not None and _layer_name(source) != name:
            source = by_name.get(name, source)
        if isinstance(part, h5py.Dataset):
            if not isinstance(source, h5py.Dataset) or source.shape != part.shape:
                raise ValueError(f"it has no weights of shape {part.shape} for {part.name}")
            part[...] = source[()]
        elif isinstance(source, h5py.Group):
            _fill(part, source)
        elif _has_numbers(part):
            raise ValueError(f"it has no weights for the layer {name or part.name}")


def _parts(group: h5py.Group) -> dict[str, Any]:
    """What a group holds itself: a link may lead to any file of this machine."""
    parts = {
        key: group[key] for key in group if isinstance(group.get(key, getlink=True), h5py.HardLink)
    }
    return {
        key: part
        for key, part in parts.items()
        if not (isinstance(part, h5py.Dataset) and (part.external or part.is_virtual))
    }


def _layer_name(part: Any) -> str | None:
    own = _parts(part).get(_VARIABLES) if isinstance(part, h5py.Group) else None
    return None if own is None else own.attrs.get("name")


def _has_numbers(group: h5py.Group) -> bool:
    return any(
        isinstance(part, h5py.Dataset) or _has_numbers(part) for part in _parts(group).values()
    )
