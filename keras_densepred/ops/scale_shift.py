"""A scale and an offset for each channel, what a batch norm is outside of training."""

import keras
from keras import KerasTensor, ops


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
