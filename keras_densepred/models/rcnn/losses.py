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
