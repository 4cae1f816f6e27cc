"""Dynamic R-CNN: training that becomes stricter as proposals become better.

Zhang et al., "Dynamic R-CNN: Towards High Quality Object Detection via Dynamic Training" (ECCV
2020), sections 4.1 and 4.2, with the constants of its section 5.
"""

from typing import Any

import keras
from keras import ops

from keras_densepred.ops.rows import top_k
from keras_densepred.runtime.replicas import replica_count, sum_over_replicas

Tensor = Any

INITIAL_IOU = 0.4
INITIAL_BETA = 1.0
IOU_RANK = 75  # K_I, of the proposals of an image
BETA_RANK = 10  # K_beta, of the positive regions of an image
EVERY = 100  # C, steps between changes


@keras.saving.register_keras_serializable(package="keras_densepred")
class DynamicTraining(keras.layers.Layer):
    """Overlap of positive regions and beta of the smooth L1 loss, as statistics of training.

    Every 100 steps the overlap becomes the mean of what the 75th best proposal of an image had in
    these steps (at least 0.4), and beta the median of the 10th smallest error an image of positive
    regions' centres (at most 1).

    The present values are the weights `iou` and `beta`.
    """

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.iou = self._state("iou", (), INITIAL_IOU)
        self.beta = self._state("beta", (), INITIAL_BETA)
        self.ious = self._state("ious", (EVERY,), INITIAL_IOU)
        self.betas = self._state("betas", (EVERY,), INITIAL_BETA)
        self.step = self._state("step", (), 0.0)
        self.built = True

    def _state(self, name: str, shape: tuple[int, ...], value: float) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            trainable=False,
            aggregation="mean",  # the same on all replicas
        )

    def update(self, overlaps: Tensor, errors: Tensor, positive: Tensor) -> None:
        """Takes note of one training step.

        Args:
            overlaps: (B, P) best overlap of each proposal with an object.
            errors: (B, R, 4) box targets of the regions, divided by their standard deviations.
            positive: (B, R) bool, regions that have such.
        """
        rank = min(IOU_RANK, overlaps.shape[1])
        overlap = ops.mean(top_k(overlaps, rank)[0][:, -1])
        shift = ops.mean(ops.abs(errors[..., :2]), axis=-1)
        ascending = ops.sort(ops.reshape(ops.where(positive, shift, float("inf")), (-1,)))
        count = ops.sum(ops.cast(positive, "int32"))
        wanted = ops.minimum(count, BETA_RANK * ops.shape(positive)[0])
        beta = ops.take(ascending, ops.maximum(wanted - 1, 0))
        # Nothing to learn from: the value stays as it is.
        beta = ops.where(count > 0, beta, ops.convert_to_tensor(self.beta))
        overlap, beta = (
            sum_over_replicas(ops.stop_gradient(x)) / replica_count() for x in (overlap, beta)
        )
        slot = ops.arange(EVERY, dtype="float32") == self.step % EVERY
        self.ious.assign(ops.where(slot, overlap, ops.convert_to_tensor(self.ious)))
        self.betas.assign(ops.where(slot, beta, ops.convert_to_tensor(self.betas)))
        self.step.assign(self.step + 1.0)
        is_time = self.step % EVERY == 0.0
        mean = ops.maximum(ops.mean(self.ious), INITIAL_IOU)
        middle = ops.mean(ops.sort(self.betas)[EVERY // 2 - 1 : EVERY // 2 + 1])
        self.iou.assign(ops.where(is_time, mean, ops.convert_to_tensor(self.iou)))
        # Where most regions are objects' own boxes, without any error, beta stays as it is.
        is_time = ops.logical_and(is_time, middle > 0.0)
        self.beta.assign(
            ops.where(is_time, ops.minimum(middle, INITIAL_BETA), ops.convert_to_tensor(self.beta))
        )
