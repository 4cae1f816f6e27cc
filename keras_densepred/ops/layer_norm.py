"""Layer normalisation over the channels."""

import keras
from keras import KerasTensor, ops


def layer_norm(inputs, gamma, beta, epsilon: float):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it.

    Equal to `keras.ops.layer_normalization`. On PyTorch in 16 bits that converts the map to
    float32 and back, two passes more; PyTorch's own kernel computes in float32 inside.

    Args:
        inputs: float tensor `(..., channels)`.
        gamma: float tensor `(channels,)`, the scale.
        beta: float tensor `(channels,)`, the shift.
        epsilon: added to the (biased) variance.

    Returns:
        A tensor with the shape and dtype of `inputs`.
    """
    if keras.config.backend() != "torch" or isinstance(inputs, KerasTensor):
        return ops.layer_normalization(inputs, gamma, beta, axis=-1, epsilon=epsilon)
    import torch.nn.functional as functional

    gamma, beta = (ops.convert_to_tensor(weight, dtype=inputs.dtype) for weight in (gamma, beta))
    return functional.layer_norm(inputs, gamma.shape, gamma, beta, epsilon)
