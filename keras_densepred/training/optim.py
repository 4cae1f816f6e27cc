"""Learning-rate schedules, AdamW with per-variable settings, SGD, averaged weights.

The schedules are mmcv's linear warm-up followed by steps or a cosine.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np


def _warmed_up(
    step: Any, learning_rate: Any, warmup_steps: int, warmup_factor: float, power: float = 1.0
) -> Any:
    """Scales `learning_rate` from `warmup_factor` to 1 over the first `warmup_steps`."""
    if warmup_steps == 0:
        return learning_rate
    done = keras.ops.minimum(step / float(warmup_steps), 1.0) ** power
    return learning_rate * (warmup_factor + (1.0 - warmup_factor) * done)


@keras.saving.register_keras_serializable(package="keras_densepred")
class WarmupSteps(keras.optimizers.schedules.LearningRateSchedule):
    """Warm-up, then a constant rate multiplied by `drop_factor` at each of `drops`.

    CEDNet on COCO: `WarmupSteps(1e-4, 500, drops=(27 * steps_per_epoch, 33 * steps_per_epoch))`;
    CSPNet's detectors, in Darknet: `WarmupSteps(1e-3, 1000, (400_000, 450_000), warmup_factor=0,
    warmup_power=4)`.

    Args:
        learning_rate: rate after the warm-up and before the first drop.
        warmup_steps: optimizer steps of the warm-up; 0 for none.
        drops: increasing optimizer steps; from each of them on the rate is lower.
        drop_factor: what each drop multiplies the rate by.
        warmup_factor: the warm-up starts at `warmup_factor * learning_rate`.
        warmup_power: the rate rises with this power of the steps done; 1 is linearly.

    Raises:
        ValueError: if `warmup_steps` is negative or `drops` does not increase.
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int = 500,
        drops: Sequence[int] = (),
        drop_factor: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_power: float = 1.0,
    ):
        super().__init__()
        _check_warmup(warmup_steps)
        if list(drops) != sorted(set(drops)):
            raise ValueError(f"drops must increase from one to the next; got {tuple(drops)}.")
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.drops = tuple(int(drop) for drop in drops)
        self.drop_factor = drop_factor
        self.warmup_factor = warmup_factor
        self.warmup_power = warmup_power

    def __call__(self, step: Any) -> Any:
        """Returns the rate, a float32 scalar tensor, at optimizer step `step` (0 is the first)."""
        step = keras.ops.cast(step, "float32")
        rate = keras.ops.full_like(step, self.learning_rate)
        for drop in self.drops:
            rate = keras.ops.where(step >= float(drop), rate * self.drop_factor, rate)
        return _warmed_up(step, rate, self.warmup_steps, self.warmup_factor, self.warmup_power)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "drops": list(self.drops),
            "drop_factor": self.drop_factor,
            "warmup_factor": self.warmup_factor,
            "warmup_power": self.warmup_power,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then half a cosine down to `floor` at `total_steps`, constant from there.

    Args:
        learning_rate: rate at the top of the cosine, which starts where the warm-up ends.
        warmup_steps: optimizer steps of the warm-up; 0 for none.
        total_steps: optimizer step at which `floor` is reached.
        floor: lowest rate.
        warmup_factor: the warm-up starts at `warmup_factor * learning_rate`.

    Raises:
        ValueError: if `warmup_steps` is negative or `total_steps` does not exceed it.
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        floor: float = 0.0,
        warmup_factor: float = 0.001,
    ):
        super().__init__()
        _check_warmup(warmup_steps)
        if total_steps <= warmup_steps:
            raise ValueError(
                f"total_steps must exceed warmup_steps; got {total_steps} and {warmup_steps}."
            )
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.floor = floor
        self.warmup_factor = warmup_factor

    def __call__(self, step: Any) -> Any:
        """Returns the rate, a float32 scalar tensor, at optimizer step `step` (0 is the first)."""
        step = keras.ops.cast(step, "float32")
        done = (step - self.warmup_steps) / float(self.total_steps - self.warmup_steps)
        height = 0.5 * (1.0 + keras.ops.cos(math.pi * keras.ops.clip(done, 0.0, 1.0)))
        rate = self.floor + (self.learning_rate - self.floor) * height
        return _warmed_up(step, rate, self.warmup_steps, self.warmup_factor)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "floor": self.floor,
            "warmup_factor": self.warmup_factor,
        }


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative; got {warmup_steps}.")


# Keras on PyTorch swaps keras.optimizers.AdamW for a class that updates all variables in a few
# `foreach` calls, but only where the class is exactly its own; a plain subclass updates one at a
# time (400 variables on two CPU cores: 510 ms a step against 246). Deriving from the class that
# Keras would have made keeps the fast path (264 ms) and is Keras' own class on JAX and TensorFlow.
_BackendAdamW: Any = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@keras.saving.register_keras_serializable(package="keras_densepred")
class AdamW(_BackendAdamW):
    """AdamW whose learning rate and weight decay may differ from variable to variable.

    The update of a variable with learning-rate scale s and decay d is Keras' AdamW with
    `learning_rate * s` and weight decay d, so that the decay also follows s, as PyTorch's parameter
    groups do. Everything else, the averaging of weights (`use_ema=True`) included, is Keras'.

    Args:
        learning_rate: float or schedule.
        weight_decay: decay of variables without a rule.
        rules: `{variable.path: (learning-rate scale, weight decay)}`; a variable without a rule has
            scale 1 and `weight_decay`. `cednet_rules` makes them.
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
            rule = self._rule_of_index[self._get_variable_index(variable)]
            groups.setdefault(rule, []).append(position)
        return groups

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
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
        scales: dict[float, list[int]] = {}
        for (scale, _), positions in self._grouped(trainable_variables).items():
            scales.setdefault(scale, []).extend(positions)
        for scale, positions in scales.items():
            super()._backend_update_step(
                [grads[i] for i in positions],
                [trainable_variables[i] for i in positions],
                learning_rate * scale,
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        config["rules"] = {path: list(rule) for path, rule in self._rules.items()}
        return config


def momentum_sgd(
    model: keras.Model,
    learning_rate: Any,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    **kwargs: Any,
) -> keras.optimizers.SGD:
    """SGD with momentum and an L2 penalty on kernels and matrices, as convolutional networks train.

    The papers add `weight_decay * weight` to the gradient, where it goes through the momentum and
    so takes `learning_rate * weight_decay / (1 - momentum)` of a weight in each step once that has
    settled. Keras takes its decay off the weight beside the gradient: it is told that product.
    Biases, and scales and shifts of norms, are not decayed.

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
    optimizer = keras.optimizers.SGD(
        learning_rate, momentum=momentum, weight_decay=decay or None, **kwargs
    )
    vectors = [v for v in model.trainable_variables if len(v.shape) < 2]
    if decay:
        optimizer.exclude_from_weight_decay(var_list=vectors)
    return optimizer


def copy_trainable(model: keras.Model) -> list[np.ndarray]:
    """Returns the values of the trainable variables, which later steps do not change."""
    # A copy: on PyTorch and TensorFlow the array may be a view of the variable's memory.
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables]


def assign_trainable(model: keras.Model, values: Sequence[np.ndarray]) -> None:
    """Assigns what `copy_trainable` returned."""
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)


def take_averages(model: keras.Model) -> None:
    """Puts the optimizer's moving averages into `model` for good, if the optimizer keeps any.

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
