"""Max-pooling of channels-last maps with symmetric padding, and means over a fixed grid of cells.

`keras.ops.max_pool` pads an even map at the bottom and the right only, half a position off the
convolutions of `conv.py`, and on PyTorch copies a channels-last map to contiguous NCHW first.
PyTorch and JAX pad inside their pooling if asked.
"""

import functools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, ops

from keras_densepred.runtime.devices import jax_runs_on_cpu

Tensor = Any


def largest(parts: Iterable[Tensor]) -> Tensor:
    """Elementwise maximum of tensors, NaN where one is; the gradient goes to the largest alone.

    `ops.max` divides the gradient by the number of values equal to the maximum. XLA may compute
    them once for the maximum and again for the comparison, with another rounding: then none is
    equal and the gradient is NaN (on CPU, behind a batch norm). On JAX `ops.maximum` compares with
    the maximum as well; TensorFlow's and PyTorch's compare the two values.

    Args:
        parts: one tensor or more of the same shape and type.
    """

    def larger(best: Tensor, other: Tensor) -> Tensor:
        if keras.config.backend() != "jax":
            return ops.maximum(best, other)
        return ops.where(ops.logical_or(other > best, ops.isnan(other)), other, best)

    return functools.reduce(larger, parts)


def max_pool2d(inputs, *, pool_size: int, strides: int, padding: int | tuple[int, int] = 0):
    """The largest value of each window.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        pool_size: side of the window in pixels.
        strides: step of the window in pixels, the same along both axes.
        padding: padding that never wins, in pixels on each of the four sides, at most half a
            window; or the padding above and on the left, and that below and on the right.

    Returns:
        `(batch, out_height, out_width, channels)` in the dtype of `inputs`, with
        `out = (size + before + after - pool_size) // strides + 1`.
    """
    inputs = ops.convert_to_tensor(inputs)
    backend = keras.config.backend()
    before, after = (padding, padding) if isinstance(padding, int) else padding
    if isinstance(inputs, KerasTensor):
        edges = ((0, 0), (before, after), (before, after), (0, 0))
        inputs = ops.pad(inputs, edges, constant_values=-float("inf"))
        return ops.max_pool(inputs, pool_size, strides, "valid", data_format="channels_last")
    if backend == "torch":
        return _max_pool_torch(inputs, pool_size, strides, before, after)
    if backend == "tensorflow":
        import tensorflow as tf

        # Not by the pooling itself: XLA has none with explicit padding.
        if before or after:
            pads = [[0, 0], [before, after], [before, after], [0, 0]]
            inputs = tf.pad(inputs, pads, constant_values=inputs.dtype.min)
        return tf.nn.max_pool2d(inputs, pool_size, strides, "VALID")
    return _max_pool_jax(inputs, pool_size, strides, before, after)


def _max_pool_jax(inputs, pool_size, strides, before, after):
    import jax.numpy as jnp
    from jax import lax

    if pool_size == strides and jax_runs_on_cpu():
        # Windows that do not overlap are two axes of their own. XLA's gradient of a windowed
        # maximum searches and scatters: a seventh of a training step of PeleeNet, which pools once.
        sizes = [(size + before + after - strides) // strides + 1 for size in inputs.shape[1:3]]
        ends = [count * strides - before for count in sizes]
        maps = inputs[:, : ends[0], : ends[1]]
        edges = [
            (before, max(end - size, 0)) for end, size in zip(ends, inputs.shape[1:3], strict=True)
        ]
        maps = jnp.pad(maps, ((0, 0), *edges, (0, 0)), constant_values=-float("inf"))
        channels = inputs.shape[3]
        windows = maps.reshape(-1, sizes[0], strides, sizes[1], strides, channels)
        return largest(windows[:, :, i, :, j] for i in range(strides) for j in range(strides))
    return lax.reduce_window(
        inputs,
        -float("inf"),
        lax.max,
        (1, pool_size, pool_size, 1),
        (1, strides, strides, 1),
        ((0, 0), (before, after), (before, after), (0, 0)),
    )


def _max_pool_torch(inputs, pool_size, strides, before, after):
    import torch.nn.functional as functional

    maps = inputs.permute(0, 3, 1, 2)
    # torch pads both sides alike; what is missing below and on the right matters to few sizes.
    missing = [
        after - before if (size + before + after - pool_size) % strides < after - before else 0
        for size in maps.shape[2:]
    ]
    if any(missing):
        maps = functional.pad(maps, (0, missing[1], 0, missing[0]), value=-float("inf"))
    return functional.max_pool2d(maps, pool_size, strides, before).permute(0, 2, 3, 1)


def adaptive_mean_pool(inputs, cells: int):
    """The means over a grid of `cells` x `cells` cells, whatever the size of the map.

    Cell `i` covers the rows `floor(i * height / cells)` up to, not including, `ceil((i + 1) *
    height / cells)`, and columns likewise: cells overlap where the size is no multiple, and repeat
    each other where the map is smaller than the grid. It is a product with a matrix of shares on
    either side, and needs no size to be known before it runs.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        cells: positive integer.

    Returns:
        `(batch, cells, cells, channels)` in the dtype of `inputs`, added up in float32.
    """
    batch, height, width, channels = ops.shape(inputs)
    x = ops.reshape(ops.cast(inputs, "float32"), (batch, height, width * channels))
    x = ops.matmul(_shares(height, cells), x)
    x = ops.reshape(x, (batch, cells, width, channels))
    return ops.cast(ops.matmul(_shares(width, cells), x), inputs.dtype)


def _shares(length: Any, cells: int) -> Tensor:
    """What each of `length` positions contributes to each cell: `(cells, length)` float32."""
    cell: Any = np.arange(cells, dtype="int32")[:, None]  # as TensorFlow's sizes
    if isinstance(length, int):
        inside, counts = _inside(np.arange(length), cell, length, cells)
        return ops.convert_to_tensor((inside / counts).astype("float32"))
    position = ops.arange(length, dtype="int32")
    inside, counts = _inside(position, ops.convert_to_tensor(cell), length, cells)
    return ops.cast(inside, "float32") / ops.cast(counts, "float32")


def _inside(position: Any, cell: Any, length: Any, cells: int) -> tuple[Any, Any]:
    """Whether each cell (cells, 1) covers each position (length,), and how many it covers."""
    # Rounded up without negative numbers, which OpenVINO (2026.4.1) divides otherwise.
    start, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    return (position >= start) & (position < end), end - start
