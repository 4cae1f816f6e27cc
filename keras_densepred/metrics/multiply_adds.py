"""How much arithmetic a model does: multiply-adds of its convolutions and dense layers."""

import math

import keras

from keras_densepred.layers.conv import Conv
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.window_attention import (
    CrossShapedWindowAttention,
    ShiftedWindowAttention,
)


def count_multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of one image's forward pass, as the papers count them.

    Convolutions and linear layers (those inside attention included) count; biases, norms,
    activations, up-sampling and the products between queries, keys and values do not.

    Args:
        model: a functional model with a fixed input size (`image_shape=(height, width, 3)`).

    Returns:
        The number of multiply-adds.

    Raises:
        ValueError: if the input size is not fixed, or a layer with a kernel is of a kind whose
            arithmetic is not known here.
    """
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "Counting needs a fixed image size: build the model with `image_shape=(height, width, "
            f"3)`, got {tuple(model.inputs[0].shape[1:])}."
        )
    return sum(_layer_multiply_adds(layer) for layer in model.layers)


def _layer_multiply_adds(layer) -> int:
    if not any(weight.name.endswith("kernel") for weight in layer.weights):
        return 0
    shape = layer.output.shape[1:]
    positions = math.prod(shape[:-1])  # a pooled vector has one
    if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense, Conv, DepthwiseConv)):
        per_position = math.prod(layer.kernel.shape)
    elif isinstance(layer, ShiftedWindowAttention):
        window = layer.window_size
        positions = math.prod(-(-size // window) * window for size in shape[:-1])
        per_position = sum(math.prod(d.kernel.shape) for d in (layer.qkv, layer.proj))
    elif isinstance(layer, CrossShapedWindowAttention):
        per_position = sum(math.prod(kernel.shape) for kernel in layer.lepe_kernels)
    else:
        raise ValueError(f"The arithmetic of {layer.name!r}, a {type(layer).__name__}, is unknown.")
    return positions * per_position
