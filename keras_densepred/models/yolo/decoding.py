"""From YOLOv3's logits to boxes and scores, as Darknet decodes them (`get_yolo_box`).

With s = `scale_xy`: centre = (cell + s sigmoid(x) - (s - 1) / 2) / cells,
size = anchor e^w / image.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

Tensor = Any

# A box is 1 / 403 to 403 times its anchor: a diverging model gives large boxes, no infinite ones.
MAX_LOG_SIZE = 6.0


def cell_grid(rows: int | Tensor, columns: int | Tensor) -> Tensor:
    """Column and row of each cell: (rows * columns, 2) float32, row by row."""
    y, x = ops.meshgrid(
        ops.arange(rows, dtype="int32"), ops.arange(columns, dtype="int32"), indexing="ij"
    )
    return ops.cast(ops.reshape(ops.stack([x, y], axis=-1), (-1, 2)), "float32")


def size_pair(height: int | Tensor, width: int | Tensor) -> Tensor:
    """(width, height) as a float32 tensor (2,)."""
    return ops.cast(ops.stack([width, height]), "float32")


def size_factor(logits: Tensor) -> Tensor:
    """Size over anchor: e^logit, kept in bounds."""
    return ops.exp(ops.clip(logits, -MAX_LOG_SIZE, MAX_LOG_SIZE))


def decode_boxes(
    logits: Tensor,
    cells: Tensor,
    anchors: Sequence[tuple[float, float]],
    scale_xy: float,
    grid_size: Tensor,
    image_size: Tensor,
) -> Tensor:
    """Boxes in shares of the image, not clipped to it.

    Args:
        logits: (..., N, A, 4 or more) x, y, w, h of A anchors in N cells, float32.
        cells: (..., N, 2) column and row of the cells, float32.
        anchors: A widths and heights in pixels.
        scale_xy: s above.
        grid_size: (2,) columns and rows of the level.
        image_size: (2,) width and height in pixels.

    Returns:
        (..., N, A, 4) centre x, centre y, width, height.
    """
    shape = ops.convert_to_tensor(anchors, "float32")
    reach = scale_xy * ops.sigmoid(logits[..., :2]) - (scale_xy - 1.0) / 2.0
    centre = (cells[..., None, :] + reach) / grid_size
    size = shape * size_factor(logits[..., 2:4]) / image_size
    return ops.concatenate([centre, size], axis=-1)


def class_scores(logits: Tensor) -> Tensor:
    """Objectness times class probability: (..., 5 + C) logits -> (..., C)."""
    return ops.sigmoid(logits[..., 4:5]) * ops.sigmoid(logits[..., 5:])
