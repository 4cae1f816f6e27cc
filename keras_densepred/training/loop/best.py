"""Stopping when nothing gets better, and keeping the weights of the best epoch."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_densepred.files import write_atomically
from keras_densepred.training.devices.cluster import current_cluster


class BestEpoch(keras.callbacks.Callback):
    """Stops training after some evaluations without a better one, and keeps the best weights.

    The weights are those that were evaluated, averages where the optimizer keeps some. They lie in
    a file, so that a run that is killed still has them.

    Args:
        monitor: name of a number in the logs; larger is better. Epochs without it, which are not
            evaluated, do not count.
        patience: evaluations without a better one after which training stops.
        path: of the file; all processes must see it.
        weights: returns a context in which the model has the weights that were evaluated.

    Attributes:
        best: the best number; None before the first.
        epoch: its epoch, from 1.
        waited: evaluations since then.

    Raises:
        ValueError: if `patience` is not positive.
    """

    def __init__(
        self,
        monitor: str,
        patience: int,
        path: pathlib.Path,
        weights: Callable[[], contextlib.AbstractContextManager],
    ) -> None:
        super().__init__()
        if patience < 1:
            raise ValueError(f"`patience` must be at least 1 evaluation, and is {patience}.")
        self.monitor = monitor
        self.patience = patience
        self.path = path
        self.weights = weights
        self.best: float | None = None
        self.epoch = 0
        self.waited = 0

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "epoch": self.epoch, "waited": self.waited}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.best, self.epoch, self.waited = state["best"], state["epoch"], state["waited"]

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Compares the epoch with the best one."""
        value = (logs or {}).get(self.monitor)
        if value is None:
            return
        if self.best is None or float(value) > self.best:
            self.best, self.epoch, self.waited = float(value), epoch + 1, 0
            self._save()
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.model.stop_training = True
            current_cluster().say(
                f"Stopping: {self.monitor} has not been better than {self.best:.4g}, of epoch "
                f"{self.epoch}, in {self.waited} evaluations."
            )

    def restore(self, model: keras.Model) -> bool:
        """Gives a model the best weights.

        Returns:
            Whether there are any.
        """
        if self.best is None:
            return False
        with np.load(self.path) as file:
            values = [file[str(number)] for number in range(len(file))]
        for variable, value in zip(_kept(model), values, strict=True):
            variable.assign(value)
        return True

    def _save(self) -> None:
        with self.weights():
            values = current_cluster().whole(_kept(self.model))

            def write() -> None:
                buffer = io.BytesIO()
                arrays = {str(number): value for number, value in enumerate(values)}
                np.savez(buffer, allow_pickle=False, **arrays)
                write_atomically(self.path, buffer.getvalue())

            current_cluster().run_on_main(write)


def _kept(model: keras.Model) -> list[Any]:
    """The weights, and what batch norms have seen."""
    return [*model.trainable_variables, *model.non_trainable_variables]
