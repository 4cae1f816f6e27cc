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
