"""Arithmetic of boxes: overlap, deltas to and from anchors, corners and centres."""

import math
from typing import Any

from keras import ops

Tensor = Any

# Largest |log| of a size ratio that decoding follows: an anchor grows or shrinks 62.5 times at
# most, so an untrained or diverging model gives large boxes instead of infinite ones.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def pairwise_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(B, A, M) intersection over union of (A, 4) or (B, A, 4) with (B, M, 4)."""
    anchors = ops.expand_dims(anchors if len(anchors.shape) == 3 else anchors[None], 2)
    boxes = boxes[:, None]
    # One coordinate at a time: a last axis of two would cost a strided pass over B x A x M.
    overlap_x = ops.minimum(anchors[..., 2], boxes[..., 2]) - ops.maximum(
        anchors[..., 0], boxes[..., 0]
    )
    overlap_y = ops.minimum(anchors[..., 3], boxes[..., 3]) - ops.maximum(
        anchors[..., 1], boxes[..., 1]
    )
    intersection = ops.maximum(overlap_x, 0.0) * ops.maximum(overlap_y, 0.0)
    anchor_area = (anchors[..., 2] - anchors[..., 0]) * (anchors[..., 3] - anchors[..., 1])
    box_area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return intersection / ops.maximum(anchor_area + box_area - intersection, 1e-6)


def encode_boxes(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of `decode_boxes`: deltas from anchors to boxes.

    Args:
        anchors: (A, 4) or (B, A, 4) xyxy in pixels; sides of less than a thousandth count as one.
        boxes: (B, A, 4) xyxy in pixels; sides as for anchors.

    Returns:
        (B, A, 4) float32, finite for any finite boxes.
    """
    anchor_size = ops.maximum(anchors[..., 2:] - anchors[..., :2], 1e-3)
    size = ops.maximum(boxes[..., 2:] - boxes[..., :2], 1e-3)
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2.0
    return ops.concatenate([shift / anchor_size, ops.log(size / anchor_size)], axis=-1)


def decode_boxes(
    anchors: Tensor,
    deltas: Tensor,
    height: int | Tensor | None = None,
    width: int | Tensor | None = None,
) -> Tensor:
    """Boxes from predicted deltas, clipped to the image.

    Args:
        anchors: (A, 4) xyxy in pixels, or (B, A, 4), each image its own.
        deltas: (B, A, 4), any float type.
        height: image height in pixels; None for boxes that are not clipped.
        width: image width in pixels.

    Returns:
        (B, A, 4) float32 xyxy in pixels, 0 <= x <= width and 0 <= y <= height if given.
    """
    deltas = ops.cast(deltas, "float32")
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2.0 + deltas[..., :2] * anchor_size
    half = anchor_size * ops.exp(ops.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) / 2.0
    corners = ops.concatenate([centre - half, centre + half], axis=-1)
    return corners if height is None else clip_boxes(corners, height, width)


def clip_boxes(boxes: Tensor, height: int | Tensor, width: int | Tensor | None) -> Tensor:
    """(..., 4) float32 xyxy with all corners in 0 <= x <= `width`, 0 <= y <= `height`."""
    limit = ops.cast(ops.stack([width, height, width, height]), "float32")
    return ops.minimum(ops.maximum(boxes, 0.0), limit)


def smooth_l1(error: Tensor, beta: float | Tensor) -> Tensor:
    """Sum over the last axis of `e^2 / (2 beta)` below `beta`, `|e| - beta / 2` above; 0: L1."""
    size = ops.abs(error)
    # Of the two branches the unused one must be finite, too.
    square = 0.5 * ops.square(size) / ops.maximum(beta, 1e-6)
    return ops.sum(ops.where(size < beta, square, size - 0.5 * beta), axis=-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalized intersection over union (Rezatofighi et al., 2019) of xyxy boxes.

    Args:
        boxes: (..., 4) predicted.
        targets: (..., 4).

    Returns:
        (...) in 0..2, finite for boxes without area.
    """
    low = ops.maximum(boxes[..., :2], targets[..., :2])
    high = ops.minimum(boxes[..., 2:], targets[..., 2:])
    intersection = _area(low, high)
    union = _area(boxes[..., :2], boxes[..., 2:]) + _area(targets[..., :2], targets[..., 2:])
    union = ops.maximum(union - intersection, 1e-6)
    hull = _area(
        ops.minimum(boxes[..., :2], targets[..., :2]), ops.maximum(boxes[..., 2:], targets[..., 2:])
    )
    hull = ops.maximum(hull, 1e-6)
    return 1.0 - intersection / union + (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    side = ops.maximum(high - low, 0.0)
    return side[..., 0] * side[..., 1]


def centre_to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height to x1, y1, x2, y2."""
    half = boxes[..., 2:] / 2.0
    return ops.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def corners_to_centre(boxes: Tensor) -> Tensor:
    """(..., 4) x1, y1, x2, y2 to centre x, centre y, width, height."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([(first + last) / 2.0, last - first], axis=-1)
