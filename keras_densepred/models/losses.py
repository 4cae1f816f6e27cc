"""RetinaNet's two losses, summed as the paper sums them, and cross-entropy of semantic labels."""

from typing import Any

import keras
from keras import ops

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
class IgnoreCrossentropy(keras.losses.SparseCategoricalCrossentropy):
    """Cross-entropy of logits with integer labels, mean over the labelled pixels of a batch.

    `keras.losses.SparseCategoricalCrossentropy` that cannot be given probabilities: with these its
    gradient fails on PyTorch for maps ("grad_input must be contiguous", keras 3.15.1: it moves the
    class axis and calls `nll_loss`), while logits go through `cross_entropy`, which is right. All
    segmentation models here give logits and train with this loss, the hosts' included.

    Args:
        ignore_label: label of pixels that do not train; a batch of such only has loss 0.
        reduction: as in `keras.losses.Loss`; `"sum_over_batch_size"` is the mean over labelled
            pixels.
        name: name of the loss.
        dtype: as in `keras.losses.Loss`.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        reduction: str = "sum_over_batch_size",
        name: str = "ignore_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(
            from_logits=True,
            ignore_class=ignore_label,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.ignore_label = ignore_label

    def get_config(self) -> dict[str, Any]:
        # Past the host's, whose arguments are fixed here and become more (label smoothing in 3.16).
        return {**keras.losses.Loss.get_config(self), "ignore_label": self.ignore_label}
