"""What a run logs, for TensorBoard, Weights & Biases and MLflow."""

import io
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from keras_densepred._optional import require
from keras_densepred.files import write_atomically
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.optim import current_learning_rate

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
    """Files for `tensorboard --logdir RUN`, in `RUN/tensorboard`, written without TensorFlow.

    One an epoch, which a run that is continued writes again: each is complete, and none changes
    while TensorBoard reads it. Its own writer would begin a second file beside the first.

    Args:
        output: directory of the run.
    """

    def __init__(self, output: pathlib.Path) -> None:
        super().__init__()
        require("tensorboard", "log")
        self.folder = output / "tensorboard"

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Writes the epoch's file."""
        # Losses of training and validation below one heading.
        tags = {f"epoch/{name}": value for name, value in numbers.items()}
        name = f"events.out.tfevents.{epoch:010d}.keras_densepred"  # read in this order
        write_atomically(self.folder / name, _event_file(epoch, tags))


def _event_file(step: int, numbers: Mapping[str, float]) -> bytes:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    values = [summary_pb2.Summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()]
    now = time.time()
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in (
        event_pb2.Event(wall_time=now, file_version="brain.Event:2"),
        event_pb2.Event(wall_time=now, step=step, summary=summary_pb2.Summary(value=values)),
    ):
        writer.write(event.SerializeToString())
    return content.getvalue()


class _Service(_Logger):
    """A logger with a run of its own elsewhere, which a run that is continued continues.

    Args:
        output: directory of the run.
        settings: that the service shows beside the numbers.
    """

    package: ClassVar[str]

    def __init__(self, output: pathlib.Path, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self._module = require(self.package, "log")
        self._output, self._settings = output, dict(settings)
        self._key = ""

    def get_state(self) -> str:
        """The id by which the service finds the run again."""
        return self._key

    def set_state(self, state: str) -> None:
        """Takes the id of a checkpoint."""
        self._key = state

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the run."""

        def begin() -> None:
            self._key = self.begin()

        current_cluster().run_on_main(begin)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the run."""
        current_cluster().run_on_main(self.end)

    def begin(self) -> str:
        """Opens the run, that of `_key` where there is one; returns its id."""
        raise NotImplementedError

    def end(self) -> None:
        """Closes the run."""
        raise NotImplementedError


class WandbLog(_Service):
    """A run of Weights & Biases, see `_Service`."""

    package = "wandb"

    def begin(self) -> str:
        """Opens the run."""
        self._run = self._module.init(
            project="keras_densepred",
            name=self._output.name,
            dir=str(self._output),
            config=self._settings,
            id=self._key or None,
            resume="allow",
        )
        return str(self._run.id)

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Logs the epoch."""
        self._run.log(dict(numbers), step=epoch)

    def end(self) -> None:
        """Closes the run."""
        self._run.finish()


class MlflowLog(_Service):
    """A run of MLflow, see `_Service`; its parameters are the settings."""

    package = "mlflow"

    def begin(self) -> str:
        """Opens the run."""
        names = {} if self._key else {"run_name": self._output.name}
        run = self._module.start_run(run_id=self._key or None, **names)
        if not self._key:
            texts = {name: json.dumps(value) for name, value in self._settings.items()}
            self._module.log_params({name: text[:500] for name, text in texts.items()})
        return str(run.info.run_id)

    def log(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Logs the epoch."""
        self._module.log_metrics(dict(numbers), step=epoch)

    def end(self) -> None:
        """Closes the run."""
        self._module.end_run()


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
