"""The loss on validation images, beside that of training."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from keras_densepred import data
from keras_densepred.training.devices.cluster import Cluster
from keras_densepred.training.optim import averaged_weights

_IMAGES = 64  # of the split, at most


class ValidationLoss(keras.callbacks.Callback):
    """Adds `val_loss` to the logs of epochs that are evaluated.

    It is the training's loss of images that are not augmented, in inference mode and with the
    weights that are evaluated; always of the same images, some of the split. The model is left as
    it was, its random generators included.

    Args:
        open_batches: opens the batches, pairs as the model's `fit` takes them.
        every: epochs between evaluations; the last epoch is always evaluated.
        weights: puts the weights that are evaluated into the model, see `averaged_weights`.
    """

    def __init__(
        self,
        open_batches: Callable[[], Iterator[tuple[Any, Any]]],
        every: int,
        weights: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self.open_batches = open_batches
        self.every = every
        self.weights = weights

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measures when it is time."""
        is_last = epoch + 1 == (self.params or {}).get("epochs")
        if logs is not None and ((epoch + 1) % self.every == 0 or is_last):
            logs["val_loss"] = self.measure()

    def measure(self) -> float:
        """The mean loss of the batches."""
        model: Any = self.model
        kept = [
            (variable, np.array(keras.ops.convert_to_numpy(variable)))
            for variable in model.non_trainable_variables
        ]
        losses = []
        with self.weights():
            for images, targets in self.open_batches():
                model.reset_metrics()
                logs = keras.Model.test_on_batch(model, images, targets, return_dict=True)
                losses.append(float(logs["loss"]))
        model.reset_metrics()
        for variable, value in kept:
            variable.assign(value)
        return float(np.mean(losses))


def validation_loss(
    recipe: Any, settings: Any, model: Any, val: Any, cluster: Cluster
) -> ValidationLoss | None:
    """What measures a run's loss on validation images; None where nothing does.

    On one device only: Keras' `test_on_batch` does not divide a batch among processes.

    Args:
        recipe: a `Recipe`, which opens batches.
        settings: complete.
        model: that is trained.
        val: the validation split.
        cluster: of `distribute`.
    """
    if not settings.val_loss or not recipe.has_val_loss or cluster.devices > 1:
        return None
    prepared = recipe.preprocessing(settings)
    batches = max(1, min(len(val), _IMAGES) // settings.step_size)

    def open_batches() -> Iterator[tuple[Any, Any]]:
        with recipe.open_stream(
            settings,
            val,
            batch_size=settings.step_size,
            image_size=settings.image_size,
            seed=settings.seed,
            mean=prepared.mean,
            std=prepared.std,
            augment=[data.ResizeToFit(settings.image_size)],
            on_bad_image=settings.on_bad_image,
        ) as stream:
            for batch in itertools.islice(stream, batches):
                yield recipe.example(batch, model)

    return ValidationLoss(open_batches, settings.evaluate_every, lambda: averaged_weights(model))
