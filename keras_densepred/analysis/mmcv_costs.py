"""What mmcv's counter counts, with which CEDNet's detectors and segmenters are reported.

Each as one: multiply-adds of convolutions and their biases, multiply-adds of linear layers,
elements of ReLUs, of what up-samples, and of what is pooled; two for each element of batch and
group norms.
It does not see what is no module of PyTorch's that it knows: CEDNet's own norms and GELUs, and
resizing by a function.
"""

import math
from typing import Any

import keras

from keras_densepred.analysis.multiply_adds import count_multiply_adds, graph_nodes
from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.pooling import AdaptiveMean
from keras_densepred.layers.upsampling import BilinearUpsample

LINEAR = ("_pwconv1", "_pwconv2")  # of ConvNeXt's and CEDNet's blocks; others are convolutions
_NORMS = (keras.layers.BatchNormalization, keras.layers.GroupNormalization)


def count_as_mmcv(model: keras.Model) -> int:
    """All that mmcv's counter counts of one image, see the module.

    Args:
        model: a functional model of CEDNet's or ConvNeXt's blocks with a fixed image size.

    Raises:
        ValueError: if the image size is not fixed.
    """
    return count_multiply_adds(model) + sum(map(_elements, graph_nodes(model)))


def _elements(node: Any) -> int:
    """What a call of a layer costs besides multiply-adds."""
    layer, size = node.operation, math.prod(node.outputs[0].shape[1:])
    if isinstance(layer, _NORMS):
        return 2 * size
    if isinstance(layer, AdaptiveMean):
        return math.prod(node.input_tensors[0].shape[1:])
    is_relu = getattr(getattr(layer, "activation", None), "__name__", "") == "relu"
    if isinstance(layer, BilinearUpsample) or (
        isinstance(layer, keras.layers.Activation) and is_relu
    ):
        return size
    if isinstance(layer, (Conv, DepthwiseConv, Pointwise)):
        return size if layer.bias is not None and not layer.name.endswith(LINEAR) else 0
    return 0
