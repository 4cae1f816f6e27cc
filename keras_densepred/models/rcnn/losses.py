"""Losses of boxes and masks in two-stage detectors, each box or mask on its own."""

from typing import Any

from keras import ops

Tensor = Any

BOX_LOSSES = ("l1", "smooth_l1", "giou")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy: (..., C) logits, (...) int32 labels -> (...)."""
    classes = ops.arange(logits.shape[-1], dtype="int32")
    is_label = ops.cast(labels[..., None] == classes, "float32")
    return -ops.sum(is_label * ops.log_softmax(logits, axis=-1), axis=-1)


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits, elementwise."""
    return ops.softplus(logits) - targets * logits


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
