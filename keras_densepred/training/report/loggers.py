"""What a run logs, for TensorBoard, Weights & Biases and MLflow."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.files import write_atomically
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.optim import current_learning_rate
from keras_densepred.training.report.event_file import event_file

LOGGERS = ("tensorboard", "wandb", "mlflow")


class _Logger(keras.callbacks.Callback):
    """Gives the numbers of every epoch to a place for them; the main process does."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Logs losses, what was evaluated, and the learning rate."""
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        numbers["learning_rate"] = current_learning_rate(self.model)
        current_cluster().run_on_main(lambda: self.log(epoch + 1, numbers))

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Logs the numbers of an epoch, from 1."""
        raise NotImplementedError


class TensorBoardLog(_Logger):
    """Files for `tensorboard --logdir RUN`, in `RUN/tensorboard`; needs no other package.

    One an epoch, which a run that is continued writes again: each is complete, and none changes
    while TensorBoard reads it.

    Args:
        output: directory of the run.
    """

    def __init__(self, output: pathlib.Path) -> None:
        super().__init__()
        self.folder = output / "tensorboard"

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Writes the epoch's file."""
        # Losses of training and validation below one heading.
        tags = {f"epoch/{name}": value for name, value in numbers.items()}
        name = f"events.out.tfevents.{epoch:010d}.keras_densepred"  # read in this order
        write_atomically(self.folder / name, event_file(epoch, time.time(), tags))


class WandbLog(_Logger):
    """A run of Weights & Biases (`wandb`), which a run that is continued continues.

    Args:
        output: directory of the run.
        settings: that Weights & Biases shows.
    """

    def __init__(self, output: pathlib.Path, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self._module = require("wandb", "log")
        self._output, self._settings = output, dict(settings)
        self._run: Any = None
        self._key = ""

    def get_state(self) -> str:
        """The id by which the run is found again."""
        return self._key

    def set_state(self, state: str) -> None:
        """Takes the id of a checkpoint."""
        self._key = state

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the run."""

        def begin() -> None:
            self._run = self._module.init(
                project="keras_densepred",
                name=self._output.name,
                dir=str(self._output),
                config=self._settings,
                id=self._key or None,
                resume="allow",
            )
            self._key = str(self._run.id)

        current_cluster().run_on_main(begin)

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Logs the epoch."""
        self._run.log(dict(numbers), step=epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the run."""
        current_cluster().run_on_main(lambda: self._run.finish())


class MlflowLog(_Logger):
    """A run of MLflow (`mlflow`), which a run that is continued continues.

    Args:
        output: directory of the run.
        settings: that MLflow shows as parameters.
    """

    def __init__(self, output: pathlib.Path, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self._module = require("mlflow", "log")
        self._output, self._settings = output, dict(settings)
        self._key = ""

    def get_state(self) -> str:
        """The id by which the run is found again."""
        return self._key

    def set_state(self, state: str) -> None:
        """Takes the id of a checkpoint."""
        self._key = state

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the run."""

        def begin() -> None:
            names = {} if self._key else {"run_name": self._output.name}
            run = self._module.start_run(run_id=self._key or None, **names)
            if not self._key:
                texts = {name: json.dumps(value) for name, value in self._settings.items()}
                self._module.log_params({name: text[:500] for name, text in texts.items()})
            self._key = str(run.info.run_id)

        current_cluster().run_on_main(begin)

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Logs the epoch."""
        self._module.log_metrics(dict(numbers), step=epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the run."""
        current_cluster().run_on_main(lambda: self._module.end_run())


def make_logger(
    name: str | None, output: pathlib.Path, settings: Mapping[str, Any]
) -> list[keras.callbacks.Callback]:
    """The callback of `--logger`, if any.

    Args:
        name: one of `LOGGERS`, or None.
        output: directory of the run.
        settings: JSON-able, that are shown beside the numbers.

    Raises:
        ImportError: if its package is not installed; the message names the extra.
    """
    if name is None:
        return []
    if name == "tensorboard":
        return [TensorBoardLog(output)]
    return [{"wandb": WandbLog, "mlflow": MlflowLog}[name](output, settings)]
