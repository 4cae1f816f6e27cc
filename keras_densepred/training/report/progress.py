"""The line that shows how far a run is."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import keras

from keras_densepred._optional import require
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.optim import current_learning_rate

_SECONDS_BETWEEN_REFRESHES = 0.5


class Progress(keras.callbacks.Callback):
    """Shows epoch, step, images a second, the parts of the loss, learning rate and time left.

    In a terminal it is a bar that `rich` redraws; elsewhere (a file, a notebook's log) a line is
    printed ten times an epoch. Losses are fetched from the accelerator only when they are shown.
    With several processes the main one shows; on PyTorch the losses of its own rows.

    Args:
        batch_size: images per step, over all devices.
        stream: where to write; standard output by default.

    Raises:
        ImportError: in a terminal, if `rich` is not installed.
    """

    lazy_logs = True

    def __init__(self, batch_size: int, stream: TextIO | None = None):
        super().__init__()
        self.batch_size = batch_size
        self.stream = stream or sys.stdout
        self._bar: Any = None
        self._epoch = 0
        self._counted_from: float | None = None
        self._steps_counted = 0
        self._step_seconds = 0.0
        self._last_step_at = 0.0
        self._shown_at = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the bar if there is a terminal."""
        self._counted_from = None
        self._steps_counted = 0
        self._step_seconds = 0.0
        if current_cluster().is_main and self.stream.isatty():
            require("rich", "data")
            progress = require("rich.progress", "data")
            console = require("rich.console", "data").Console(file=self.stream)
            self._bar = progress.Progress(
                progress.TextColumn("epoch {task.fields[epoch]}"),
                progress.BarColumn(bar_width=24),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[shown]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task("train", epoch="", shown="compiling the first step")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Shows the epoch's number."""
        self._epoch = epoch
        self._last_step_at = time.monotonic()
        if self._bar is not None:
            label = f"{epoch + 1}/{self.params['epochs']}"
            self._bar.update(self._task, completed=0, total=self.params["steps"], epoch=label)
        elif self._counted_from is None:
            self._print(f"epoch {epoch + 1}: compiling and running the first step ...")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts the step and refreshes what is shown when it is time."""
        now = time.monotonic()
        if self._counted_from is None:  # the first step compiles: it says nothing about speed
            self._counted_from = now
        else:
            self._steps_counted += 1
            self._step_seconds += now - self._last_step_at
        self._last_step_at = now
        steps = self.params["steps"]
        done = batch + 1
        if self._bar is not None:
            if now - self._shown_at >= _SECONDS_BETWEEN_REFRESHES or done == steps:
                self._bar.update(self._task, completed=done, shown=self._describe(done, logs, now))
                self._shown_at = now
        elif current_cluster().is_main and (done == steps or done % max(1, steps // 10) == 0):
            label = f"epoch {self._epoch + 1}/{self.params['epochs']}, step {done}/{steps}: "
            self._print(label + self._describe(done, logs, now))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Prints the epoch's results as a line that stays."""
        values = [f"{name} {float(value):.4g}" for name, value in (logs or {}).items()]
        self._print(f"epoch {epoch + 1}/{self.params['epochs']} done: {', '.join(values)}")

    def on_train_end(self, logs: Any = None) -> None:
        """Removes the bar."""
        self.close()

    def close(self) -> None:
        """Removes the bar; to be called if training ends with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, done: int, logs: Mapping[str, Any] | None, now: float) -> str:
        parts = [f"{name} {float(value):.3f}" for name, value in (logs or {}).items()]
        parts.append(f"lr {current_learning_rate(self.model):.2e}")
        if self._steps_counted and self._counted_from is not None:
            speed = self.batch_size * self._steps_counted / max(self._step_seconds, 1e-9)
            parts.append(f"{speed:.1f} images/s")
            # The time left counts evaluations, the speed does not.
            seconds = (now - self._counted_from) / self._steps_counted
            left = (self.params["epochs"] - self._epoch) * self.params["steps"] - done
            parts.append(f"{_duration(left * seconds)} left")
        return ", ".join(parts)

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif current_cluster().is_main:
            print(line, file=self.stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
