"""8-bit integer form of an exported network, by ONNX Runtime's static quantisation."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.files import replacing

# What ONNX Runtime computes in integers on a CPU; whatever else there is stays float.
_OPERATORS = (
    *("Conv", "MatMul", "Gemm", "LeakyRelu", "Add", "Mul", "Sigmoid", "Concat"),
    *("MaxPool", "Resize", "Transpose", "Reshape", "Slice", "Split"),
)
_WEIGHTED = frozenset({"Conv", "MatMul", "Gemm"})


def quantize_onnx(
    path: str | os.PathLike[str], output: str | os.PathLike[str], images: Iterable[np.ndarray]
) -> Path:
    """Writes a network with 8-bit integer convolutions (QDQ form, weights by channel).

    Activations get the ranges they have on `images`. What follows the last convolutions
    (decoding, suppression) stays float32, and so do grouped convolutions exported from TensorFlow.

    Args:
        path: a file of `export_onnx`.
        output: the file to write; an old one is replaced.
        images: batches (B, H, W, 3) float32 as the network takes them, a hundred images or so of
            the kind it will see.

    Returns:
        The path of `output`.

    Raises:
        ValueError: if there are no images.
        ImportError: if onnx or onnxruntime is not installed.
    """
    onnx = require("onnx", "export")
    require("onnxruntime", "export")
    quantization = require("onnxruntime.quantization", "export")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    output = Path(output)
    with replacing(output, "int8.onnx") as unfinished:
        prepared = unfinished.with_name("prepared.onnx")
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        network = onnx.load(prepared)
        for number, node in enumerate(network.graph.node):
            node.name = f"{number}_{node.name}"  # some have none
        onnx.save(network, prepared)
        quantization.quantize_static(
            str(prepared),
            str(unfinished),
            _reader(images, quantization.CalibrationDataReader),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            nodes_to_exclude=[
                *_after_the_network(network.graph),
                *_products_by_group(network.graph),
            ],
            per_channel=True,
            # Weights of 7 bits: CPUs without VNNI add products in pairs in 16 bits, where those of
            # 8 overflow. Blood cells lost AP 0.031 to it (dense detector, ONNX Runtime, AVX2), and
            # lose 0.004.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return output


def _reader(images: Iterable[np.ndarray], base: type) -> Any:
    """The images as ONNX Runtime's calibration wants them, an instance of `base`."""
    batches = iter(images)
    first = next(batches, None)
    if first is None:
        raise ValueError("There are no images to calibrate on; give at least one batch.")

    class Reader(base):
        def __init__(self):
            self.next = first

        def get_next(self) -> dict[str, np.ndarray] | None:
            current, self.next = self.next, next(batches, None)
            return None if current is None else {"images": current.astype(np.float32, copy=False)}

    return Reader()


def _products_by_group(graph: Any) -> list[str]:
    """Names of the products with a matrix for each group of channels.

    ONNX Runtime 1.31 quantizes such weights by channel and then refuses to compute with them.
    """
    stacked = {weight.name for weight in graph.initializer if len(weight.dims) > 2}
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and stacked.intersection(node.input)
    ]


def _after_the_network(graph: Any) -> list[str]:
    """Names of the nodes that no convolution or product comes after."""
    used: set[str] = set()  # tensors that end in a node with weights
    rest = []
    for node in reversed(graph.node):  # nodes are in the order of their computation
        if node.op_type in _WEIGHTED or used.intersection(node.output):
            used.update(node.input)
        else:
            rest.append(node.name)
    return rest
