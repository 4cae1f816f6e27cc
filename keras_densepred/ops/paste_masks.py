"""Masks of boxes laid onto their image."""

from typing import Any

from keras import ops

Tensor = Any


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Resizes each mask to its box, bilinear, on a canvas of the image's size.

    A pixel's centre is at +0.5; the mask reaches from edge to edge of its box, outside of which the
    result falls to 0 within half a mask cell. As Detectron2 and MMDetection paste. Bilinear
    resampling of a box is separable, so this is two matrix products for each mask, with static
    shapes; memory is the result's.

    Args:
        masks: (..., S, S) probabilities, float.
        boxes: (..., 4) xyxy in pixels; boxes without area (padding) give nothing.
        height: height of the canvas in pixels.
        width: its width.

    Returns:
        (..., height, width) float32; 0.5 is the usual border of an object.
    """
    masks, boxes = ops.cast(masks, "float32"), ops.cast(boxes, "float32")
    cells = masks.shape[-1]
    rows = _interpolation(boxes[..., 1], boxes[..., 3], height, cells)
    columns = _interpolation(boxes[..., 0], boxes[..., 2], width, cells)
    return ops.matmul(ops.matmul(rows, masks), ops.swapaxes(columns, -1, -2))


def _interpolation(low: Tensor, high: Tensor, length: int, cells: int) -> Tensor:
    """(..., length, cells): how much of each cell a pixel takes, along one axis."""
    extent = (high - low)[..., None]
    pixel = ops.arange(length, dtype="float32") + 0.5
    position = (pixel - low[..., None]) / ops.maximum(extent, 1e-6) * cells - 0.5
    distance = ops.abs(position[..., None] - ops.arange(cells, dtype="float32"))
    share = ops.maximum(1.0 - distance, 0.0)
    return ops.where(extent[..., None] > 0.0, share, 0.0)
