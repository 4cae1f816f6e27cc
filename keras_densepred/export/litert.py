"""Export to LiteRT, which was TensorFlow Lite: for telephones and small boards."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_densepred._optional import require
from keras_densepred.export.conversion import input_shape, is_open, quiet, signature
from keras_densepred.export.graph import Exported
from keras_densepred.files import replacing

LITERT_WEIGHTS = ("float32", "float16", "int8")
METADATA_NAME = "keras_densepred"
_IDENTIFIER = b"TFL3"  # of the format, behind the first offset
_ALIGNMENT = 16  # bytes


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None,
    *,
    batch_size: int | None = 1,
    suppress: bool = True,
    weights: str = "float32",
    description: Mapping[str, str] | None = None,
) -> Path:
    """Writes a model for inference as a LiteRT file, from TensorFlow.

    Its signature `"serving_default"` takes and gives what the file of `export_onnx` does, with
    `"labels"` and `"num_detections"` as int32. Suppression is that of `predict`.

    Args:
        model: as for `export_onnx`.
        path: the file to write, `.tflite` by custom; an old one is replaced.
        image_size: as for `export_onnx`, but None.
        batch_size: as for `export_onnx`, but None.
        suppress: as for `export_onnx`.
        weights: how kernels are stored: `"float32"`, `"float16"` (half the size), or `"int8"` (a
            quarter, with a scale for each channel). Images and outputs are float32 in all three.
        description: as for `export_onnx`; it is the file's metadata `keras_densepred`, in JSON, and
            `read_description` reads it.

    Returns:
        The path.

    Raises:
        ValueError: if LiteRT lacks operators of the model, the model cannot be exported, an
            argument is out of range, or Keras does not run on TensorFlow.
        ImportError: if TensorFlow is not installed.
    """
    shape = input_shape(image_size, batch_size)
    if is_open(shape):
        raise ValueError(
            "LiteRT files are for one number and size of images: give `image_size` and "
            "`batch_size`, or write it as onnx, openvino or saved_model."
        )
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
        if description:
            unfinished.write_bytes(_described(unfinished.read_bytes(), description))
    return path


def _described(content: bytes, description: Mapping[str, str]) -> bytes:
    """A LiteRT file with a description among its metadata, in a buffer of its own."""
    flatbuffers, schema = _require_schema()
    base: Any = schema.BufferT

    class Aligned(base):
        """Python's `Pack` forgets that the schema wants buffers at multiples of 16 bytes."""

        def Pack(self, builder: Any) -> Any:
            if self.data is not None:
                builder.Prep(_ALIGNMENT, len(self.data))
            return super().Pack(builder)

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    text = json.dumps(dict(description), ensure_ascii=False).encode()
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_NAME, len(model.buffers)
    model.metadata = [*(model.metadata or []), entry]
    told = schema.BufferT()
    told.data = np.frombuffer(text, np.uint8)
    buffers, model.buffers = [*model.buffers, told], []
    for old in buffers:
        new = Aligned()
        new.data, new.offset, new.size = old.data, old.offset, old.size
        model.buffers.append(new)
    builder = flatbuffers.Builder(len(content) + 2 * len(text))
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def read_litert_description(path: str | os.PathLike[str]) -> dict[str, str]:
    """The description in a LiteRT file; empty where there is none.

    Raises:
        ValueError: if it is no LiteRT file.
        ImportError: if TensorFlow is not installed, whose schema says how the file is laid out.
    """
    _, schema = _require_schema()
    content = Path(path).read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ValueError(f"{path} is no LiteRT file: give one that `export_litert` wrote.")
    model = schema.Model.GetRootAs(content)
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == METADATA_NAME.encode():
            return json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
    return {}


def _require_schema() -> tuple[Any, Any]:
    """The FlatBuffers library, and LiteRT's schema as TensorFlow brings it along."""
    schema = require("tensorflow.lite.python.schema_py_generated", "tensorflow")
    return require("flatbuffers", "tensorflow"), schema
