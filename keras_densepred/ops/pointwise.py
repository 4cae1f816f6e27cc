"""What acts on each position alone: 1x1 convolution, GELU, layer norm, scale and shift."""

import math

import keras
from keras import KerasTensor, ops

from keras_densepred.runtime.devices import jax_writes_saved_model


def pointwise(inputs, kernel, bias=None):
    """Maps the channels (last axis) of every position.

    Equal to `keras.ops.matmul(inputs, kernel) + bias`, in value and gradient.

    On JAX and TensorFlow the positions are laid out in one axis for the product. On JAX and CPU
    that alone makes the gradient of an MLP of two such layers three times as fast (41 ms as four
    axes, 14 ms as two, for a (8, 32, 32, 32) map with an expansion of 4, in CPU time): XLA
    contracts one axis for the kernel's gradient, not three. TensorFlow's graph optimiser makes one
    operation of product, bias and GELU. PyTorch's `linear` does the first two itself.

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
        outputs = _plus_bias(outputs, bias)
    return ops.reshape(outputs, (*shape[:-1], kernel.shape[-1]))


def _plus_bias(rows, bias):
    if not _is_tensorflow(rows):
        return rows + bias
    import tensorflow as tf

    return tf.nn.bias_add(rows, bias)  # the sum that its optimiser looks for


def _is_tensorflow(x) -> bool:
    return keras.config.backend() == "tensorflow" and not isinstance(x, KerasTensor)


@keras.saving.register_keras_serializable(package="keras_densepred")
def gelu(x):
    """Gaussian error linear unit, x times the normal distribution function of x (not its tanh).

    Equal to `keras.ops.gelu(x, approximate=False)` to float32 rounding. There JAX calls erfc, whose
    two ranges XLA computes both for every element: at (32768, 128) in float32 on 2 CPU cores it
    and its gradient take 45 ms of CPU time, this form 14 ms. On TensorFlow this form alone, right
    behind a product, becomes part of it: CEDNet-NeXt-T's levels of a 640 px image take 589 ms
    instead of 691 (two CPU cores with AVX-512, beside 689 and 694 of plain PyTorch).

    Args:
        x: float tensor of any shape.

    Returns:
        A tensor with the shape and dtype of `x`.
    """
    # In 16 bits 1 + erf would round away the tail that erfc keeps.
    is_float32 = keras.backend.standardize_dtype(x.dtype) == "float32"
    if keras.config.backend() == "torch" or not is_float32 or jax_writes_saved_model():
        return ops.gelu(x, approximate=False)
    if not _is_tensorflow(x):
        return _gelu_by_erf(x)
    return ops.reshape(_gelu_by_erf(_source_rows(x)), ops.shape(x))


def _gelu_by_erf(x):
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def _source_rows(x):
    """The matrix that a map in a TensorFlow graph is a view of; the map, if it is none.

    A view between two operations keeps TensorFlow from making one of them. Where gradients may be
    asked for, also by the map, it has to stay, and nothing is fused anyway.
    """
    import tensorflow as tf
    from tensorflow.python.eager import record  # there is no public way to ask (2.21)

    if not tf.is_symbolic_tensor(x) or x.op.type != "Reshape" or record.could_possibly_record():
        return x
    rows = x.op.inputs[0]
    return rows if rows.shape.rank == 2 and rows.shape[-1] == x.shape[-1] else x


def layer_norm(inputs, gamma, beta, epsilon: float):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it.

    Equal to `keras.ops.layer_normalization`. On PyTorch in 16 bits that converts the map to
    float32 and back, two passes more; PyTorch's own kernel computes in float32 inside. On
    TensorFlow in float32 the map is centred once for the variance and for the result: 3.7 ms
    instead of 4.6 for (1, 160, 160, 64) on two CPU cores.

    Args:
        inputs: float tensor `(..., channels)`.
        gamma: float tensor `(channels,)`, the scale.
        beta: float tensor `(channels,)`, the shift.
        epsilon: added to the (biased) variance.

    Returns:
        A tensor with the shape and dtype of `inputs`.
    """
    if _is_tensorflow(inputs) and inputs.dtype == "float32":
        return _layer_norm_of_centred(inputs, gamma, beta, epsilon)
    if keras.config.backend() != "torch" or isinstance(inputs, KerasTensor):
        return ops.layer_normalization(inputs, gamma, beta, axis=-1, epsilon=epsilon)
    import torch.nn.functional as functional

    gamma, beta = (ops.convert_to_tensor(weight, dtype=inputs.dtype) for weight in (gamma, beta))
    return functional.layer_norm(inputs, gamma.shape, gamma, beta, epsilon)


def _layer_norm_of_centred(inputs, gamma, beta, epsilon):
    centred = inputs - ops.mean(inputs, -1, keepdims=True)
    variance = ops.mean(ops.square(centred), -1, keepdims=True)
    return centred * ops.rsqrt(variance + epsilon) * gamma + beta


def scale_shift(inputs, scale, offset):
    """`inputs * scale + offset`, in PyTorch in one pass over the map.

    Keras' batch normalisation takes three passes there: 1.15 ms for a (1, 56, 56, 256) map on one
    CPU thread, 0.38 in one. XLA and TensorFlow fuse or reuse the memory.

    Args:
        inputs: float tensor `(batch, ..., channels)`.
        scale: float tensor `(channels,)`.
        offset: float tensor `(channels,)`.

    Returns:
        A tensor like `inputs`.
    """
    if keras.config.backend() == "torch" and not isinstance(inputs, KerasTensor):
        import torch

        return torch.addcmul(offset, inputs, scale)
    return ops.add(ops.multiply(inputs, scale), offset)
