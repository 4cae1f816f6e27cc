"""`--minutes N`: how many steps fit into a time, by the speed of the first ones."""

import dataclasses
import pathlib
import time
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_densepred import data
from keras_densepred.faults import SettingsError
from keras_densepred.training.devices.cluster import Cluster
from keras_densepred.training.identity import FILE_NAME, read_settings
from keras_densepred.training.loop.validation_loss import COMPILING, STEP_COST, batches_of_loss
from keras_densepred.training.optim import take_averages

if TYPE_CHECKING:
    from keras_densepred.training.run import Recipe

_OF_THE_LENGTH = ("epochs", "steps_per_epoch", "evaluate_every")
_EVALUATIONS = 10  # of a run, where they take no more than
_SHARE = 0.1  # of the time
_FIRST_STEPS = 3  # of which the first compiles
_MOST_STEPS = 100  # that are measured then
_MEASURING = 0.04  # of the time, for those
_BATCHES = 3  # of an evaluation, of which the first compiles
_SCORING = 1.2  # an evaluation's time, by that of its predictions
_END, _END_SECONDS = 0.02, 8.0  # of the time, and besides, for drawing and saving


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds that a run's parts take.

    Args:
        step: of training.
        evaluation: of the validation split.
        compiling: before the first step and the first prediction.
        compiling_step: the first part of it.
    """

    step: float
    evaluation: float
    compiling: float
    compiling_step: float = 0.0

    def loss_on_validation(self, batches: int, evaluations: int) -> float:
        """What measuring it takes in a run, by what it takes beside training."""
        own = evaluations * batches * STEP_COST * self.step
        return own + (COMPILING * self.compiling_step if batches else 0.0)


class _Clock(keras.callbacks.Callback):
    """Takes the time when each step has ended, its loss included."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.monotonic()]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Waits for the step."""
        float((logs or {}).get("loss", 0.0))
        self.times.append(time.monotonic())


def planned_before(recipe: "Recipe", given: Any, settings: Any, train: Any, val: Any) -> Any:
    """The settings of the run with `--minutes` that is in the output; None if there is none."""
    path = pathlib.Path(settings.output) / FILE_NAME
    if not path.is_file():
        return None
    recorded = read_settings(path)
    length = {name: recorded.get(name) for name in _OF_THE_LENGTH}
    return recipe.complete(dataclasses.replace(given, **length), train, val)


def plan_for_minutes(
    recipe: "Recipe",
    given: Any,
    settings: Any,
    cluster: Cluster,
    train: Any,
    val: Any,
    started: float,
) -> Any:
    """Decides how long a run trains so that it ends after `--minutes`.

    Args:
        recipe: the recipe.
        given: the settings that flags gave.
        settings: the same, complete for any length.
        cluster: of `distribute`.
        train: the training split.
        val: the validation split.
        started: `time.monotonic()` when the command began.

    Returns:
        The settings, complete.

    Raises:
        SettingsError: if the time is too short for any training.
    """
    cluster.say("Measuring how fast it trains ...")
    seconds = 60 * given.minutes
    speed = _measure(recipe, settings, cluster, train, val, _MEASURING * seconds)
    left = seconds * (1 - _END) - _END_SECONDS - (time.monotonic() - started) - speed.compiling
    affordable = max(1, int(_SHARE * left / speed.evaluation))
    evaluations, planned = min(affordable, _EVALUATIONS), settings
    beside = 0.0
    for _ in range(2):  # how often it is evaluated follows from the length
        steps = int((left - evaluations * speed.evaluation - beside) / speed.step)
        if steps < 1:
            raise SettingsError(
                f"--minutes {given.minutes:g} is too short: of {max(0.0, left):.0f} s after "
                f"compiling an evaluation takes {speed.evaluation:.0f}, and a step "
                f"{speed.step:.2g}: give more, or --epochs."
            )
        planned = recipe.complete(_of_length(given, settings, steps, affordable), train, val)
        evaluations = -(-planned.epochs // planned.evaluate_every)
        batches = batches_of_loss(recipe, planned, len(val))
        beside = speed.loss_on_validation(batches, evaluations)
    cluster.say(
        f"{speed.step:.2g} s a step, {speed.evaluation:.2g} s an evaluation: "
        f"{planned.steps:,} steps in {given.minutes:g} minutes"
    )
    return planned


def _of_length(given: Any, settings: Any, steps: int, affordable: int) -> Any:
    """What was given, for so many steps: in shorter epochs where there would be few."""
    wanted = min(affordable, _EVALUATIONS)
    of_epoch = given.steps_per_epoch or min(settings.steps_per_epoch, max(1, steps // wanted))
    epochs = max(1, round(steps / of_epoch))
    every = max(1, epochs // _EVALUATIONS, -(-epochs // affordable))
    return dataclasses.replace(
        given,
        epochs=epochs,
        steps_per_epoch=of_epoch,
        evaluate_every=given.evaluate_every or min(every, epochs),
    )


def _measure(
    recipe: "Recipe", settings: Any, cluster: Cluster, train: Any, val: Any, seconds: float
) -> Speed:
    """Trains a model that is thrown away, and predicts with it; the mean of all processes."""
    keras.utils.set_random_seed(settings.seed)
    began = time.monotonic()
    model: Any = recipe.build_model(settings, train)
    recipe.pyramid_of(model).rematerialize(settings.rematerialize)
    batches_from = recipe.batches(settings, train, model=model, shard=cluster.shard)
    building = time.monotonic() - began

    def times_of(steps: int) -> np.ndarray:
        clock = _Clock()
        with cluster.training(model):
            keras.Model.fit(
                model,
                cluster.fit_input(lambda: batches_from(0)),
                steps_per_epoch=steps,
                callbacks=[clock],
                shuffle=False,
                verbose=0,
            )
        take_averages(model)  # parts them from the weights, for the next `fit`
        return np.diff(clock.times)

    first = times_of(_FIRST_STEPS)
    count = int(np.clip(seconds / first[1:].mean(), _FIRST_STEPS, _MOST_STEPS))
    step = float(cluster.gather({"s": times_of(count)[1:]})["s"].mean())
    predictor = cluster.predictor(model)
    batches = recipe.open_evaluation(settings, val, cluster.shard)
    times = [time.monotonic()]
    for _, batch in zip(range(_BATCHES), batches, strict=False):
        np.asarray(
            keras.tree.flatten(predictor.predict_on_batch(data.model_input(predictor, batch)))[0]
        )
        times.append(time.monotonic())
    taken = np.diff(times)
    batch_time = taken[1:].mean() if len(taken) > 1 else taken[0]
    of_step, of_batch = first[0] - step, taken[0] - batch_time
    own = np.array([[batch_time, of_step + of_batch + building, of_step]])
    batch_time, compiling, of_step = cluster.gather({"s": own})["s"].mean(axis=0).tolist()
    # So that the layers of the run have the names that they have without this.
    keras.utils.clear_session()
    return Speed(step, _SCORING * batch_time * len(batches), compiling, of_step)
