"""Export to LiteRT, which was TensorFlow Lite: for telephones and small boards."""

import os
import re
from pathlib import Path
from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.export.conversion import input_shape, quiet, signature
from keras_densepred.export.graph import Exported
from keras_densepred.files import replacing

LITERT_WEIGHTS = ("float32", "float16", "int8")


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int],
    *,
    batch_size: int = 1,
    suppress: bool = True,
    weights: str = "float32",
) -> Path:
    """Writes a model for inference as a LiteRT file, from TensorFlow.

    Its signature `"serving_default"` takes and gives what the file of `export_onnx` does, with
    `"labels"` and `"num_detections"` as int32. Suppression is that of `predict`.

    Args:
        model: as for `export_onnx`.
        path: the file to write, `.tflite` by custom; an old one is replaced.
        image_size: as for `export_onnx`.
        batch_size: as for `export_onnx`.
        suppress: as for `export_onnx`.
        weights: how kernels are stored: `"float32"`, `"float16"` (half the size), or `"int8"` (a
            quarter, with a scale for each channel). Images and outputs are float32 in all three.

    Returns:
        The path.

    Raises:
        ValueError: if LiteRT lacks operators of the model, the model cannot be exported, an
            argument is out of range, or Keras does not run on TensorFlow.
        ImportError: if TensorFlow is not installed.
    """
    shape = input_shape(image_size, batch_size)
    if weights not in LITERT_WEIGHTS:
        raise ValueError(f"`weights` must be one of {LITERT_WEIGHTS}, and is {weights!r}.")
    if keras.config.backend() != "tensorflow":
        raise ValueError(
            "LiteRT files are written from TensorFlow: export the saved model with "
            "KERAS_BACKEND=tensorflow."
        )
    tensorflow = require("tensorflow", "tensorflow")
    options: dict[str, Any] = {}
    if weights != "float32":
        options["optimizations"] = [tensorflow.lite.Optimize.DEFAULT]
    target: dict[str, Any] = {"supported_ops": [tensorflow.lite.OpsSet.TFLITE_BUILTINS]}
    if weights == "float16":
        target["supported_types"] = [tensorflow.float16]
    exported = Exported(model, suppress=suppress, named=True)
    path = Path(path)
    with replacing(path, "model.tflite") as unfinished, quiet():
        try:
            exported.export(
                str(unfinished),
                format="litert",
                verbose=False,
                input_signature=signature(shape),
                target_spec=target,
                **options,
            )
        except Exception as error:
            # TensorFlow's, whose class has no public name, with all of the graph in its message.
            if type(error).__name__ != "ConverterError":
                raise
            missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
            because = f" (it has no {', '.join(missing)})" if missing else ""
            raise ValueError(
                f"LiteRT cannot express this {type(model).__name__}{because}: write it as onnx, "
                "openvino or saved_model."
            ) from error
    return path
