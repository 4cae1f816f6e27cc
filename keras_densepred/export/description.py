"""What an exported file says about itself, and photographs as its input."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred._version import __version__
from keras_densepred.files import replacing

_PREFIX = "photo/"


def describe(
    *,
    task: str,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int],
    resize: str,
    has_masks: bool = False,
) -> dict[str, str]:
    """What whoever runs an exported file must know; every value is text, most of it JSON.

    Args:
        task: `"detection"`, `"segmentation"` or `"classification"`.
        class_names: of each label.
        category_ids: of each label in the data that the model was trained on.
        mean: of the three channels, RGB in 0..255, that is subtracted.
        std: of the three channels, that the difference is divided by.
        size: height and width of the input in pixels.
        resize: `"fit"` (with its aspect ratio, padded), `"stretch"`, or `"crop"`.
        has_masks: whether a detector predicts masks.

    Returns:
        Name -> text.
    """
    height, width = size
    rule: dict[str, Any] = {
        "height": height,
        "width": width,
        "resize": resize,
        "interpolation": "bilinear, half pixel centres, no antialiasing, rounded to whole values",
    }
    if resize == "fit":
        rule["pad"] = "right and below, with 0 after normalisation (the mean)"
    told: dict[str, Any] = {
        "keras_densepred": __version__,
        "task": task,
        "class_names": list(class_names),
        "category_ids": [int(number) for number in category_ids],
        "channel_order": "RGB",
        "mean": list(mean),
        "std": list(std),
        "input": "float32 (batch, height, width, channels), (pixel of 0..255 - mean) / std",
        "size": rule,
    }
    if task == "detection":
        told["box_format"] = "xyxy: left, top, right, bottom in pixels of the input"
        told["score"] = "confidence of the class between 0 and 1; rows past num_detections are -1"
        if has_masks:
            told["masks"] = (
                "(batch, object, S, S) probabilities, from edge to edge of each box, which may "
                "reach beyond the picture: cut boxes off after pasting masks"
            )
    elif task == "segmentation":
        told["score"] = "one value a class and pixel, the highest is the pixel's class"
    else:
        told["score"] = "one value a class, the highest is the image's class"
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in told.items()
    }


def write_description(proto: Any, description: Mapping[str, str] | None) -> None:
    """Puts a description into the `metadata_props` of an `onnx.ModelProto`."""
    if description:
        require("onnx.helper", "export").set_model_props(proto, dict(description))


def add_preprocessing(path: str | os.PathLike[str]) -> None:
    """Turns a described ONNX file of a detector into one from photographs to their boxes.

    Its input is then `"photo"` (H, W, 3) uint8, RGB, of any size, and `"boxes"` are in the pixels
    of that.

    Args:
        path: a file of `export_onnx` with batch size 1 and a `description`; it is replaced.

    Raises:
        ValueError: if the file has no description, or one of no detector.
        ImportError: if onnx is not installed.
    """
    onnx = require("onnx", "export")
    proto = onnx.load(path)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    if told.get("task") != "detection":
        raise ValueError(
            f"{path} is not described as a detector: --with-preprocessing is for those."
        )
    rule = json.loads(told["size"])
    side = np.array([rule["height"], rule["width"]], np.float32)
    graph = proto.graph
    made: list[Any] = []

    def add(operator: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        names = []
        for value in inputs:
            if not isinstance(value, str):
                name = f"{_PREFIX}value_{len(graph.initializer)}"
                graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
                value = name
            names.append(value)
        output = output or f"{_PREFIX}{len(made)}_{operator}"
        made.append(onnx.helper.make_node(operator, names, [output], **attributes))
        return output

    to_float, to_integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    own = add(
        "Slice",
        add("Shape", "photo"),
        np.array([0], np.int64),
        np.array([2], np.int64),
        np.array([0], np.int64),
    )
    own = add("Cast", own, to=to_float)
    factor = add("Div", side, own)
    if rule["resize"] == "fit":
        factor = add("ReduceMin", factor, keepdims=1)
    size = add("Floor", add("Add", add("Mul", own, factor), np.float32(0.5)))
    size = add("Max", size, np.ones(2, np.float32))
    sizes = add("Concat", np.array([1, 3], np.int64), add("Cast", size, to=to_integer), axis=0)
    pixels = add("Transpose", add("Cast", "photo", to=to_float), perm=[2, 0, 1])
    pixels = add("Unsqueeze", pixels, np.array([0], np.int64))
    pixels = add("Resize", pixels, "", "", sizes, mode="linear")
    pixels = add("Transpose", add("Round", pixels), perm=[0, 2, 3, 1])
    mean, std = (np.float32(json.loads(told[name])) for name in ("mean", "std"))
    pixels = add("Div", add("Sub", pixels, mean), std)
    missing = add("Cast", add("Sub", side, size), to=to_integer)
    pads = add("Concat", np.array([0] * 5, np.int64), missing, np.array([0], np.int64), axis=0)
    add("Pad", pixels, pads, np.float32(0), output="images")
    before = len(made)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{_PREFIX}boxes" if name == "boxes" else name for name in names]
    scale = add("Div", size, own)
    scale = add("Gather", scale, np.array([1, 0, 1, 0], np.int64))
    found = add("Unsqueeze", add("GreaterOrEqual", "labels", np.int64(0)), np.array([2], np.int64))
    moved = add("Div", f"{_PREFIX}boxes", scale)
    corners = add("Gather", own, np.array([1, 0, 1, 0], np.int64))
    if "masks" not in told:  # which reach from edge to edge of the boxes as they are
        moved = add("Min", moved, corners)
    add("Where", found, moved, np.float32(-1), output="boxes")
    nodes = [*made[:before], *graph.node, *made[before:]]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    kind = onnx.TensorProto.UINT8
    graph.input.append(onnx.helper.make_tensor_value_info("photo", kind, ["height", "width", 3]))
    told["input"] = "photo: uint8 (height, width, 3), RGB, of any size"
    told["box_format"] = "xyxy: left, top, right, bottom in pixels of the photo"
    del proto.metadata_props[:]
    write_description(proto, told)
    onnx.checker.check_model(proto)
    with replacing(Path(path), "model.onnx") as unfinished:
        onnx.save(proto, unfinished)
