"""Masks that span their box: pasted onto an image, and cropped to a region."""

from typing import Any

from keras import ops

Tensor = Any


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Resizes each mask to its box, bilinear, on a canvas of the image's size.

    A pixel's centre is at +0.5; the mask spans its box, outside of which the result falls to 0
    within half a mask cell, as in Detectron2 and MMDetection. Bilinear resampling of a box is
    separable, so this is two matrix products for each mask, with static shapes; memory is the
    result's.

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
    rows, columns = (ops.arange(side, dtype="float32") + 0.5 for side in (height, width))
    rows = _interpolation(rows, boxes[..., 1], boxes[..., 3], cells)
    columns = _interpolation(columns, boxes[..., 0], boxes[..., 2], cells)
    return ops.matmul(ops.matmul(rows, masks), ops.swapaxes(columns, -1, -2))


def crop_masks(masks: Tensor, boxes: Tensor, regions: Tensor, size: int) -> Tensor:
    """Crops masks to regions: the targets of a mask head.

    Args:
        masks: (..., S, S) float, 1 on the object, each spanning its box.
        boxes: (..., 4) xyxy in pixels, of the masks.
        regions: (..., 4) xyxy in pixels.
        size: cells on a side of the result.

    Returns:
        (..., size, size) float32, bilinear, 0 outside of the boxes.
    """
    masks, boxes, regions = (ops.cast(x, "float32") for x in (masks, boxes, regions))
    cells = masks.shape[-1]
    steps = (ops.arange(size, dtype="float32") + 0.5) / size
    rows, columns = (
        regions[..., axis, None] + steps * (regions[..., axis + 2] - regions[..., axis])[..., None]
        for axis in (1, 0)
    )
    rows = _interpolation(rows, boxes[..., 1], boxes[..., 3], cells)
    columns = _interpolation(columns, boxes[..., 0], boxes[..., 2], cells)
    return ops.matmul(ops.matmul(rows, masks), ops.swapaxes(columns, -1, -2))


def _interpolation(pixel: Tensor, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(..., pixels, cells): how much of each cell a position takes, along one axis."""
    extent = (high - low)[..., None]
    position = (pixel - low[..., None]) / ops.maximum(extent, 1e-6) * cells - 0.5
    distance = ops.abs(position[..., None] - ops.arange(cells, dtype="float32"))
    share = ops.maximum(1.0 - distance, 0.0)
    return ops.where(extent[..., None] > 0.0, share, 0.0)
