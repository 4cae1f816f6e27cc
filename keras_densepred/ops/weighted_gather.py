"""Weighted sums of gathered rows: what resampling at arbitrary positions comes down to.

The plain form gathers all rows, (M, K, C), multiplies and sums: K times the memory of the result,
in the forward and again in the backward pass. Here no more than (M, C) is alive at a time: PyTorch
has the sum as one operation (`embedding_bag`), XLA fuses gathers into their sum, and the gradient
adds one of the K parts after the other. `tools/timing/roi_align.py` times it beside the plain form.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_densepred.runtime.devices import writes_onnx

Tensor = Any


def weighted_gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """`sum_k weight[m, k] * table[index[m, k]]`, with a gradient for the table alone.

    Args:
        table: (N, C), any float type.
        index: (M, K) int32, 0 <= index < N.
        weight: (M, K) float32; takes no gradient.

    Returns:
        (M, C) in the type of `table`; summed in float32.
    """
    weight = ops.stop_gradient(weight)
    backend = keras.config.backend()
    if backend == "torch":
        return _torch(table, index, weight)
    function = _jax_function() if backend == "jax" else _tensorflow_function()
    return function(table, index, weight)


def _torch(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    if table.device.type == "meta":  # shapes are being inferred
        return table.new_empty((index.shape[0], table.shape[1]))
    import torch.nn.functional as functional

    if writes_onnx():  # PyTorch 2.13 writes `embedding_bag` as a loop over all rows
        return _sum_of_parts(table, weight, lambda k: functional.embedding(index[:, k], table))
    # In half precision the weights would be rounded to the table's type.
    outputs = functional.embedding_bag(
        index, table.float(), mode="sum", per_sample_weights=weight.float()
    )
    return outputs.to(table.dtype)


def _sum_of_parts(table: Tensor, weight: Tensor, gather_part: Callable[[int], Tensor]) -> Tensor:
    total: Tensor = 0.0
    for k in range(weight.shape[1]):
        total = total + weight[:, k, None] * ops.cast(gather_part(k), "float32")
    return ops.cast(total, table.dtype)


@functools.cache
def _jax_function() -> Any:
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def gather(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        # `keras.ops.take` would compare every index with the bounds.
        rows = table.at
        return _sum_of_parts(
            table, weight, lambda k: rows[index[:, k]].get(mode="promise_in_bounds")
        )

    def forward(table: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        # Of the table only shape and type are needed: an empty slice carries them.
        return gather(table, index, weight), (table[:, :0], index, weight)

    def backward(saved: Tensor, gradient: Tensor) -> tuple[Tensor, None, None]:
        empty, index, weight = saved
        gradient = gradient.astype("float32")

        def add(k: Tensor, total: Tensor) -> Tensor:
            update = weight[:, k, None] * gradient
            return total.at[index[:, k]].add(update, mode="promise_in_bounds")

        start = jnp.zeros((empty.shape[0], gradient.shape[1]), "float32")
        total = jax.lax.fori_loop(0, index.shape[1], add, start)
        return total.astype(empty.dtype), None, None

    gather.defvjp(forward, backward)
    return gather


@functools.cache
def _tensorflow_function() -> Any:
    import tensorflow as tf

    @tf.custom_gradient
    def gather(table: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Any]:
        shape = tf.shape(table)

        def backward(gradient: Tensor) -> tuple[Tensor, None, None]:
            gradient = tf.cast(gradient, "float32")
            total = tf.zeros(shape, "float32")
            for k in range(index.shape[1]):
                total = tf.tensor_scatter_nd_add(
                    total, index[:, k, None], weight[:, k, None] * gradient
                )
            return tf.cast(total, table.dtype), None, None

        outputs = _sum_of_parts(table, weight, lambda k: tf.gather(table, index[:, k]))
        return outputs, backward

    return gather
