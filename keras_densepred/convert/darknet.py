"""Weights in Darknet's `.weights` files.

A file is a header - three int32 of a version, then how many images were seen in training - and the
float32 of each layer in the order of the network's configuration: of a convolution with batch norm
beta, gamma, mean, variance and kernel, of one without bias and kernel. There are no names and no
shapes in it, so the only guard against a file of another network is its length, which is checked
to the byte before anything is changed.
"""

import dataclasses
import math
import os
import struct
from pathlib import Path

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class DarknetHeader:
    """The header of a `.weights` file.

    Attributes:
        major, minor, revision: the version of the file's format.
        seen: number of images the network was trained with.
        size: bytes of the header.
    """

    major: int
    minor: int
    revision: int
    seen: int
    size: int


def load_weights(model: keras.Model, path: str | Path) -> DarknetHeader:
    """Loads a `.weights` file into a network whose convolutions have its order.

    Nothing is assigned unless the file's length fits.

    Args:
        model: a network that tells by `darknet_order` the names of its convolutions in the order
            of its Darknet configuration: `CSPNetBackbone`, or `CSPNetImageClassifier` around one,
            for csresnet50, csresnext50 and csdarknet53; `DarknetTinyBackbone`; or `YOLOv3Detector`
            on one of them. The layer `"..._norm"` is taken as the norm of the convolution
            `"..._conv"`. Where the network tells by `darknet_epsilon` another epsilon than its
            norms have, the difference is put into their variances: outputs are Darknet's.
        path: the file.

    Returns:
        Its header.

    Raises:
        ValueError: if the model has no such order, there is no such file, or its length is not
            that of the network's weights.
    """
    path = Path(path)
    arrays = darknet_weights(model)
    if not path.is_file():
        raise ValueError(f"There is no weights file {path}: give the path of one.")
    header = read_header(path)
    expected = sum(math.prod(variable.shape) for variable in arrays)
    found = os.path.getsize(path) - header.size
    if found != 4 * expected:
        raise ValueError(
            f"{path} has {found:,} bytes after its header of {header.size}, but {model.name} has "
            f"{expected:,} weights, which are {4 * expected:,} bytes: choose the network that the "
            "file is of, with as many classes."
        )
    numbers = np.fromfile(path, "<f4", offset=header.size)
    start = 0
    for variable in arrays:
        size = math.prod(variable.shape)
        variable.assign(_to_keras_layout(numbers[start : start + size], variable.shape))
        start += size
    _take_epsilon_over(model)
    return header


def _take_epsilon_over(model: keras.Model) -> None:
    epsilon = getattr(model, "darknet_epsilon", None)
    for layer in model.layers if epsilon is not None else ():
        if layer.name.endswith("_norm") and layer.epsilon != epsilon:
            variance = keras.ops.convert_to_numpy(layer.moving_variance) + epsilon - layer.epsilon
            layer.moving_variance.assign(np.maximum(variance, 0))


# Darknet's spellings of classes of COCO.
_COCO_NAMES = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
_COCO_IDS_LEFT_OUT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def read_names(path: str | Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Reads a `.names` file: one class a line.

    Returns:
        Category ids and names. Those of Darknet's `coco.names` are COCO's, so that the detector is
        evaluated on COCO and its results are what COCO's tools read; others have ids from 1.

    Raises:
        ValueError: if a line is empty, or a name stands twice.
    """
    names = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    names = [name.strip() for name in names]
    if not all(names):
        raise ValueError(f"{path}: line {names.index('') + 1} is empty; give each class one line.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} has {twice!r} twice; give each class a name of its own.")
    if len(names) == 80 and set(_COCO_NAMES) <= set(names):
        names = [_COCO_NAMES.get(name, name) for name in names]
        return tuple(i for i in range(1, 91) if i not in _COCO_IDS_LEFT_OUT), tuple(names)
    return tuple(range(1, len(names) + 1)), tuple(names)


def read_header(path: str | Path) -> DarknetHeader:
    """Reads the header of a `.weights` file.

    Raises:
        ValueError: if the file is too short to have one.
    """
    with open(path, "rb") as file:
        start = file.read(20)
    if len(start) >= 12:
        major, minor, revision = struct.unpack("<3i", start[:12])
        # Before version 0.2, `seen` was an int and not a size_t (Darknet, parser.c).
        wide = 10 * major + minor >= 2
        size = 20 if wide else 16
        if len(start) >= size:
            (seen,) = struct.unpack("<Q" if wide else "<I", start[12:size])
            return DarknetHeader(major, minor, revision, seen, size)
    raise ValueError(f"{path} has {len(start)} bytes, too few for the header of a weights file.")


def darknet_weights(model: keras.Model) -> list[keras.Variable]:
    """The weights of `model` in the order of a `.weights` file.

    Raises:
        ValueError: if the model does not tell the order of its convolutions, or has weights that
            belong to none of them.
    """
    order = getattr(model, "darknet_order", None)
    if order is None:
        raise ValueError(
            f"{model.name}, a {type(model).__name__}, does not tell Darknet's order of its "
            "convolutions (`darknet_order`): there is no weights file for it."
        )
    norms = {layer.name for layer in model.layers if layer.name.endswith("_norm")}
    weights: list[keras.Variable] = []
    for name in order:
        convolution = model.get_layer(name)
        norm = f"{name.removesuffix('_conv')}_norm"
        if norm in norms:
            layer = model.get_layer(norm)
            weights += [layer.beta, layer.gamma, layer.moving_mean, layer.moving_variance]
        else:
            weights.append(convolution.bias)
        weights.append(convolution.kernel)
    if len(weights) != len(model.weights):
        raise ValueError(
            f"{model.name} has {len(model.weights)} weights, of which Darknet's order of its "
            f"convolutions has {len(weights)}."
        )
    return weights


def _to_keras_layout(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Darknet's kernels are (out, in, height, width), row by row; a dense one's are 1x1."""
    if len(shape) == 1:
        return numbers
    height, width, channels, filters = shape if len(shape) == 4 else (1, 1, *shape)
    kernel = numbers.reshape(filters, channels, height, width).transpose(2, 3, 1, 0)
    return kernel.reshape(shape)
