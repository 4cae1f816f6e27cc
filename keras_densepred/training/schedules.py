"""Learning-rate schedules: mmcv's linear warm-up followed by steps, a cosine or a line."""

import math
from collections.abc import Sequence
from typing import Any

import keras


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


class _WarmupFall(keras.optimizers.schedules.LearningRateSchedule):
    """A warm-up times a fall to `floor` at `total_steps`; arguments as those of `WarmupCosine`."""

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
        if total_steps <= (begin := self.begin(warmup_steps)):
            raise ValueError(f"total_steps must exceed {begin}; got {total_steps}.")
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.floor = floor
        self.warmup_factor = warmup_factor

    def begin(self, warmup_steps: int) -> int:
        """The step at which the fall begins."""
        return warmup_steps

    def height(self, done: Any) -> Any:
        """What is left, from 1 down to 0, when a share of the fall is done, 0..1."""
        raise NotImplementedError

    def __call__(self, step: Any) -> Any:
        """Returns the rate, a float32 scalar tensor, at optimizer step `step` (0 is the first)."""
        step = keras.ops.cast(step, "float32")
        begin = self.begin(self.warmup_steps)
        done = keras.ops.clip((step - begin) / float(self.total_steps - begin), 0.0, 1.0)
        rate = self.floor + (self.learning_rate - self.floor) * self.height(done)
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


@keras.saving.register_keras_serializable(package="keras_densepred")
class WarmupCosine(_WarmupFall):
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

    def height(self, done: Any) -> Any:
        """Half a cosine."""
        return 0.5 * (1.0 + keras.ops.cos(math.pi * done))


@keras.saving.register_keras_serializable(package="keras_densepred")
class WarmupLinear(_WarmupFall):
    """A line from the first step down to `floor` at `total_steps`, times a linear warm-up.

    CEDNet on ADE20K: `WarmupLinear(1e-4, 1500, 160_000, warmup_factor=1e-6)` (mmcv's "poly" of
    power 1, whose warm-up scales the falling rate).

    Args:
        learning_rate: rate at the top of the line, which starts at step 0.
        warmup_steps: optimizer steps of the warm-up; 0 for none.
        total_steps: optimizer step at which `floor` is reached.
        floor: lowest rate.
        warmup_factor: the warm-up starts at this share of the rate.

    Raises:
        ValueError: if `warmup_steps` is negative or `total_steps` is not positive.
    """

    def begin(self, warmup_steps: int) -> int:
        """The first step, whatever the warm-up."""
        return 0

    def height(self, done: Any) -> Any:
        """A line."""
        return 1.0 - done


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative; got {warmup_steps}.")
