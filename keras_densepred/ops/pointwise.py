"""1x1 convolution of channels-last maps, which is a matrix product."""

import keras
from keras import KerasTensor, ops


def pointwise(inputs, kernel, bias=None):
    """Maps the channels (last axis) of every position.

    Equal to `keras.ops.matmul(inputs, kernel) + bias`, in value and gradient.

    On JAX and TensorFlow the positions are laid out in one axis for the product. On JAX and CPU
    that alone makes the gradient of an MLP of two such layers three times as fast (41 ms as four
    axes, 14 ms as two, for a (8, 32, 32, 32) map with an expansion of 4, in CPU time): XLA
    contracts one axis for the kernel's gradient, not three. PyTorch's `linear` does so itself and
    adds the bias in the product.

    Args:
        inputs: float tensor `(batch, ..., channels)`.
        kernel: float tensor `(channels, units)`.
        bias: float tensor `(units,)`, or None.

    Returns:
        `(batch, ..., units)` in the dtype of `inputs`.
    """
    inputs, kernel = ops.convert_to_tensor(inputs), ops.convert_to_tensor(kernel)
    if bias is not None:
        bias = ops.convert_to_tensor(bias)
    if keras.config.backend() == "torch" and not isinstance(inputs, KerasTensor):
        import torch.nn.functional as functional

        return functional.linear(inputs, kernel.t(), bias)
    shape = ops.shape(inputs)
    outputs = ops.matmul(ops.reshape(inputs, (-1, inputs.shape[-1])), kernel)
    if bias is not None:
        outputs = outputs + bias
    return ops.reshape(outputs, (*shape[:-1], kernel.shape[-1]))
