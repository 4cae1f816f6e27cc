"""Export to ONNX: `Model.export` of Keras on a prepared graph, suppression as ONNX's own operator.

Keras writes the graph with the converter of its backend: tf2onnx, jax2onnx, or PyTorch's.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.export.conversion import (
    Shape,
    input_shape,
    is_open,
    quiet,
    signature,
    where_open,
)
from keras_densepred.export.description import write_description
from keras_densepred.export.graph import Exported
from keras_densepred.export.suppression import add_suppression
from keras_densepred.export.tf2onnx_faults import drop_constants, shapes_of_squares
from keras_densepred.export.torch_program import traced
from keras_densepred.files import replacing
from keras_densepred.models.decoding import TopDetections
from keras_densepred.runtime.devices import writing_onnx

OPSET = 18
BACKENDS = ("torch", "tensorflow")
_CONVERTERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}


def export_onnx(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None,
    *,
    batch_size: int | None = 1,
    suppress: bool = True,
    description: Mapping[str, str] | None = None,
) -> Path:
    """Writes a model for inference as an ONNX file, from any backend whose converter is installed.

    Batch norms are folded. The input is `"images"` (B, H, W, 3) float32, prepared as for the
    model. A detector gives what its `predict` gives with `bounding_box_format="xyxy"`: `"boxes"`
    (B, M, 4) float32 xyxy in pixels, `"labels"` (B, M) int64, `"confidence"` (B, M) float32, -1
    past `"num_detections"` (B,) int64, and `"masks"` (B, M, S, S) float32 where it has some. Of a
    `DenseDetector` it is the same as Keras' while an image has no more than `pre_nms_top_k`
    candidates (ties aside). Other models give their outputs under their keys, or `"outputs"`.

    Args:
        model: a detector, or a functional model such as a classifier, segmenter or backbone.
        path: the file to write; an old one is replaced.
        image_size: side of the images, or height and width, in pixels; None for images of any
            size, of which both sides are multiples of the model's `size_divisor` (from PyTorch of
            32 as well).
        batch_size: B; None for any number of images.
        suppress: whether the file of a `DenseDetector` contains its non-maximum suppression;
            without it, it gives all `"boxes"` (B, N, 4) and `"scores"` (B, N, C).
        description: what the file says about itself, see `describe`: its `metadata_props`.

    Returns:
        The path.

    Raises:
        ValueError: if the model cannot be exported, or not with an open size or number of images,
            or a number is not positive.
        ImportError: if onnx or the backend's converter is not installed.
    """
    shape = input_shape(image_size, batch_size)
    onnx = require("onnx", "export")
    _require_converter()
    exported = Exported(model)
    is_whole = suppress and isinstance(exported.decoder, TopDetections)
    if is_whole:  # detections need no suppression, and are part of the graph
        exported = Exported(model, suppress=True)
    path = Path(path)
    with replacing(path, "model.onnx") as unfinished:
        proto, outputs = _converted(exported, shape, unfinished)
        drop_constants(proto.graph)
        _name_outputs(proto, exported.names, outputs, shape)
        decoder = exported.decoder
        if decoder is not None and suppress and not is_whole:
            _, boxes, classes = outputs[1].shape
            add_suppression(
                proto,
                (shape[0], None if None in shape[1:] else boxes, classes),
                iou_threshold=decoder.iou_threshold,
                score_threshold=decoder.confidence_threshold,
                max_detections=decoder.max_detections,
                candidates=decoder.pre_nms_top_k,
            )
        write_description(proto, description)
        onnx.checker.check_model(proto)
        onnx.save(proto, unfinished)
    return path


def _require_converter() -> None:
    backend = keras.config.backend()
    if backend == "jax":
        try:
            require("jax2onnx", "export")
        except ImportError as error:
            raise ImportError(
                "Keras exports to ONNX from JAX through `jax2onnx`: run `pip install jax2onnx`, or "
                "export the saved model with KERAS_BACKEND=torch or tensorflow."
            ) from error
    else:
        require(_CONVERTERS[backend], "export")


def _converted(model: Exported, shape: Shape, path: Path) -> tuple[Any, tuple[Any, ...]]:
    """What the backend's converter makes, an `onnx.ModelProto`, and an example of the outputs.

    Args:
        model: gives the outputs.
        shape: of the images.
        path: where the converter may write.
    """
    outputs: tuple[Any, ...] = model(keras.ops.zeros(model.example(shape)))
    with quiet(), writing_onnx():
        if keras.config.backend() == "torch":
            # Keras would try an older converter too, and report the faults of that one.
            program = traced(model, shape, BACKENDS)
            torch: Any = require("torch", "torch")
            converted = torch.onnx.export(program, opset_version=OPSET, verbose=False)
            return converted.model_proto, outputs
        with where_open(model.kind, shape, BACKENDS), shapes_of_squares():
            model.export(
                str(path),
                format="onnx",
                verbose=False,
                input_signature=signature(shape),
                opset_version=OPSET,
            )
    return require("onnx", "export").load(path), outputs


def _name_outputs(
    proto: Any, names: tuple[str, ...], outputs: tuple[Any, ...], shape: Shape
) -> None:
    """Gives the outputs, in the order of `names`, those names, shapes and types: integers int64.

    Args:
        proto: `onnx.ModelProto` as the converter wrote it.
        names: of the outputs.
        outputs: what the model gives for an example.
        shape: of the images.
    """
    onnx = require("onnx", "export")
    taken = list(proto.graph.output)
    if len(taken) != len(names):
        raise ValueError(
            f"The converter gave outputs {[x.name for x in taken]}, not one each for {list(names)}."
        )
    del proto.graph.output[:]
    for old, name, value in zip(taken, names, outputs, strict=True):
        is_integer = "int" in keras.backend.standardize_dtype(value.dtype)
        kind = onnx.TensorProto.INT64 if is_integer else onnx.TensorProto.FLOAT
        if old.name != name:
            node = onnx.helper.make_node("Cast", [old.name], [name], name=f"name_{name}", to=kind)
            proto.graph.node.append(node)
        sizes = list(value.shape)
        if is_open(shape):  # what the converter does not know either is open
            known = [axis.dim_value or None for axis in old.type.tensor_type.shape.dim]
            sizes = known or [None] * len(sizes)
            sizes[0] = "batch" if shape[0] is None else shape[0]
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, sizes))
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    for axis, label in enumerate(("batch", "height", "width")):
        if shape[axis] is None:
            dims[axis].dim_param = label
