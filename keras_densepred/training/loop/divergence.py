"""Stopping at the first number that is not finite."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


class TrainingDiverged(RuntimeError):
    """A loss or a weight is not finite; one sentence."""


def check_finite_logs(logs: Mapping[str, Any] | None, epoch: int, batch: int) -> None:
    """Raises `TrainingDiverged` if a loss is not finite; `epoch` and `batch` count from 0."""
    # Losses only: a metric may be NaN by definition, such as the AP of a class without objects.
    values = {name: float(value) for name, value in (logs or {}).items() if "loss" in name}
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        # The total is the sum of the parts: name a part where there is one.
        culprit = next((name for name in broken if name != "loss"), broken[0])
        raise TrainingDiverged(
            f"{culprit} became {values[culprit]} at step {batch + 1} of epoch {epoch + 1}: lower "
            "the learning rate or check the data; the last checkpoint is from before."
        )


class NanGuard(keras.callbacks.Callback):
    """Stops training when a loss is not finite, naming the step and the part of the loss.

    A step's losses are checked once the next step has been dispatched, so that the host never waits
    for the accelerator; `ResumableCheckpoint` checks at once before it writes.

    Raises:
        TrainingDiverged: from `fit`.
    """

    lazy_logs = True

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._pending: tuple[int, Any] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the step before this one."""
        self._check()
        self._pending = (batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks the last step."""
        self._check()

    def _check(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            check_finite_logs(pending[1], self._epoch, pending[0])
