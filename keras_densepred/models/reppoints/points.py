"""From sets of points to boxes (RepPoints, section 3.2)."""

from typing import Any

from keras import ops

Tensor = Any

NUM_POINTS = 9
TRANSFORMS = ("moment", "minmax", "partial_minmax")
_PARTIAL = 4  # points that `partial_minmax` reads
_TRANSFER_GRADIENT = 0.01


def points_to_boxes(points: Tensor, transform: str, transfer: Tensor) -> Tensor:
    """The box of each set of points.

    Args:
        points: (..., 18) float32: y0, x0, y1, x1 ... y8, x8.
        transform: `"moment"`: mean, and for half of the sides standard deviation (divided by 8)
            times a learned factor; `"minmax"`: smallest and largest of all points;
            `"partial_minmax"`: of the first four.
        transfer: (2,) float32, logarithm of the factors of width and height, for `"moment"`. It
            takes a hundredth of the gradient.

    Returns:
        (..., 4) float32 xyxy in the unit of the points. Where all points are one, the gradient of
        the deviation is 0.
    """
    points = ops.reshape(points, (*ops.shape(points)[:-1], NUM_POINTS, 2))
    y, x = points[..., 0], points[..., 1]
    if transform == "moment":
        transfer = _TRANSFER_GRADIENT * transfer + (1 - _TRANSFER_GRADIENT) * ops.stop_gradient(
            transfer
        )
        factor = ops.exp(transfer)
        centre_x, centre_y = ops.mean(x, axis=-1), ops.mean(y, axis=-1)
        half_width, half_height = _deviation(x) * factor[0], _deviation(y) * factor[1]
        corners = (
            *(centre_x - half_width, centre_y - half_height),
            *(centre_x + half_width, centre_y + half_height),
        )
    else:
        if transform == "partial_minmax":
            y, x = y[..., :_PARTIAL], x[..., :_PARTIAL]
        corners = (ops.min(x, -1), ops.min(y, -1), ops.max(x, -1), ops.max(y, -1))
    return ops.stack(corners, axis=-1)


def _deviation(values: Tensor) -> Tensor:
    """Unbiased, along the last axis."""
    mean = ops.mean(values, axis=-1, keepdims=True)
    variance = ops.sum(ops.square(values - mean), axis=-1) / (NUM_POINTS - 1)
    # A square root at 0 has no finite gradient, not even where the result is not used.
    spread = variance > 0.0
    return ops.where(spread, ops.sqrt(ops.where(spread, variance, 1.0)), 0.0)
