"""The line that shows how far a run is."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import keras

from keras_densepred._optional import require
from keras_densepred.training.devices.cluster import current_cluster
from keras_densepred.training.optim import current_learning_rate
from keras_densepred.training.report.progress_line import ProgressLine, duration

_PART = "process 0's images"
_SECONDS_BETWEEN_REFRESHES = 0.5


class Progress(keras.callbacks.Callback):
    """Shows epoch, step, images a second, the parts of the loss, learning rate and time left.

    In a terminal it is a line that `rich` redraws, as wide as the terminal; elsewhere (a file, a
    notebook's log) a line is printed ten times an epoch. Losses are fetched from the accelerator
    only when they are shown. With several processes the main one shows; on PyTorch the losses of
    its own rows.

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
        self._live: Any = None
        self._line = ProgressLine()
        self._epoch = 0
        self._has_said_compiling = False
        self._counted_from: float | None = None
        self._steps_counted = 0
        self._step_seconds = 0.0
        self._last_step_at = 0.0
        self._shown_at = 0.0
        self._evaluating_from = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the line if there is a terminal."""
        self._has_said_compiling = False
        self._counted_from = None
        self._steps_counted = 0
        self._step_seconds = 0.0
        if current_cluster().is_main and self.stream.isatty():
            console = require("rich.console", "data").Console(file=self.stream)
            live = require("rich.live", "data").Live
            self._live = live(self._line, console=console, auto_refresh=False, transient=True)
            self._live.start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Shows the epoch's number."""
        self._epoch = epoch
        self._last_step_at = time.monotonic()
        steps = self.params["steps"]
        self._show(what="epoch", place=f"{epoch + 1}/{self.params['epochs']}", done=0, steps=steps)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Says that the first step takes long."""
        if self._has_said_compiling:
            return
        self._has_said_compiling = True
        if self._live is not None:
            self._show(note="compiling the first step")
        else:
            self._print(f"epoch {self._epoch + 1}: compiling and running the first step ...")

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
        if self._live is not None:
            if now - self._shown_at >= _SECONDS_BETWEEN_REFRESHES or done == steps:
                losses = {name: float(value) for name, value in (logs or {}).items()}
                rate = f"{current_learning_rate(self.model):.2e}"
                parts = {name: f"{value:.3f}" for name, value in losses.items() if name != "loss"}
                self._show(
                    done=done,
                    note="",
                    seconds_left=self._seconds_left(done, now),
                    speed=self._speed(),
                    loss=losses.get("loss"),
                    details={**parts, "lr": rate, **({"of": _PART} if _is_a_part() else {})},
                )
                self._shown_at = now
        elif current_cluster().is_main and (done == steps or done % max(1, steps // 10) == 0):
            label = f"epoch {self._epoch + 1}/{self.params['epochs']}, step {done}/{steps}"
            whose = f" ({_PART})" if _is_a_part() else ""
            self._print(f"{label}{whose}: {self._describe(done, logs, now)}")

    def on_evaluation_batch(self, done: int, batches: int) -> None:
        """Shows in a terminal how far an evaluation is.

        Args:
            done: batches that are done.
            batches: in all.
        """
        if self._live is None:
            return
        now = time.monotonic()
        if done <= 1:
            self._evaluating_from = now
        elif now - self._shown_at < _SECONDS_BETWEEN_REFRESHES and done < batches:
            return
        seconds = (
            (now - self._evaluating_from) / (done - 1) * (batches - done) if done > 1 else None
        )
        line = ProgressLine("evaluating", "", done, batches, seconds, details=self._line.details)
        self._live.update(line, refresh=True)
        self._shown_at = now

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Prints the epoch's results as a line that stays."""
        values = [f"{name} {float(value):.4g}" for name, value in (logs or {}).items()]
        self._print(f"epoch {epoch + 1}/{self.params['epochs']} done: {', '.join(values)}")

    def on_train_end(self, logs: Any = None) -> None:
        """Removes the line."""
        self.close()

    def close(self) -> None:
        """Removes the line; to be called if training ends with an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _speed(self) -> float | None:
        """Images a second."""
        if not self._steps_counted:
            return None
        return self.batch_size * self._steps_counted / max(self._step_seconds, 1e-9)

    def _seconds_left(self, done: int, now: float) -> float | None:
        """Of the run; counts evaluations, which the speed does not."""
        if not self._steps_counted or self._counted_from is None:
            return None
        seconds = (now - self._counted_from) / self._steps_counted
        return ((self.params["epochs"] - self._epoch) * self.params["steps"] - done) * seconds

    def _describe(self, done: int, logs: Mapping[str, Any] | None, now: float) -> str:
        parts = [f"{name} {float(value):.3f}" for name, value in (logs or {}).items()]
        parts.append(f"lr {current_learning_rate(self.model):.2e}")
        speed, left = self._speed(), self._seconds_left(done, now)
        if speed is not None and left is not None:
            parts += [f"{speed:.1f} images/s", f"{duration(left)} left"]
        return ", ".join(parts)

    def _show(self, **changes: Any) -> None:
        """Changes what the line shows."""
        for name, value in changes.items():
            setattr(self._line, name, value)
        if self._live is not None:
            self._live.update(self._line, refresh=True)

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        elif current_cluster().is_main:
            print(line, file=self.stream, flush=True)


def _is_a_part() -> bool:
    """Whether the losses within an epoch are of some images: those of all are known at its end."""
    cluster = current_cluster()
    return cluster.metrics_are_local and cluster.process_count > 1
