"""Max-pooling of channels-last maps with symmetric padding.

`keras.ops.max_pool` pads an even map at the bottom and the right only, half a position off the
convolutions of `conv.py`, and on PyTorch copies a channels-last map to contiguous NCHW first. All
three backends pad inside their pooling if asked.
"""

import keras
from keras import KerasTensor, ops


def max_pool2d(inputs, *, pool_size: int, strides: int, padding: int = 0):
    """The largest value of each window.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        pool_size: side of the window in pixels.
        strides: step of the window in pixels, the same along both axes.
        padding: positions of no value on each of the four sides, at most half a window.

    Returns:
        `(batch, out_height, out_width, channels)` in the dtype of `inputs`, with
        `out = (size + 2 * padding - pool_size) // strides + 1`.
    """
    inputs = ops.convert_to_tensor(inputs)
    backend = keras.config.backend()
    if isinstance(inputs, KerasTensor):
        around = (padding, padding)
        inputs = ops.pad(inputs, ((0, 0), around, around, (0, 0)), constant_values=-float("inf"))
        return ops.max_pool(inputs, pool_size, strides, "valid", data_format="channels_last")
    if backend == "torch":
        import torch.nn.functional as functional

        outputs = functional.max_pool2d(inputs.permute(0, 3, 1, 2), pool_size, strides, padding)
        return outputs.permute(0, 2, 3, 1)
    if backend == "tensorflow":
        import tensorflow as tf

        around = [padding, padding]
        return tf.nn.max_pool2d(inputs, pool_size, strides, [[0, 0], around, around, [0, 0]])
    from jax import lax

    return lax.reduce_window(
        inputs,
        -float("inf"),
        lax.max,
        (1, pool_size, pool_size, 1),
        (1, strides, strides, 1),
        ((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )
