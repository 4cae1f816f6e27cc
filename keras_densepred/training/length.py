"""How long a run is where no flag says it, how often it is evaluated, and what is said of both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_densepred.training.experiments import Plan

EVALUATIONS = 10  # of a run
_STEP_COST = 3  # of an image that is trained, in images that are predicted
_EVALUATION_SHARE = 0.1  # of the cost of training
_SEEN = 2000  # objects of each class, on average, until a network from random weights knows it
_MOST = 5  # times the steps that a recipe takes for few classes
_TAIL = 0.2  # of a run, of which the loss is compared with that before
_STILL_FALLING = 0.05


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """Epochs of a run on few images, which are repeated until the network has seen enough.

    Enough are `steps` steps, and more where there are many classes and few objects in an image:
    until 2,000 objects of each class have been seen on average, but at most five times `steps`.

    Args:
        epochs: passes over the data, at least.
        steps: likewise.
    """

    epochs: int
    steps: int

    def __call__(self, plan: Plan) -> int:
        wanted = self.steps
        if plan.objects:
            for_each = _SEEN * plan.classes * plan.images / (plan.objects * plan.batch_size)
            wanted = max(wanted, min(math.ceil(for_each), _MOST * wanted))
        return max(self.epochs, -(-wanted // plan.steps_per_epoch))

    def __str__(self) -> str:
        return (
            f"at least {self.epochs}, at least {self.steps:,} steps, more for many classes with "
            "few objects"
        )


def objects_of(train: Any, is_shapes: bool) -> int:
    """Objects, or pictures of classes, in a training split; 0 where counting takes long."""
    if is_shapes or not (hasattr(train, "ground_truth") or hasattr(train, "labels")):
        return 0
    return len(train.labels) if hasattr(train, "labels") else train.summary().boxes


def often_enough(plan: Plan) -> int:
    """Epochs between evaluations: ten in a run, or as many as cost a tenth of the training.

    Every epoch where `--patience` waits for them.
    """
    if plan.patience:
        return 1
    affordable = math.ceil(_affordable_steps(plan) / plan.steps_per_epoch)
    return min(plan.epochs, max(1, plan.epochs // EVALUATIONS, affordable))


def steps_of_short_epochs(plan: Plan, steps: int) -> int:
    """Steps of an epoch of which a run of `steps` has ten, or as many as it can afford to evaluate.

    A run of few passes over many images would else be evaluated after each of these only.
    """
    wanted = max(1, steps // EVALUATIONS, _affordable_steps(plan))
    return min(plan.steps_per_epoch, steps, wanted)


def _affordable_steps(plan: Plan) -> int:
    """Steps whose cost is ten times that of an evaluation."""
    return math.ceil(plan.evaluated / (_EVALUATION_SHARE * _STEP_COST * plan.batch_size))


def in_words(settings: Any, left_open: Collection[str], rule: Any, images: int) -> str:
    """A sentence on a run's length, where it is from, and when it is evaluated.

    Args:
        settings: complete.
        left_open: names of settings that no flag gave.
        rule: of the experiment, for the epochs.
        images: of the training split.
    """
    names = [name for name in ("epochs", "steps", "minutes") if name not in left_open]
    if names:
        why = f"by {' and '.join(f'--{name}' for name in names)}"
    else:
        why = f"--experiment {settings.experiment}"
        why += f": {rule}" if isinstance(rule, AtLeast) else ""
    passes = settings.steps_per_epoch * settings.step_size / images
    pieces = "" if 0.8 < passes < 1.25 else f", {passes:.2g} passes over the data"
    steps = "1 step" if settings.steps == 1 else f"{settings.steps:,} steps"
    if settings.epochs == 1:
        return f"{steps} in one epoch{pieces} ({why}); evaluated at the end"
    every = settings.evaluate_every
    often = "each epoch" if every == 1 else f"every {every} epochs"
    return (
        f"{steps} in {settings.epochs} epochs of {settings.steps_per_epoch:,}"
        f"{pieces} ({why}); evaluated after {often}"
    )


def advice(rows: Sequence[Mapping[str, float]]) -> str | None:
    """What the losses of a finished run say about its length; None for nothing.

    Args:
        rows: `MetricsLog.rows`.
    """
    name = "val_loss" if any("val_loss" in row for row in rows) else "loss"
    losses = [row[name] for row in rows if name in row]
    tail = max(1, round(_TAIL * len(losses)))
    if len(losses) < 2 * tail + 1:
        return None
    last, before = (sum(part) / tail for part in (losses[-tail:], losses[-2 * tail : -tail]))
    which = "validation loss" if name == "val_loss" else "loss"
    fall = (before - last) / abs(before) if before else 0.0
    if fall > _STILL_FALLING:
        return (
            f"The {which} still fell by {100 * fall:.0f} % in the last fifth of the run: a longer "
            "one would find more (--extend)."
        )
    if name == "val_loss" and last > (1 + _STILL_FALLING) * min(losses):
        return (
            "The validation loss rose again before the end: more data would help more than more "
            "steps, and --patience keeps the best epoch."
        )
    return None
