"""How much arithmetic a model does: multiply-adds of its convolutions and dense layers."""

import math
from collections.abc import Iterator

import keras

from keras_densepred.layers.conv import Conv
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.window_attention import (
    CrossShapedWindowAttention,
    ShiftedWindowAttention,
)


def count_multiply_adds(model: keras.Model, norms: bool = False) -> int:
    """Multiply-adds of one image's forward pass, as the papers count them.

    Convolutions and linear layers (those inside attention included) count; biases, norms,
    activations, up-sampling and the products between queries, keys and values do not. A layer
    that runs at every level of a pyramid counts at every level.

    Args:
        model: a functional model with a fixed input size (`image_shape=(height, width, 3)`).
        norms: whether a batch normalisation counts one for each of its elements, as in the
            figures of SpineNet and BiCSNet.

    Returns:
        The number of multiply-adds.

    Raises:
        ValueError: if the input size is not fixed, or a layer with a kernel is of a kind whose
            arithmetic is unknown here and that has no method `multiply_adds(output_shape, norms)`.
    """
    check_fixed_size(model)
    return sum(layer_multiply_adds(layer, shape, norms) for layer, shape in _calls(model))


def count_attention_products(model: keras.Model) -> int:
    """Multiply-adds of the products between queries, keys and values, in one forward pass.

    Args:
        model: as for `count_multiply_adds`.

    Returns:
        The number of multiply-adds, 0 for a network without attention.

    Raises:
        ValueError: if the input size is not fixed.
    """
    check_fixed_size(model)
    total = 0
    for layer, shape in _calls(model):
        if isinstance(layer, ShiftedWindowAttention):
            # Each position of the padded map meets its window's, once as key and once as value.
            window = layer.window_size
            total += 2 * _padded_positions(shape, window) * window**2 * shape[-1]
        elif isinstance(layer, CrossShapedWindowAttention):
            total += _cross_shaped_products(layer, shape)
    return total


def check_fixed_size(model: keras.Model) -> None:
    """Raises ValueError unless the model is for images of one size."""
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "Counting needs a fixed image size: build the model with `image_shape=(height, width, "
            f"3)`, got {tuple(model.inputs[0].shape[1:])}."
        )


def graph_nodes(model: keras.Model) -> Iterator:
    """Every call of a layer in the graph, of models inside too: nodes in order of execution."""
    # Keras 3.15.1 has no public way to the calls of a graph.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if isinstance(node.operation, keras.Model):
                yield from graph_nodes(node.operation)
            elif not node.is_input:
                yield node


def _calls(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, tuple[int, ...]]]:
    """Every call of a layer with its output's shape."""
    for node in graph_nodes(model):
        yield node.operation, tuple(node.outputs[0].shape[1:])


def layer_multiply_adds(layer, shape: tuple[int, ...], norms: bool = False) -> int:
    """Multiply-adds of one call of a layer: see `count_multiply_adds`.

    Args:
        layer: a Keras layer.
        shape: of its output, without the batch axis.
        norms: as for `count_multiply_adds`.
    """
    if hasattr(layer, "multiply_adds"):
        return layer.multiply_adds(shape, norms)
    if norms and isinstance(layer, keras.layers.BatchNormalization):
        return math.prod(shape)
    if not any(weight.name.endswith("kernel") for weight in getattr(layer, "weights", ())):
        return 0
    positions = math.prod(shape[:-1])  # a pooled vector has one
    if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense, Conv, DepthwiseConv)):
        per_position = math.prod(layer.kernel.shape)
    elif isinstance(layer, ShiftedWindowAttention):
        positions = _padded_positions(shape, layer.window_size)
        per_position = sum(math.prod(d.kernel.shape) for d in (layer.qkv, layer.proj))
    elif isinstance(layer, CrossShapedWindowAttention):
        per_position = sum(math.prod(kernel.shape) for kernel in layer.lepe_kernels)
    else:
        raise ValueError(f"The arithmetic of {layer.name!r}, a {type(layer).__name__}, is unknown.")
    return positions * per_position


def _padded_positions(shape: tuple[int, ...], window: int) -> int:
    return math.prod(-(-size // window) * window for size in shape[:-1])


def _cross_shaped_products(layer: CrossShapedWindowAttention, shape: tuple[int, ...]) -> int:
    height, width, channels = shape
    if layer.stripe_width is None:
        return 2 * (height * width) ** 2 * channels
    total = 0
    for along, across in ((height, width), (width, height)):
        positions = along * -(-across // layer.stripe_width) * layer.stripe_width
        total += 2 * positions * along * layer.stripe_width * (channels // 2)
    return total
