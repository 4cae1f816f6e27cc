"""`--minutes N`: how many steps fit into a time, by the speed of the first ones."""

import bisect
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_densepred import data
from keras_densepred.faults import SettingsError
from keras_densepred.training.build import build_for_training
from keras_densepred.training.devices.cluster import Cluster
from keras_densepred.training.identity import FILE_NAME, read_settings
from keras_densepred.training.loop.fit import SpanningCallbacks
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
_SCORING = 0.004  # seconds an image, beside its predictions; 0.75 s for 200 on a CPU core
_EPOCH = 0.8  # seconds at the end of each epoch, for curves and checkpoints
_RESERVE = 0.03  # of the time: machines become slower rather than faster
_END_SECONDS = 8.0  # for the last drawings and the preset
_FEW = 0.1  # of the steps that the recipe would take by itself: little is learned


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

    def after_compiling(self, settings: Any, batches: int) -> float:
        """What a run takes, with the loss of so many validation batches at each evaluation."""
        evaluations = -(-settings.epochs // settings.evaluate_every)
        return (
            settings.steps * self.step
            + settings.epochs * _EPOCH
            + evaluations * self.evaluation
            + self.loss_on_validation(batches, evaluations)
        )


class _Clock(keras.callbacks.Callback):
    """Takes the time when the first and the last step have ended.

    It waits for no other: a run does not either, and prepares a batch while one is trained.

    Args:
        steps: how many there are, at least two.
    """

    lazy_logs = True

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._last = steps - 1
        self._times = [time.monotonic()]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Waits for the step."""
        if batch in (0, self._last):
            float((logs or {}).get("loss", 0.0))
            self._times.append(time.monotonic())

    def seconds(self) -> np.ndarray:
        """(2,) of the first step, and of each of the others on average."""
        start, first, end = self._times
        return np.array([first - start, (end - first) / self._last])


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
    usable = seconds * (1 - _RESERVE) - _END_SECONDS

    def spent() -> float:
        # By the same clock in all processes, which must train equally long.
        return float(cluster.gather({"s": np.array([time.monotonic() - started])})["s"].max())

    def check_start(again: float) -> None:
        # The measuring goes on for long where one more program is compiled.
        least = spent() + again
        if least > usable:
            minutes = math.ceil((seconds + (least - usable) / (1 - _RESERVE)) / 6) / 10
            raise SettingsError(
                f"--minutes {given.minutes:g} is too short: starting alone takes more than "
                f"{minutes:g} minutes here: give more, or --epochs."
            )

    check_start(0.0)
    speed = _measure(recipe, settings, cluster, train, val, _MEASURING * seconds, check_start)
    before = spent()
    left = usable - before - speed.compiling
    affordable = max(1, int(_SHARE * left / speed.evaluation))

    def length_of(steps: int) -> dict[str, int]:
        return _length(given, settings, steps, affordable)

    def time_of(steps: int) -> float:
        length = length_of(steps)
        steps = length["epochs"] * length["steps_per_epoch"]
        planned = dataclasses.replace(settings, **length, steps=steps)
        return speed.after_compiling(planned, batches_of_loss(recipe, planned, len(val)))

    def fits(steps: int) -> bool:
        return time_of(steps) <= left

    if not fits(1):
        steps = length_of(1)["steps_per_epoch"]
        least = math.ceil((seconds + (time_of(1) - left) / (1 - _RESERVE)) / 6) / 10
        raise SettingsError(
            f"--minutes {given.minutes:g} is too short: starting, {steps} "
            f"step{'' if steps == 1 else 's'} and an evaluation take {least:g} minutes here: give "
            "more, or --epochs."
        )
    most = bisect.bisect_left(range(2, 2 + int(left / speed.step)), True, key=lambda n: not fits(n))
    planned = recipe.complete(dataclasses.replace(given, **length_of(1 + most)), train, val)
    cluster.say(
        f"{speed.step:.2g} s a step, {speed.evaluation:.2g} s an evaluation: "
        f"{planned.steps:,} steps in {given.minutes:g} minutes"
    )
    if planned.steps < _FEW * settings.steps:
        loss_batches = batches_of_loss(recipe, settings, len(val))
        whole = before + speed.compiling + speed.after_compiling(settings, loss_batches)
        cluster.say(
            f"! {planned.steps:,} are few, and may find nothing: without --minutes this run would "
            f"take {settings.steps:,} steps, in about {math.ceil(whole / 60):,} minutes."
        )
    return planned


def _length(given: Any, settings: Any, steps: int, affordable: int) -> dict[str, int]:
    """What was given, for so many steps at most: in shorter epochs where there would be few."""
    wanted = min(affordable, _EVALUATIONS)
    if given.steps_per_epoch:
        of_epoch = given.steps_per_epoch
        epochs = max(1, steps // of_epoch)
    else:
        epochs = max(1, round(steps / min(settings.steps_per_epoch, max(1, steps // wanted))))
        of_epoch = steps // epochs
    every = max(1, epochs // _EVALUATIONS, -(-epochs // affordable))
    return {
        "epochs": epochs,
        "steps_per_epoch": of_epoch,
        "evaluate_every": given.evaluate_every or min(every, epochs),
    }


def _measure(
    recipe: "Recipe",
    settings: Any,
    cluster: Cluster,
    train: Any,
    val: Any,
    seconds: float,
    check_start: Callable[[float], None],
) -> Speed:
    """Trains a model that is thrown away, and predicts with it; the mean of all processes.

    `check_start` is told, once it is known, how long the run itself takes up to its second step.
    """
    began = time.monotonic()
    model: Any = build_for_training(recipe, settings, train)
    batches_from = recipe.batches(settings, train, model=model, shard=cluster.shard)
    building = time.monotonic() - began

    def times_of(steps: int) -> np.ndarray:
        clock = _Clock(steps)
        callbacks = SpanningCallbacks([clock], model, epochs=1, steps=steps)
        callbacks.begin()
        with cluster.training(model):
            keras.Model.fit(
                model,
                cluster.fit_input(lambda: batches_from(0)),
                steps_per_epoch=steps,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
        take_averages(model)  # parts them from the weights, for the next `fit`
        return clock.seconds()

    first = times_of(_FIRST_STEPS)
    check_start(building + first[0])
    about = cluster.gather({"s": first[1:]})["s"].mean()  # all processes take as many steps
    count = int(np.clip(seconds / about, _FIRST_STEPS, _MOST_STEPS))
    step = float(cluster.gather({"s": times_of(count)[1:]})["s"].mean())
    predictor = cluster.predictor(model)
    batches = recipe.open_evaluation(settings, val, cluster.shard, model)
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
    evaluation = batch_time * len(batches) + _SCORING * len(val)
    return Speed(step, evaluation, compiling, of_step)
