"""Top-1, top-5, loss and confusion of a classifier, over every image of a split."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_densepred.metrics.evaluation import Evaluation, EvaluationBatches, Gather, OnBatch

_TOP = 5


@dataclasses.dataclass(eq=False)
class ClassificationCounts:
    """What was counted so far; counts of parts of a split add up to those of the split.

    Where several logits are equal, the class with the lower label comes first, as `argmax` has it:
    a network that answers the same to everything is right as often as chance, not always.

    Args:
        confusion: `(num_classes, num_classes)` int64, images by true and by predicted label.
        top5: images whose class is among the five highest logits.
        loss: sum of the images' cross entropies.
    """

    confusion: np.ndarray
    top5: int = 0
    loss: float = 0.0

    @classmethod
    def empty(cls, num_classes: int) -> ClassificationCounts:
        """Nothing counted yet."""
        return cls(np.zeros((num_classes, num_classes), np.int64))

    def update(self, logits: np.ndarray, labels: np.ndarray, valid: np.ndarray) -> None:
        """Counts a batch.

        Args:
            logits: `(B, num_classes)` float.
            labels: `(B,)` integers.
            valid: `(B,)` bool; other rows are left out.

        Raises:
            ValueError: if logits have another shape, or those of a valid row are not finite.
        """
        num_classes = len(self.confusion)
        if logits.shape != (len(valid), num_classes):
            raise ValueError(
                f"The model gives an output of shape {logits.shape} for {len(valid)} images of "
                f"{num_classes} classes; it must give one logit a class."
            )
        logits, labels = np.asarray(logits, np.float64)[valid], np.asarray(labels)[valid]
        if not np.isfinite(logits).all():
            raise ValueError(
                "There are logits that are not finite; the network has probably diverged, look at "
                "its training loss."
            )
        predicted = logits.argmax(axis=1)
        cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
        self.confusion += cells.reshape(num_classes, num_classes)
        own = logits[np.arange(len(labels)), labels][:, None]
        is_lower = np.arange(num_classes) < labels[:, None]
        rank = ((logits > own) | ((logits == own) & is_lower)).sum(axis=1)
        self.top5 += int((rank < _TOP).sum())
        highest = logits.max(axis=1, initial=-np.inf)[:, None]
        self.loss += float((np.log(np.exp(logits - highest).sum(1)) + (highest - own)[:, 0]).sum())

    def gathered(self, gather: Gather) -> ClassificationCounts:
        """The counts of all processes together.

        Args:
            gather: concatenates arrays of the processes along axis 0, as `training.Cluster.gather`.
        """
        parts = gather(
            {
                "confusion": self.confusion[None],
                "top5": np.array([self.top5], np.int64),
                "loss": np.array([self.loss], np.float64),
            }
        )
        sums = {name: values.sum(axis=0) for name, values in parts.items()}
        return ClassificationCounts(sums["confusion"], int(sums["top5"]), float(sums["loss"]))

    def results(self) -> dict[str, float]:
        """The numbers of what was counted.

        Returns:
            `loss`, the mean cross entropy in nats, and `top1` and `top5` in 0..1.

        Raises:
            ValueError: if nothing was counted.
        """
        images = int(self.confusion.sum())
        if not images:
            raise ValueError("No image was evaluated: all of the split were unreadable.")
        return {
            "loss": self.loss / images,
            "top1": float(np.trace(self.confusion)) / images,
            "top5": self.top5 / images,
        }


def count_predictions(
    model: Any,
    batches: EvaluationBatches,
    num_classes: int,
    on_batch: Callable[[int], None] | None = None,
) -> ClassificationCounts:
    """Runs a classifier over a split.

    Args:
        model: whatever has `predict_on_batch(images) -> (B, num_classes)` logits.
        batches: `data.eval_class_batches` of the split.
        num_classes: number of classes.
        on_batch: called with the number of batches done, for progress.

    Returns:
        The counts; of a process's share of the split, if the batches are that.
    """
    counts = ClassificationCounts.empty(num_classes)
    for done, batch in enumerate(batches, start=1):
        logits = np.asarray(model.predict_on_batch(batch["images"]))
        counts.update(logits, batch["labels"], batch["valid"])
        if on_batch is not None:
            on_batch(done)
    return counts


class ClassificationEvaluation(Evaluation):
    """Evaluates a classifier during `fit`, on any backend, with averaged weights beside the raw.

    After an epoch `val_loss`, `val_top1` and `val_top5` are in the logs, and with `averaged` also
    `ema_val_loss`, `ema_val_top1` and `ema_val_top5`, so that `CSVLogger`, `ModelCheckpoint` and
    the history see them, provided this callback is listed before them.

    Args:
        batches: `data.eval_class_batches` of the split.
        num_classes: number of classes.
        every: epochs between evaluations; the last epoch is always evaluated.
        averaged: gives a context in which the model has its moving averages, such as
            `training.averaged_weights`; None evaluates the weights as they are only.
        predictor: what predicts in the model's place, such as `training.Cluster.predictor(model)`.
        gather: puts the counts of several processes together, as `training.Cluster.gather`; all
            processes then evaluate alike, each its share of the batches.
        verbose: whether to show progress and print the result.
        on_batch: called with the batches done and all of them, instead of Keras' progress bar.

    Attributes:
        results: the last numbers, by their names in the logs.
        confusion: `(num_classes, num_classes)` int64, images by true and by predicted label, of the
            averaged weights where they are evaluated; None before the first evaluation. Not saved
            with checkpoints.
    """

    def __init__(
        self,
        batches: EvaluationBatches,
        num_classes: int,
        *,
        every: int = 1,
        averaged: Callable[[], contextlib.AbstractContextManager] | None = None,
        predictor: Any = None,
        gather: Gather | None = None,
        verbose: bool = True,
        on_batch: OnBatch | None = None,
    ) -> None:
        super().__init__(
            batches,
            every=every,
            predictor=predictor,
            gather=gather,
            verbose=verbose,
            on_batch=on_batch,
        )
        self.num_classes = num_classes
        self.averaged = averaged
        self.monitor = "val_top1" if averaged is None else "ema_val_top1"
        self.confusion: np.ndarray | None = None

    def forget(self) -> None:
        """Forgets the last numbers, which are of other weights than the model has now."""
        super().forget()
        self.confusion = None

    def logged(self) -> dict[str, float]:
        """All of them."""
        return self.results

    def evaluate(self, model: Any) -> dict[str, float]:
        """Evaluates now, also outside of `fit`; sets `results` and `confusion`.

        Args:
            model: as for `count_predictions`.

        Returns:
            `results`.
        """
        contexts = {"val": contextlib.nullcontext, "ema_val": self.averaged}
        self.results = {}
        for prefix, context in contexts.items():
            if context is None:
                continue
            with context():
                counts = count_predictions(
                    self.predictor or model, self.batches, self.num_classes, self.shown()
                )
            if self.gather is not None:
                counts = counts.gathered(self.gather)
            named = {f"{prefix}_{name}": value for name, value in counts.results().items()}
            self.results.update(named)
            self.confusion = counts.confusion
        return self.results
