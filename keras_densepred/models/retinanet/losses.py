"""RetinaNet's two losses, summed as the paper sums them, and cross-entropy of semantic labels."""

from typing import Any

import keras
from keras import ops

from keras_densepred.ops.boxes import MAX_LOG_RATIO, giou_loss

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_densepred")
class SigmoidFocalLoss(keras.losses.Loss):
    """Alpha-balanced focal loss on logits ("Focal Loss for Dense Object Detection", equation 5).

    Summed over the classes of an anchor. `keras.losses.BinaryFocalCrossentropy` takes their mean,
    which makes the loss num_classes times smaller than the paper's beside the box loss, and
    clips probabilities at 1e-7, where the gradient of a confident mistake is 0.

    Args:
        alpha: weight of the positive class, 1 - alpha of the negative, in [0, 1].
        gamma: focusing exponent, >= 0.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: as in `keras.losses.Loss`.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        reduction: str = "sum",
        name: str = "sigmoid_focal_loss",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.alpha = alpha
        self.gamma = gamma

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each anchor: y_true (..., C) in {0, 1}, y_pred (..., C) logits -> (...)."""
        cross_entropy = ops.softplus(y_pred) - y_true * y_pred
        probability = ops.sigmoid(y_pred)
        miss = y_true + probability - 2.0 * y_true * probability  # 1 - p_t
        balance = 1.0 - self.alpha + (2.0 * self.alpha - 1.0) * y_true
        return ops.sum(balance * ops.power(miss, self.gamma) * cross_entropy, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "gamma": self.gamma}


@keras.saving.register_keras_serializable(package="keras_densepred")
class BoxL1Loss(keras.losses.Loss):
    """Absolute error summed over the four deltas of a box (Keras' losses take their mean).

    Args:
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: as in `keras.losses.Loss`.
    """

    def __init__(self, reduction: str = "sum", name: str = "box_l1_loss", dtype: Any = None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each anchor: y_true and y_pred (..., 4) deltas -> (...)."""
        return ops.sum(ops.abs(y_true - y_pred), axis=-1)


@keras.saving.register_keras_serializable(package="keras_densepred")
class BoxGIoULoss(keras.losses.Loss):
    """1 - generalized IoU of the boxes that two sets of deltas stand for.

    Computed in the frame in which the anchor is a square of side 1 around the origin: overlaps are
    the same in any.

    Args:
        weight: factor of the loss.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: as in `keras.losses.Loss`.
    """

    def __init__(
        self,
        weight: float = 2.0,
        reduction: str = "sum",
        name: str = "box_giou_loss",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.weight = weight

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each anchor: y_true and y_pred (..., 4) deltas -> (...)."""
        return self.weight * giou_loss(_in_anchor(y_pred), _in_anchor(y_true))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight}


def _in_anchor(deltas: Tensor) -> Tensor:
    half = ops.exp(ops.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) / 2.0
    return ops.concatenate([deltas[..., :2] - half, deltas[..., :2] + half], axis=-1)
