"""Values of maps at points: bilinear, and the nearest pixel's of label maps."""

from typing import Any

from keras import ops

from keras_densepred.runtime.replicas import on_own_rows

Tensor = Any


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps, zero outside of them ("PointRend", section 3.1).

    A point (x, y) lies between pixel centres: 0 is the left or upper edge of the map, 1 the right
    or lower one, so the centre of column j is at (j + 0.5) / width. Each neighbour outside counts
    as zero.

    Args:
        maps: (B, h, w, C), any type.
        points: (B, P, 2) float32 x, y; they take no gradient.

    Returns:
        (B, P, C) float32.
    """
    return on_own_rows(_sample_points, maps, ops.stop_gradient(points))


def _sample_points(maps: Tensor, points: Tensor) -> Tensor:
    batch, height, width, channels = ops.shape(maps)
    table = ops.reshape(maps, (-1, channels))
    first = ops.arange(batch, dtype="int32")[:, None] * (height * width)
    rows = _neighbours(points[..., 1], height)
    columns = _neighbours(points[..., 0], width)
    total: Tensor = 0.0
    for row, row_share in rows:
        for column, column_share in columns:
            values = ops.take(table, first + row * width + column, axis=0)
            total = total + ops.cast(values, "float32") * (row_share * column_share)[..., None]
    return total


def _neighbours(position: Tensor, size: Any) -> list[tuple[Tensor, Tensor]]:
    """Along one axis: twice a pixel's number, and its share, 0 where there is no such pixel."""
    last = ops.cast(size, "float32") - 1.0
    position = ops.clip(position * (last + 1.0) - 0.5, -1.0, last + 1.0)
    lower = ops.floor(position)
    pairs = []
    for pixel, share in ((lower, lower + 1.0 - position), (lower + 1.0, position - lower)):
        inside = ops.logical_and(pixel >= 0.0, pixel <= last)
        number = ops.cast(ops.clip(pixel, 0.0, last), "int32")
        pairs.append((number, ops.where(inside, share, 0.0)))
    return pairs


def labels_at_points(labels: Tensor, points: Tensor) -> Tensor:
    """The label of the pixel that each point lies in.

    Args:
        labels: (B, H, W) integers.
        points: (B, P, 2) float32 x, y in 0..1 from edge to edge.

    Returns:
        (B, P) int32.
    """
    return on_own_rows(_labels_at_points, labels, points)


def _labels_at_points(labels: Tensor, points: Tensor) -> Tensor:
    batch, height, width = ops.shape(labels)
    column, row = (
        ops.minimum(ops.cast(points[..., axis] * ops.cast(size, "float32"), "int32"), size - 1)
        for axis, size in ((0, width), (1, height))
    )
    first = ops.arange(batch, dtype="int32")[:, None] * (height * width)
    flat = ops.cast(ops.reshape(labels, (-1,)), "int32")
    return ops.take(flat, first + row * width + column)
