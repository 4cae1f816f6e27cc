"""Export to OpenVINO's format, by way of ONNX."""

import os
from collections.abc import Mapping
from pathlib import Path

import keras

from keras_densepred._optional import require
from keras_densepred.export.conversion import input_shape, where_open
from keras_densepred.export.onnx import BACKENDS, export_onnx
from keras_densepred.files import replacing


def export_openvino(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None,
    *,
    batch_size: int | None = 1,
    suppress: bool = True,
    description: Mapping[str, str] | None = None,
) -> Path:
    """Writes a model for inference as OpenVINO's XML and BIN files, in float32.

    From whatever backend `export_onnx` exports from, and with its inputs and outputs.

    Args:
        model: as for `export_onnx`.
        path: the `.xml` file to write; the weights go into a `.bin` beside it. Old ones are
            replaced.
        image_size: as for `export_onnx`.
        batch_size: as for `export_onnx`.
        suppress: as for `export_onnx`.
        description: as for `export_onnx`; each entry is in `rt_info`, under `keras_densepred`.

    Returns:
        The path.

    Raises:
        ValueError: if the model cannot be exported or OpenVINO would compute something else, a
            number is not positive, or `path` does not end in `.xml`.
        ImportError: if OpenVINO, onnx or the backend's converter is not installed.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise ValueError(f"OpenVINO's files end in .xml and .bin, and the path is {path}.")
    if getattr(model, "query_selection", None) == "centres":
        # 2026.4.1: its last product of embeddings and maps is another one, unless it is an output.
        raise ValueError(
            f"OpenVINO finds other masks than this {type(model).__name__} with queries from "
            "centres: write it as onnx, saved_model or torch."
        )
    openvino = require("openvino", "export")
    with replacing(path, path.name) as unfinished:
        onnx = unfinished.with_name("model.onnx")
        export_onnx(model, onnx, image_size, batch_size=batch_size, suppress=suppress)
        shape = input_shape(image_size, batch_size)
        with where_open(type(model).__name__, shape, BACKENDS):
            converted = openvino.Core().read_model(onnx)
        names = [output.name for output in require("onnx", "export").load(onnx).graph.output]
        for output, name in zip(converted.outputs, names, strict=True):
            output.tensor.set_names({name})  # and no name of the converter's beside it
        for key, value in (description or {}).items():
            converted.set_rt_info(value, ["keras_densepred", key])
        openvino.save_model(converted, unfinished, compress_to_fp16=False)
        # The weights first: whoever finds the XML finds them.
        os.replace(unfinished.with_suffix(".bin"), path.with_suffix(".bin"))
    return path
