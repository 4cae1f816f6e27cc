"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", equation 3), sampling and sum."""

from collections.abc import Sequence
from typing import Any

from keras import ops

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
    batch, tokens, heads, channels = ops.shape(values)
    queries = ops.shape(locations)[1]
    table = ops.reshape(ops.cast(values, "float32"), (-1, channels))
    locations, weights = ops.cast(locations, "float32"), ops.cast(weights, "float32")
    # Rows of the table that hold the first token of each (image, head).
    image = ops.reshape(ops.arange(batch, dtype="int32") * (tokens * heads), (-1, 1, 1, 1))
    first = image + ops.reshape(ops.arange(heads, dtype="int32"), (1, 1, heads, 1))
    total: Tensor = 0.0
    for level, (height, width) in enumerate(shapes):
        x = locations[:, :, :, level, :, 0] * ops.cast(width, "float32") - 0.5
        y = locations[:, :, :, level, :, 1] * ops.cast(height, "float32") - 0.5
        for row, row_share in _neighbours(y, height):
            for column, column_share in _neighbours(x, width):
                index = first + (row * width + column) * heads
                share = weights[:, :, :, level] * row_share * column_share
                rows = ops.take(table, ops.reshape(index, (-1,)), axis=0)
                rows = ops.reshape(rows, (batch, queries, heads, -1, channels))
                total = total + ops.sum(share[..., None] * rows, axis=3)
        first = first + height * width * heads
    total = ops.reshape(total, (batch, queries, heads * channels))
    return ops.cast(total, values.dtype)


def _neighbours(position: Tensor, size: Any) -> list[tuple[Tensor, Tensor]]:
    """Along one axis: the two pixels a position lies between, and the share of each.

    Args:
        position: float32, integers are pixel centres.
        size: pixels of the axis.

    Returns:
        Twice the pixel, int32, 0 <= pixel < size, and its share, 0 where it had to be moved there.
    """
    last = ops.cast(size, "float32") - 1.0
    # Beyond one pixel outside nothing is sampled; what large numbers would do as int32 is open.
    position = ops.clip(position, -1.0, last + 1.0)
    lower = ops.stop_gradient(ops.floor(position))
    upper_share = position - lower
    pairs = []
    for pixel, share in ((lower, 1.0 - upper_share), (lower + 1.0, upper_share)):
        inside = ops.logical_and(pixel >= 0.0, pixel <= last)
        moved = ops.cast(ops.clip(pixel, 0.0, last), "int32")
        pairs.append((moved, ops.where(inside, share, 0.0)))
    return pairs


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
