"""Export to TensorFlow's SavedModel."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import keras

from keras_densepred._optional import require
from keras_densepred.export.conversion import input_shape, quiet, signature
from keras_densepred.export.graph import Exported
from keras_densepred.files import replacing, write_atomically
from keras_densepred.ops.nms import without_top_k


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int],
    *,
    batch_size: int = 1,
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
    with replacing(path, "saved_model") as unfinished, quiet(), without_top_k():
        exported.export(
            str(unfinished),
            format="tf_saved_model",
            verbose=False,
            input_signature=signature(shape),
        )
        if description:
            text = json.dumps(dict(description), indent=2, ensure_ascii=False)
            write_atomically(unfinished / "assets.extra" / "description.json", text.encode())
    return path
