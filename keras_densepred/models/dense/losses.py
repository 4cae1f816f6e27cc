"""What a dense detector learns: qualities as class scores, and distances as distributions.

Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense
Object Detection" (NeurIPS 2020), section 3.2; Zhang et al., "VarifocalNet: An IoU-aware Dense
Object Detector" (CVPR 2021), equation 2.
"""

from typing import Any

from keras import ops

Tensor = Any

CLASS_LOSSES = ("quality_focal", "varifocal")
_VARIFOCAL_ALPHA = 0.75


def quality_focal_loss(logits: Tensor, quality: Tensor, gamma: float) -> Tensor:
    """`|q - p|^gamma` times the cross-entropy of score p and quality q (equation 5 of the former).

    Args:
        logits: (...) of p.
        quality: (...) in 0..1.
        gamma: 2 in the paper; 0 is cross-entropy.

    Returns:
        (...) like `logits`.
    """
    weight = ops.power(ops.abs(quality - ops.sigmoid(logits)), gamma) if gamma else 1.0
    return weight * _cross_entropy(logits, quality)


def varifocal_loss(logits: Tensor, quality: Tensor, gamma: float) -> Tensor:
    """Cross-entropy weighted by q where there is an object, and by `0.75 p^gamma` elsewhere.

    Args:
        logits: (...) of p.
        quality: (...) in 0..1, 0 where there is no object.
        gamma: 2 in the paper.

    Returns:
        (...) like `logits`.
    """
    background = _VARIFOCAL_ALPHA * ops.power(ops.sigmoid(logits), gamma)
    return ops.where(quality > 0.0, quality, background) * _cross_entropy(logits, quality)


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy with the two whole numbers around a distance, by nearness (equation 6).

    Args:
        logits: (..., 4, R + 1) of the distances 0 to R.
        distance: (..., 4) in strides; what is outside of 0..R counts as its end.

    Returns:
        (...): the mean over the four sides.
    """
    last = logits.shape[-1] - 1
    distance = ops.clip(distance, 0.0, float(last))[..., None]
    # 1 at the number itself, 0 from one away on: the two shares without a gather.
    share = ops.relu(1.0 - ops.abs(distance - ops.arange(last + 1, dtype="float32")))
    return -ops.mean(ops.sum(share * ops.log_softmax(logits, axis=-1), axis=-1), axis=-1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return ops.softplus(logits) - target * logits
