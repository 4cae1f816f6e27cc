"""AdamW with per-variable settings, SGD with an L2 penalty, averaged weights."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.training.devices.cluster import current_cluster

# Keras on PyTorch swaps keras.optimizers.AdamW for a class that updates all variables in a few
# `foreach` calls, but only where the class is exactly its own; a plain subclass updates one at a
# time (400 variables on two CPU cores: 510 ms a step against 246). Deriving from the class that
# Keras would have made keeps the fast path (264 ms) and is Keras' own class on JAX and TensorFlow.
_BackendAdamW: Any = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))
_BackendSGD: Any = type(keras.optimizers.SGD.__new__(keras.optimizers.SGD))


class _SoonAveraged:
    """Averages of weights (`use_ema=True`) that are good for evaluation from the first steps on.

    Keras' start at the initial weights, of which 0.99 keeps a tenth after 230 steps: a short run's
    first evaluations would measure those. Step t (from 0) keeps at most (1 + t) / (10 + t), as
    TensorFlow's `tf.train.ExponentialMovingAverage` does with `num_updates`.
    """

    use_ema: bool
    ema_momentum: Any
    iterations: Any

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        if not self.use_ema:
            return
        momentum = self.ema_momentum
        step = keras.ops.cast(self.iterations, "float32")
        try:
            self.ema_momentum = keras.ops.minimum(momentum, (1.0 + step) / (10.0 + step))
            self._average(trainable_variables)
        finally:
            self.ema_momentum = momentum

    def _average(self, trainable_variables: Sequence[Any]) -> None:
        super()._update_model_variables_moving_average(trainable_variables)  # type: ignore[misc]


@keras.saving.register_keras_serializable(package="keras_densepred")
class AdamW(_SoonAveraged, _BackendAdamW):
    """AdamW whose learning rate and weight decay may differ from variable to variable.

    The update of a variable with learning-rate scale s and decay d is Keras' AdamW with
    `learning_rate * s` and weight decay d, so that the decay also follows s, as PyTorch's parameter
    groups do. Averages of weights (`use_ema=True`) have a momentum that grows: step t, from 0 on,
    keeps at most (1 + t) / (10 + t). Everything else is Keras'.

    On PyTorch and CPU that is one call of PyTorch's fused kernel for each pair of scale and decay:
    31M weights take 13 ms a step, where Keras' passes take 258 (two cores, 319 variables).

    Args:
        learning_rate: float or schedule.
        weight_decay: decay of variables without a rule.
        rules: `{variable.path: (learning-rate scale, weight decay)}`; a variable without a rule has
            scale 1 and `weight_decay`. `layer_decay_rules` makes them.
        epsilon: added to the root of the second moment. 1e-8 as in PyTorch, not Keras' 1e-7.
        **kwargs: the other arguments of `keras.optimizers.AdamW`.

    Raises:
        ValueError: on the first update, if a rule names no variable of the model.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        weight_decay: float = 0.01,
        rules: Mapping[str, Sequence[float]] | None = None,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate, weight_decay=weight_decay, epsilon=epsilon, **kwargs
        )
        self._default_decay = weight_decay
        self._rules = {
            path: (float(scale), float(decay)) for path, (scale, decay) in (rules or {}).items()
        }

    @property
    def rules(self) -> dict[str, tuple[float, float]]:
        """`{variable path: (learning-rate scale, weight decay)}`."""
        return dict(self._rules)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the optimizer's variables for `variables`, all trainable ones of the model."""
        if self.built:
            return
        # A rule whose variable is frozen is no mistake, but rules of another model are.
        paths = {variable.path for variable in variables}
        if self._rules and not paths & self._rules.keys():
            raise ValueError(
                f"None of the {len(self._rules)} optimizer rules names a variable of the model: "
                "make them from the model that is trained."
            )
        self._rule_of_index = [
            self._rules.get(variable.path, (1.0, self._default_decay)) for variable in variables
        ]
        super().build(variables)

    def _grouped(self, variables: Sequence[Any]) -> dict[tuple[float, float], list[int]]:
        groups: dict[tuple[float, float], list[int]] = {}
        for position, variable in enumerate(variables):
            scale, decay = self._rule_of_index[self._get_variable_index(variable)]
            decay = decay if self._use_weight_decay(variable) else 0.0
            groups.setdefault((scale, decay), []).append(position)
        return groups

    def _is_fused(self, variables: Sequence[Any]) -> bool:
        if keras.config.backend() != "torch" or self.amsgrad:
            return False
        from keras_densepred.ops.adamw_torch import are_fused

        return are_fused(variables)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        if self._is_fused(variables):
            return  # with the update
        try:
            for (scale, decay), positions in self._grouped(variables).items():
                if decay:
                    self.weight_decay = scale * decay
                    super()._apply_weight_decay([variables[i] for i in positions])
        finally:
            self.weight_decay = self._default_decay

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        if self._is_fused(trainable_variables):
            self._fused_update(grads, trainable_variables, float(learning_rate))
            return
        scales: dict[float, list[int]] = {}
        for (scale, _), positions in self._grouped(trainable_variables).items():
            scales.setdefault(scale, []).extend(positions)
        for scale, positions in scales.items():
            super()._backend_update_step(
                [grads[i] for i in positions],
                [trainable_variables[i] for i in positions],
                learning_rate * scale,
            )

    def _fused_update(
        self, grads: Sequence[Any], variables: Sequence[Any], learning_rate: float
    ) -> None:
        from keras_densepred.ops.adamw_torch import update

        for (scale, decay), positions in self._grouped(variables).items():
            indices = [self._get_variable_index(variables[i]) for i in positions]
            update(
                [variables[i].value for i in positions],
                [grads[i] for i in positions],
                [self._momentums[i].value for i in indices],
                [self._velocities[i].value for i in indices],
                step=self._finished_updates() + 1,
                learning_rate=learning_rate * scale,
                weight_decay=decay,
                beta_1=self.beta_1,
                beta_2=self.beta_2,
                epsilon=self.epsilon,
            )

    def _finished_updates(self) -> int:
        return int(keras.ops.convert_to_numpy(self.iterations))

    def _average(self, trainable_variables: Sequence[Any]) -> None:
        if not self._is_fused(trainable_variables):
            super()._average(trainable_variables)
            return
        from keras_densepred.ops.adamw_torch import average

        pairs = zip(trainable_variables, self._model_variables_moving_average, strict=True)
        kept = [(variable.value, mean.value) for variable, mean in pairs if mean is not None]
        momentum = float(self.ema_momentum) if self._finished_updates() else 0.0
        average([mean for _, mean in kept], [variable for variable, _ in kept], momentum)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        config["rules"] = {path: list(rule) for path, rule in self._rules.items()}
        return config


@keras.saving.register_keras_serializable(package="keras_densepred")
class SGD(_SoonAveraged, _BackendSGD):
    """Keras' SGD, with averages of weights (`use_ema=True`) as `AdamW` has them."""


def momentum_sgd(
    model: keras.Model,
    learning_rate: Any,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    **kwargs: Any,
) -> SGD:
    """SGD with momentum and an L2 penalty on kernels and matrices, as convolutional networks train.

    The papers add `weight_decay * weight` to the gradient; through the momentum this takes
    `learning_rate * weight_decay / (1 - momentum)` off a weight in each step, in the long run.
    Keras decays weights apart from the gradient, so it gets that product. Biases, and scales and
    shifts of norms, are not decayed.

    Args:
        model: the model to train, with the variables that are to be trained.
        learning_rate: float or schedule.
        momentum: share of the last update that the next one keeps, in 0..1, 1 excluded.
        weight_decay: factor of the L2 penalty; 4e-5 in SpineNet and BiCSNet.
        **kwargs: the other arguments of `keras.optimizers.SGD`.

    Returns:
        The optimizer.
    """
    decay = weight_decay / (1.0 - momentum)
    optimizer = SGD(learning_rate, momentum=momentum, weight_decay=decay or None, **kwargs)
    vectors = [v for v in model.trainable_variables if len(v.shape) < 2]
    if decay:
        optimizer.exclude_from_weight_decay(var_list=vectors)
    return optimizer


def copy_trainable(model: keras.Model) -> list[np.ndarray]:
    """Returns the values of the trainable variables, which later steps do not change."""
    # A copy: on PyTorch and TensorFlow the array may be a view of the variable's memory.
    return [value.copy() for value in current_cluster().whole(model.trainable_variables)]


def assign_trainable(model: keras.Model, values: Sequence[np.ndarray]) -> None:
    """Assigns what `copy_trainable` returned."""
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)


def take_averages(model: keras.Model) -> None:
    """Replaces the weights of `model` by the optimizer's moving averages, if it keeps any.

    On JAX Keras (3.15.1) makes a weight and its average one buffer, which `predict` and `fit` then
    donate while the other still needs it ("Array has been deleted"); assigning a copy parts them.
    """
    if model.optimizer.use_ema:
        model.optimizer.finalize_variable_values(model.trainable_variables)
        assign_trainable(model, copy_trainable(model))


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[keras.Model]:
    """Puts the optimizer's moving average of the weights into `model` for the `with` block.

    Without `use_ema=True`, or before the first step, nothing changes. The weights come back bit for
    bit: `keras.callbacks.SwapEMAWeights` swaps by adding and subtracting on TensorFlow, which does
    not. Batch-norm statistics are not averaged (Keras averages trainable variables only).

    Args:
        model: a compiled model; inside a callback on JAX take it from `self.model`, which syncs it.

    Yields:
        `model`.
    """
    optimizer = model.optimizer
    if optimizer is None or not optimizer.built or not optimizer.use_ema:
        yield model
        return
    if int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0:
        yield model
        return
    raw = copy_trainable(model)
    take_averages(model)
    try:
        yield model
    finally:
        assign_trainable(model, raw)


def current_learning_rate(model: keras.Model) -> float:
    """Returns the rate that the optimizer of `model` uses for its next step."""
    optimizer = model.optimizer
    # `optimizer.learning_rate` computes with variables that lie on all processes' devices, which a
    # process must not do alone; there is no public name for the schedule (keras 3.15.1).
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(keras.ops.convert_to_numpy(optimizer._iterations))
    return float(keras.ops.convert_to_numpy(rate))
