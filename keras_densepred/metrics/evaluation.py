"""Evaluation during `fit`: when it runs, what shows it, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras
import numpy as np

OnBatch = Callable[[int, int], None]
Gather = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Once = Callable[[Callable[[], dict[str, float]]], dict[str, float]]


class EvaluationBatches(Protocol):
    """What evaluation needs of `data.eval_batches` and its like."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


class Evaluation(keras.callbacks.Callback):
    """Base of the callbacks that evaluate on a split; a subclass writes `evaluate` and `logged`.

    What `logged` gives is in an epoch's logs, so that `CSVLogger`, `ModelCheckpoint` and the
    history see it, provided this callback is listed before them.

    Args:
        batches: of the split.
        every: epochs between evaluations; the last epoch is always evaluated.
        predictor: predicts instead of the model, such as `training.Cluster.predictor(model)`.
        gather: puts what several processes found together, as `training.Cluster.gather`; all
            processes then evaluate alike, each its share of the batches.
        verbose: whether to show progress and print the result.
        on_batch: called with the batches done and all of them, instead of Keras' progress bar.

    Attributes:
        monitor: the number in the logs that makes an epoch the best.
        results: the last numbers; a checkpoint holds them.

    Raises:
        ValueError: if `every` is not positive.
    """

    monitor: str

    def __init__(
        self,
        batches: EvaluationBatches,
        *,
        every: int,
        predictor: Any,
        gather: Gather | None,
        verbose: bool,
        on_batch: OnBatch | None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be at least 1 epoch, and is {every}.")
        self.batches = batches
        self.every = every
        self.predictor = predictor
        self.gather = gather
        self.verbose = verbose
        self.on_batch = on_batch
        self.results: dict[str, float] = {}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Evaluates now, also outside of `fit`; sets and returns `results`."""
        raise NotImplementedError

    def logged(self) -> dict[str, float]:
        """Of the results what the logs hold, by its names there."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forgets the last numbers, which are of other weights than the model has now."""
        self.results = {}

    def get_state(self) -> dict[str, float]:
        """The last numbers, ready for JSON."""
        return dict(self.results)

    def set_state(self, state: Mapping[str, float]) -> None:
        """Takes the numbers of a checkpoint."""
        self.results = {name: float(value) for name, value in state.items()}

    def is_last(self, epoch: int) -> bool:
        """Whether `fit` ends with this epoch, which counts from 0."""
        return epoch + 1 == (self.params or {}).get("epochs")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Evaluates when it is time."""
        if (epoch + 1) % self.every and not self.is_last(epoch):
            return
        self.evaluate(self.model)
        logged = self.logged()
        if logs is not None:
            logs.update(logged)
        if self.verbose:
            print(", ".join(f"{name} {value:.3f}" for name, value in logged.items()))

    def shown(self) -> Callable[[int], None] | None:
        """What an evaluation calls with the number of batches done; None shows nothing."""
        on_batch, total = self.on_batch, len(self.batches)
        if on_batch is not None:
            return lambda done: on_batch(done, total)
        return keras.utils.Progbar(total, unit_name="batch").update if self.verbose else None
