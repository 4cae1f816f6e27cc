"""The loss on validation images, beside that of training."""

import itertools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from keras_densepred import data
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.devices.image_bytes import normalization
from keras_densepred.training.loop.snapshots import RandomState
from keras_densepred.training.optim import averaged_weights

STEP_COST = 0.4  # of a batch, in steps of training; 0.15 to 0.35 on two CPU cores with JAX
COMPILING = 0.3  # likewise, in times that compiling a step takes; 0.17 to 0.33
_IMAGES = 64  # of the split, at most
_SHARE = 0.05  # of the training, at most, where no flag asks for it
_LEAST_STEPS = 200  # of training; compiling takes as long as 15 to 30 there


class ValidationLoss(keras.callbacks.Callback):
    """Adds `val_loss` to the logs of epochs that are evaluated.

    It is the training's loss of images that are not augmented, in inference mode and with the
    weights that are evaluated; always of the same images, some of the split. Training goes on as
    without it, random numbers included. On several devices each takes its rows, as in training.

    Args:
        open_batches: opens the batches, pairs as the model's `fit` takes them, of this process.
        batches: how many are taken.
        every: epochs between evaluations; the last epoch is always evaluated.
        weights: puts the weights that are evaluated into the model, see `averaged_weights`.
    """

    def __init__(
        self,
        open_batches: Callable[[], Generator[tuple[Any, Any], None, None]],
        batches: int,
        every: int,
        weights: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self.open_batches = open_batches
        self.batches = batches
        self.every = every
        self.weights = weights

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measures when it is time."""
        is_last = epoch + 1 == (self.params or {}).get("epochs")
        if logs is not None and ((epoch + 1) % self.every == 0 or is_last):
            logs["val_loss"] = self.measure()

    def measure(self) -> float:
        """The mean loss of the batches, over all devices."""
        model: Any = self.model
        cluster = current_cluster()
        generators = RandomState.capture()  # opening data draws from PyTorch's
        kept = [np.array(value) for value in cluster.whole(model.non_trainable_variables)]
        with self.weights():
            # KerasHub's tasks wrap `evaluate` as they do `fit`.
            logs = keras.Model.evaluate(
                model,
                cluster.fit_input(self.open_batches),
                steps=self.batches,
                verbose=0,
                return_dict=True,
            )
        model.reset_metrics()
        for variable, value in zip(model.non_trainable_variables, kept, strict=True):
            variable.assign(value)
        generators.restore()
        loss = np.array([float(logs["loss"])])
        if cluster.metrics_are_local:
            loss = cluster.gather({"loss": loss})["loss"]
        return float(loss.mean())


def batches_of_loss(recipe: Any, settings: Any, images: int) -> int:
    """Batches of which a run measures the loss at each evaluation; 0 for none.

    Without a flag as many as take a twentieth of the training, in runs of 200 steps and more.

    Args:
        recipe: a `Recipe`.
        settings: complete.
        images: of the validation split.
    """
    if not recipe.has_val_loss:
        return 0
    most = max(1, min(images, _IMAGES) // settings.step_size)
    if settings.val_loss is not None:
        return most if settings.val_loss else 0
    if settings.steps < _LEAST_STEPS:
        return 0
    evaluations = -(-settings.epochs // settings.evaluate_every)
    return min(most, int(_SHARE * settings.steps / (STEP_COST * evaluations)))


def validation_loss(
    recipe: Any, settings: Any, model: Any, val: Any, shard: tuple[int, int]
) -> ValidationLoss | None:
    """What measures a run's loss on validation images; None where nothing does.

    Args:
        recipe: a `Recipe`, which opens batches.
        settings: complete.
        model: that is trained.
        val: the validation split.
        shard: which process of how many this is.
    """
    batches = batches_of_loss(recipe, settings, len(val))
    if not batches:
        return None

    def open_batches() -> Generator[tuple[Any, Any], None, None]:
        with recipe.open_stream(
            settings,
            val,
            batch_size=settings.step_size,
            image_size=settings.image_size,
            seed=settings.seed,
            **normalization(model, recipe.preprocessing(settings)),
            augment=[data.ResizeToFit(settings.image_size)],
            on_bad_image=settings.on_bad_image,
            shard=shard,
        ) as stream:
            for batch in itertools.islice(stream, batches):
                yield recipe.example(batch, model)

    return ValidationLoss(
        open_batches, batches, settings.evaluate_every, lambda: averaged_weights(model)
    )
