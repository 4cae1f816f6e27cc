"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", equation 3): sampling and sum.

The plain form gathers the four pixels around every sample, (B, Q, heads, L * P, C) four times, and
keeps them for its gradients: 1.4 GB for one image of 800 x 1280 px. Here only what is given is
kept; the pixels are gathered again in the backward pass, and summed as they are read:

* PyTorch: `embedding_bag` reads and sums in one operation (`deformable_attention_torch.py`). In an
  ONNX file it is ONNX's `GridSample`, which runtimes have and OpenVINO can read.
* JAX and TensorFlow: a loop over the L * P samples of a query. XLA fuses gathers, shares and sum.
  For an ONNX file TensorFlow writes the loop out.

`tools/timing/deformable_attention.py` times it beside `torch.nn.functional.grid_sample`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_densepred.ops.loops import scan_tensorflow
from keras_densepred.runtime.devices import writes_onnx
from keras_densepred.runtime.replicas import on_own_rows

Tensor = Any


def deformable_attention(
    values: Tensor, shapes: Sequence[tuple[Any, Any]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples, for each query and head, over points of several maps.

    A location (x, y) lies between the pixel centres of its level: 0 is the left or upper edge of
    the map, 1 the right or lower one, so the centre of column j is at (j + 0.5) / width. A pixel
    outside of the map counts as zero; the other weights of the sample stay what they are.

    Args:
        values: (B, N, heads, C), any float type: the pixels of all levels, one level after the
            other, row by row.
        shapes: (height, width) of each of the L levels in pixels; integers, or scalar integer
            tensors where TensorFlow traces unknown sizes. Their areas sum to N.
        locations: (B, Q, heads, L, P, 2) float32, (x, y) of the P points on each level. Locations
            far outside sample zeros, with gradients of zero.
        weights: (B, Q, heads, L, P) float32, of each sample; for attention they sum to 1 over the
            L x P samples of a head.

    Returns:
        (B, Q, heads * C) in the type of `values`, summed in float32. Values, locations and weights
        all take gradients; on a pixel's centre that of the location is the right-hand one.

    Raises:
        ValueError: if the levels of `shapes`, `locations` and `weights` differ in number, or the
            areas do not sum to N.
    """
    _check(values, shapes, locations, weights)
    batch, _, heads, channels = ops.shape(values)
    queries = ops.shape(locations)[1]
    locations, weights = ops.cast(locations, "float32"), ops.cast(weights, "float32")
    float32_values = ops.cast(values, "float32")
    backend = keras.config.backend()
    if backend == "torch":
        outputs = _torch(float32_values, shapes, locations, weights)
    else:
        function = _jax_function() if backend == "jax" else _tensorflow_function()
        table, levels = _with_borders(float32_values, shapes)
        outputs = function(table, locations, weights, levels)
    return ops.cast(ops.reshape(outputs, (batch, queries, heads * channels)), values.dtype)


def _with_borders(values: Tensor, shapes: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    """The pixels of all levels within a border of zeros, so that every sample has four neighbours.

    Args:
        values: (B, N, heads, C).
        shapes: (height, width) of each level.

    Returns:
        (B, R, heads, C), R >= N, and (L, 3) int32: height, width and the first of the rows of each
        level.
    """
    batch, _, heads, channels = ops.shape(values)
    maps, levels, start, first = [], [], 0, 0
    for height, width in shapes:
        area, rows = height * width, (height + 2) * (width + 2)
        level = ops.reshape(values[:, start : start + area], (batch, height, width, -1))
        level = ops.pad(level, ((0, 0), (1, 1), (1, 1), (0, 0)))
        maps.append(ops.reshape(level, (batch, rows, heads, channels)))
        levels.append(ops.stack([ops.cast(x, "int32") for x in (height, width, first)]))
        start, first = start + area, first + rows
    return ops.concatenate(maps, axis=1), ops.stack(levels)


def sample_points(locations: Tensor, levels: Tensor, rows: Any) -> tuple[Tensor, ...]:
    """Where each sample lies in the table of rows (B * R * heads, C).

    Args:
        locations: (B, Q, heads, L, P, 2).
        levels: (L, 3) from `_with_borders`.
        rows: R.

    Returns:
        The row of the upper left neighbour (B, Q, heads, L, P) int32; the rows from there to the
        lower neighbour (L, 1) int32; how far right and down of it the sample lies, (..., 2) float32
        from 0 to 1; and by how much that changes with the location, (..., 2): 0 where all
        neighbours are zeros.
    """
    batch, _, heads = ops.shape(locations)[:3]
    sides = ops.flip(levels[:, None, :2], axis=-1)  # (L, 1, 2), width first
    first, stride = levels[:, None, 2], levels[:, None, 1] + 2
    size = ops.cast(sides, "float32")
    position = locations * size - 0.5
    inside = ops.maximum(ops.minimum(position, size), -1.0)
    slope = ops.where(position == inside, size, 0.0)
    lower = ops.minimum(ops.floor(inside), size - 1.0)
    # The limits on integers are for NaN, which are any integer.
    cell = ops.maximum(ops.minimum(ops.cast(lower, "int32") + 1, sides), 0)
    row = first + cell[..., 1] * stride + cell[..., 0]
    image = ops.reshape(ops.arange(batch, dtype="int32") * rows, (-1, 1, 1, 1, 1))
    head = ops.reshape(ops.arange(heads, dtype="int32"), (-1, 1, 1))
    return (image + row) * heads + head, stride * heads, inside - lower, slope


def neighbour_shares(offset_x: Tensor, offset_y: Tensor, weight: Tensor) -> list[Tensor]:
    """What the upper left, upper right, lower left and lower right neighbour count for."""
    lower = weight * offset_y
    upper = weight - lower
    upper_right, lower_right = upper * offset_x, lower * offset_x
    return [upper - upper_right, upper_right, lower - lower_right, lower_right]


def share_gradients(
    offset_x: Tensor, offset_y: Tensor, weight: Tensor, gradients: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the offsets and the weight from those of the four `neighbour_shares`."""
    upper_left, upper_right, lower_left, lower_right = gradients
    upper = upper_left + offset_x * (upper_right - upper_left)
    lower = lower_left + offset_x * (lower_right - lower_left)
    upper_slope, lower_slope = upper_right - upper_left, lower_right - lower_left
    return (
        weight * (upper_slope + offset_y * (lower_slope - upper_slope)),
        weight * (lower - upper),
        upper + offset_y * (lower - upper),
    )


# Of a backend: the rows of a table at an index; a table with rows added at an index; and a loop
# `(function, carry, xs, number of ys) -> (carry, ys)`, otherwise as `keras.ops.scan`.
Parts = tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Any]]


def _samples_first(locations: Tensor, weights: Tensor, levels: Tensor, rows: Any) -> tuple:
    """Of each of the L * P samples: row, stride, offsets and weight, (L * P, B * Q * heads)."""
    row, stride, offset, slope = sample_points(locations, levels, rows)
    num = weights.shape[3] * weights.shape[4]
    row, offset_x, offset_y, weight = (
        ops.transpose(ops.reshape(x, (-1, num)))
        for x in (row, offset[..., 0], offset[..., 1], weights)
    )
    stride = ops.reshape(ops.repeat(stride, weights.shape[4], axis=1), (-1,))
    return (row, stride, offset_x, offset_y, weight), slope


def neighbour_rows(row: Tensor, stride: Tensor, heads: int) -> tuple[Tensor, ...]:
    return row, row + heads, row + stride, row + stride + heads


def _forward(inputs: tuple[Tensor, ...], parts: Parts) -> Tensor:
    """(B * Q * heads, C) float32, of table, locations, weights and levels."""
    table, locations, weights, levels = inputs
    take, _, scan = parts
    _, rows, heads, channels = ops.shape(table)
    table = ops.reshape(table, (-1, channels))
    samples, _ = _samples_first(locations, weights, levels, rows)

    def add(total: Tensor, sample: Sequence[Tensor]) -> tuple[Tensor, tuple]:
        row, stride, offset_x, offset_y, weight = sample
        for index, share in zip(
            neighbour_rows(row, stride, heads),
            neighbour_shares(offset_x, offset_y, weight),
            strict=True,
        ):
            total = total + share[:, None] * take(table, index)
        return total, ()

    total = ops.zeros((ops.shape(samples[0])[1], channels), "float32")
    return scan(add, total, samples, 0)[0]


def _backward(
    inputs: tuple[Tensor, ...], gradient: Tensor, parts: Parts
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of table, locations and weights from that of the result."""
    table, locations, weights, levels = inputs
    take, add_at, scan = parts
    shape = ops.shape(table)
    _, rows, heads, channels = shape
    table = ops.reshape(table, (-1, channels))
    samples, slope = _samples_first(locations, weights, levels, rows)

    # The upper and the lower neighbours have a sum each: XLA adds to them at once on two CPU cores,
    # for adding rows to one is the work of a single core (TensorFlow: 2.46 s, and 1.72 by two).
    def add(totals: Sequence[Tensor], sample: Sequence[Tensor]) -> tuple[tuple, tuple]:
        row, stride, offset_x, offset_y, weight = sample
        totals = list(totals)
        products = []
        for number, (index, share) in enumerate(
            zip(
                neighbour_rows(row, stride, heads),
                neighbour_shares(offset_x, offset_y, weight),
                strict=True,
            )
        ):
            products.append(ops.sum(take(table, index) * gradient, axis=1))
            half = number // 2
            totals[half] = add_at(totals[half], index, share[:, None] * gradient)
        return tuple(totals), share_gradients(offset_x, offset_y, weight, products)

    zeros = ops.zeros_like(table)
    (upper, lower), gradients = scan(add, (zeros, zeros), samples, 3)
    of_x, of_y, of_weight = (ops.reshape(ops.transpose(x), ops.shape(weights)) for x in gradients)
    total = ops.reshape(upper + lower, shape)
    return total, ops.stack([of_x, of_y], axis=-1) * slope, of_weight


@functools.cache
def _jax_function() -> Any:
    import jax

    # `keras.ops.take` would compare every index with the bounds.
    parts = (
        lambda table, index: table.at[index].get(mode="promise_in_bounds"),
        lambda table, index, rows: table.at[index].add(rows, mode="promise_in_bounds"),
        lambda function, carry, xs, _: jax.lax.scan(function, carry, xs),
    )

    @jax.custom_vjp
    def attend(*inputs: Tensor) -> Tensor:
        return _forward(inputs, parts)

    attend.defvjp(
        lambda *inputs: (attend(*inputs), inputs),
        lambda inputs, gradient: (*_backward(inputs, gradient, parts), None),
    )

    def attend_rows(table: Tensor, locations: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
        def of_images(*inputs: Tensor) -> Tensor:
            outputs = attend(*inputs, levels)
            return ops.reshape(outputs, (*ops.shape(inputs[1])[:2], -1))

        return on_own_rows(of_images, table, locations, weights)

    return attend_rows


@functools.cache
def _tensorflow_function() -> Any:
    import tensorflow as tf

    parts = (
        tf.gather,
        lambda table, index, rows: tf.tensor_scatter_nd_add(table, index[:, None], rows),
        scan_tensorflow,
    )

    @tf.custom_gradient
    def attend(*inputs: Tensor) -> tuple[Tensor, Any]:
        def backward(gradient: Tensor) -> tuple:
            return (*_backward(inputs, gradient, parts), None)

        return _forward(inputs, parts), backward

    return attend


def _torch(values: Tensor, shapes: Sequence[Any], locations: Tensor, weights: Tensor) -> Tensor:
    if values.device.type == "meta":  # shapes are being inferred
        return values.new_empty((*locations.shape[:3], values.shape[3]))
    from keras_densepred.ops.deformable_attention_torch import Attend, by_grid_sample

    if writes_onnx():
        return by_grid_sample(values, shapes, locations, weights)
    table, levels = _with_borders(values, shapes)
    return Attend.apply(table, locations, weights, levels, shapes)


def _check(values: Tensor, shapes: Sequence[Any], locations: Tensor, weights: Tensor) -> None:
    levels = (len(shapes), locations.shape[3], weights.shape[3])
    if len(set(levels)) > 1:
        raise ValueError(
            "`shapes`, `locations` and `weights` must be of equally many levels, got "
            f"{levels[0]}, {levels[1]} and {levels[2]}."
        )
    sides = [side for shape in shapes for side in shape]
    tokens = values.shape[1]
    if isinstance(tokens, int) and all(isinstance(side, int) for side in sides):
        area = sum(height * width for height, width in shapes)
        if area != tokens:
            raise ValueError(
                f"`values` has {tokens} tokens, and the areas of `shapes` sum to {area}: give the "
                "height and width of every level."
            )
