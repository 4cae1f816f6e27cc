"""Export to TensorFlow's SavedModel."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.export.conversion import input_shape, quiet, signature, where_open
from keras_densepred.export.graph import Exported
from keras_densepred.files import replacing, write_atomically
from keras_densepred.runtime.devices import writing_saved_model


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None,
    *,
    batch_size: int | None = 1,
    suppress: bool = True,
    description: Mapping[str, str] | None = None,
) -> Path:
    """Writes a model for inference as a SavedModel, from TensorFlow or JAX.

    `tf.saved_model.load(path).serve(images)` takes and gives what the file of `export_onnx` does,
    as a dictionary, with `"labels"` and `"num_detections"` as int32. Suppression is that of
    `predict`, so detections are the same.

    Args:
        model: as for `export_onnx`.
        path: the directory to write; an old SavedModel is replaced.
        image_size: as for `export_onnx`.
        batch_size: as for `export_onnx`.
        suppress: as for `export_onnx`.
        description: as for `export_onnx`; it is in `assets.extra/description.json`.

    Returns:
        The path.

    Raises:
        ValueError: if the model cannot be exported, a number is not positive, something else is in
            the directory, or Keras runs on PyTorch.
        ImportError: if TensorFlow is not installed.
    """
    shape = input_shape(image_size, batch_size)
    if keras.config.backend() == "torch":
        raise ValueError(
            "Keras writes SavedModels from TensorFlow and JAX: export the saved model with "
            "KERAS_BACKEND=tensorflow."
        )
    require("tensorflow", "tensorflow")
    path = Path(path)
    if path.exists() and not (path / "saved_model.pb").is_file():
        raise ValueError(f"{path} exists and is no SavedModel: give another path.")
    exported = Exported(model, suppress=suppress, named=True)
    exported.example(shape)
    options: dict[str, Any] = {}
    if keras.config.backend() == "jax":  # with one, it asks for numbers where a batch is open
        options["jax2tf_kwargs"] = {"with_gradient": False}
    with replacing(path, "saved_model") as unfinished, quiet(), writing_saved_model():
        with where_open(exported.kind, shape, ["tensorflow"]):
            exported.export(
                str(unfinished),
                format="tf_saved_model",
                verbose=False,
                input_signature=signature(shape),
                **options,
            )
        if description:
            text = json.dumps(dict(description), indent=2, ensure_ascii=False)
            write_atomically(unfinished / "assets.extra" / "description.json", text.encode())
    return path
