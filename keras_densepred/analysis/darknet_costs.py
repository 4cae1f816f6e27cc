"""What a network costs as Darknet and the CSPNet paper count it, as a whole and layer by layer.

Wang et al., "CSPNet" (2019), tables 1 to 4 and figures 7 and 8:

* BFLOPs: two for each multiply-add of a convolution or linear layer; one for each position of each
  window of max-pooling, and for each channel that a maxout reads; nothing for the rest.
* #Parameter: the weights of convolutions and linear layers, without biases and norms.
* CIO: elements that convolutions read and write, which stands for memory traffic.
* the length of a `.weights` file: weights, biases, and four numbers a channel of a batch norm.
"""

import dataclasses
import math

import keras

from keras_densepred.analysis.multiply_adds import (
    check_fixed_size,
    graph_nodes,
    layer_multiply_adds,
)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What one call of a layer costs for one image.

    Attributes:
        name: of the layer.
        output_shape: height, width, channels; only channels after pooling over all positions.
        operations: BFLOPs times 1e9.
        multiply_adds: of a convolution or linear layer, 0 for pooling.
        elements_in: elements of the maps that a convolution reads, 0 for pooling.
        elements_out: elements of the map that a convolution writes, 0 for pooling.
    """

    name: str
    output_shape: tuple[int, ...]
    operations: int
    multiply_adds: int
    elements_in: int
    elements_out: int


def layer_costs(model: keras.Model) -> list[LayerCost]:
    """The layers that cost something by Darknet's rules, in order of execution (figure 7).

    Args:
        model: a functional model with a fixed input size (`image_shape=(height, width, 3)`).

    Returns:
        One entry a call of a convolution, a linear layer, or a layer with a method
        `comparisons(input_shape, output_shape)`, both without the batch axis, as max-pooling and
        maxout have.

    Raises:
        ValueError: if the input size is not fixed, or a layer with a kernel is of a kind whose
            arithmetic is unknown.
    """
    check_fixed_size(model)
    costs = []
    for node in graph_nodes(model):
        layer = node.operation
        shape = tuple(node.outputs[0].shape[1:])
        read = [tuple(tensor.shape[1:]) for tensor in node.input_tensors]
        multiply_adds = layer_multiply_adds(layer, shape)
        if multiply_adds:
            elements = sum(math.prod(sizes) for sizes in read)
            costs.append(
                LayerCost(
                    layer.name, shape, 2 * multiply_adds, multiply_adds, elements, math.prod(shape)
                )
            )
        elif hasattr(layer, "comparisons"):
            costs.append(LayerCost(layer.name, shape, layer.comparisons(read[0], shape), 0, 0, 0))
    return costs


def count_operations(model: keras.Model) -> int:
    """BFLOPs times 1e9 of one image; arguments and errors as of `layer_costs`."""
    return sum(cost.operations for cost in layer_costs(model))


def count_memory_traffic(model: keras.Model) -> int:
    """CIO: elements that convolutions read and write (figure 8); else as `layer_costs`."""
    return sum(cost.elements_in + cost.elements_out for cost in layer_costs(model))


def count_weights(model: keras.Model) -> int:
    """The paper's #Parameter: kernels alone, neither biases nor what norms learn."""
    return _elements(weight for weight in model.weights if _is_kernel(weight))


def count_file_floats(model: keras.Model) -> int:
    """Numbers in a `.weights` file of the model: every weight but random states."""
    return _elements(weight for weight in model.weights if "seed_generator" not in weight.path)


def _is_kernel(weight) -> bool:
    return weight.name.endswith("kernel")


def _elements(weights) -> int:
    return sum(math.prod(weight.shape) for weight in weights)
