"""Deformable convolution for TensorFlow, its backward pass compiled by XLA.

Imported on the TensorFlow backend only; `deformable_conv.py` says what is computed. TensorFlow's
own scatter runs on one core and its gathers leave four maps in memory: a 3x3 convolution of 128
channels at 100 x 168 with its gradients took 4.0 times the ordinary one's time with them, and takes
2.0 times with XLA (two cores). The forward pass is not compiled: exported files hold it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_densepred.ops.deformable_conv import (
    Index,
    Parts,
    backward,
    forward,
)
from keras_densepred.ops.loops import scan_tensorflow

Tensor = Any


def _read(table: Tensor, index: Index, shares: Sequence[Tensor]) -> Tensor:
    return tf.add_n(
        [share[:, None] * tf.gather(table, i) for i, share in zip(index, shares, strict=True)]
    )


def _add(_: tuple, total: Tensor, index: Index, shares: Sequence[Tensor], rows: Tensor) -> Tensor:
    updates = tf.stack(shares, -1)[..., None] * rows[:, None]
    return tf.tensor_scatter_nd_add(total, tf.stack(index, -1)[..., None], updates)


def _products(_: tuple, table: Tensor, index: Index, rows: Tensor) -> list[Tensor]:
    neighbours = tf.gather(table, tf.stack(index, -1))
    return tf.unstack(tf.matmul(neighbours, rows[..., None])[..., 0], axis=1)


_PARTS = Parts(_read, _add, _products, scan_tensorflow)
_backward = tf.function(functools.partial(backward, parts=_PARTS), jit_compile=True)


@tf.custom_gradient
def convolve(*inputs: Tensor) -> tuple[Tensor, Any]:
    """(B * H_out * W_out, filters) of maps, y, x, mask and kernel."""
    return forward(inputs, _PARTS), lambda gradient: _backward(inputs, gradient)
