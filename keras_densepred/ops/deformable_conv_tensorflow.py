"""Deformable convolution for TensorFlow: a row of the table holds all four neighbours.

Imported on the TensorFlow backend only; `deformable_conv.py` says what is computed. One gather and
one scatter of rows four times as wide take the place of four each, for a table of four times the
map.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_densepred.ops.deformable_conv import Index, Parts, backward, forward
from keras_densepred.ops.loops import scan_tensorflow

Tensor = Any


def _steps(shape: tuple) -> tuple[Any, ...]:
    """Rows from an upper left neighbour to each of the four."""
    _, _, width, groups, _ = shape
    return 0, groups, width * groups, (width + 1) * groups


def _table(shape: tuple, bordered: Tensor) -> Tensor:
    """(N, 4 C): what lies around the end belongs to no sample."""
    rows = tf.reshape(bordered, (-1, shape[-1]))
    return tf.concat([tf.roll(rows, -step, 0) for step in _steps(shape)], axis=1)


def _maps(shape: tuple, total: Tensor) -> Tensor:
    parts = tf.split(total, 4, axis=1)
    shifted = [tf.roll(part, step, 0) for part, step in zip(parts, _steps(shape), strict=True)]
    return tf.reshape(tf.add_n(shifted), shape)


def _neighbours(table: Tensor, index: Index) -> Tensor:
    """(M, 4, C)."""
    return tf.reshape(tf.gather(table, index[0]), (-1, 4, table.shape[1] // 4))


def _read(table: Tensor, index: Index, shares: Sequence[Tensor]) -> Tensor:
    return tf.reduce_sum(_neighbours(table, index) * tf.stack(shares, -1)[..., None], axis=1)


def _add(_: tuple, total: Tensor, index: Index, shares: Sequence[Tensor], rows: Tensor) -> Tensor:
    updates = tf.concat([share[:, None] * rows for share in shares], axis=1)
    return tf.tensor_scatter_nd_add(total, index[0][:, None], updates)


def _products(_: tuple, table: Tensor, index: Index, rows: Tensor) -> list[Tensor]:
    return tf.unstack(tf.reduce_sum(_neighbours(table, index) * rows[:, None], axis=2), 4, axis=1)


_PARTS = Parts(_table, _read, _add, _products, _maps, scan_tensorflow)


@tf.custom_gradient
def convolve(*inputs: Tensor) -> tuple[Tensor, Any]:
    """(B * H_out * W_out, filters) of maps, y, x, mask and kernel."""
    return forward(inputs, _PARTS), lambda gradient: backward(inputs, gradient, _PARTS)
