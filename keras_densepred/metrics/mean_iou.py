"""Mean intersection over union of semantic segmentation, over every labelled pixel of a split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.records import IGNORE_LABEL
from keras_densepred.metrics.evaluation import Evaluation, EvaluationBatches, Gather, OnBatch

SEGMENTATION_KEYS = ("mIoU", "pixel_accuracy")
"""The numbers of all classes together in the logs and results of segmentation."""

Predict = Callable[[np.ndarray], np.ndarray]


class PixelCounts:
    """A confusion matrix of pixels; the counts of parts of a split add up to those of the whole.

    Args:
        num_classes: C, labels are `0 .. C - 1`.
        ignore_label: true label of pixels that do not count.

    Attributes:
        confusion: `(C, C)` int64, pixels by true (row) and predicted label (column).

    Raises:
        ValueError: if `num_classes` is not positive.
    """

    def __init__(self, num_classes: int, ignore_label: int = IGNORE_LABEL) -> None:
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, and is {num_classes}.")
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.confusion = np.zeros((num_classes, num_classes), np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Counts pixels.

        Args:
            truth: integers of any shape, `0 .. C - 1` or `ignore_label`.
            predicted: integers of the same shape, `0 .. C - 1` where the truth is a class.

        Raises:
            ValueError: if the shapes differ, or a label that counts is none of these.
        """
        if truth.shape != predicted.shape:
            raise ValueError(
                f"Truth has the shape {truth.shape} and prediction {predicted.shape}: give masks "
                "of one size."
            )
        counted = truth != self.ignore_label
        true = truth[counted].astype(np.int64)
        found = predicted[counted].astype(np.int64)
        for name, labels in (("truth", true), ("prediction", found)):
            if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
                wrong = labels[(labels < 0) | (labels >= self.num_classes)][0]
                raise ValueError(
                    f"The {name} has label {wrong}, and there are {self.num_classes} classes, "
                    f"labels 0 to {self.num_classes - 1}."
                )
        cells = np.bincount(true * self.num_classes + found, minlength=self.num_classes**2)
        self.confusion += cells.reshape(self.confusion.shape)

    def gathered(self, gather: Gather) -> PixelCounts:
        """The counts of all processes together.

        Args:
            gather: concatenates arrays of the processes along axis 0, as `training.Cluster.gather`.
        """
        total = PixelCounts(self.num_classes, self.ignore_label)
        total.confusion = gather({"confusion": self.confusion[None]})["confusion"].sum(axis=0)
        return total

    def results(self, class_names: Sequence[str]) -> dict[str, float]:
        """The numbers of what was counted.

        The intersection over union of a class is `TP / (TP + FP + FN)` over all pixels of the
        split together, as VOC's (not a mean over images). A class that neither the truth nor the
        prediction has does not enter the mean and is -1; one that is only predicted is 0 and
        does.

        Args:
            class_names: name of each label.

        Returns:
            `mIoU`, `pixel_accuracy` (aAcc: share of the labelled pixels that are right),
            `mean_accuracy` (mAcc: mean over the classes of the truth of the share of their pixels
            that is right), and `IoU/{class name}` for each class, all in 0..1, or -1 where there is
            nothing to measure.
        """
        both = np.diag(self.confusion)
        of_class = self.confusion.sum(axis=1)
        union = self.confusion.sum(axis=0) + of_class - both
        seen = union > 0
        overlap = np.where(seen, both / np.maximum(union, 1), -1.0)
        pixels = int(self.confusion.sum())
        return {
            "mIoU": float(overlap[seen].mean()) if seen.any() else -1.0,
            "pixel_accuracy": float(both.sum() / pixels) if pixels else -1.0,
            "mean_accuracy": float((both[of_class > 0] / of_class[of_class > 0]).mean())
            if pixels
            else -1.0,
            **{
                f"IoU/{name}": float(value)
                for name, value in zip(class_names, overlap, strict=True)
            },
        }


def labels_at_own_size(scores: np.ndarray, batch: Mapping[str, np.ndarray], row: int) -> np.ndarray:
    """The predicted class of each pixel of an image as it is in its file.

    Args:
        scores: `(B, H, W, C)` float, logits or probabilities at the size of the network input.
        batch: of `data.eval_mask_batches`.
        row: which image.

    Returns:
        `(Y, X)` int64. Scores are resized bilinearly before the highest is taken.

    Raises:
        ValueError: if a score is not finite.
    """
    height, width = batch["image_sizes"][row].tolist()
    image = np.ascontiguousarray(scores[row, :height, :width], np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            "There are scores that are not finite; the network has probably diverged, look at its "
            "training loss."
        )
    own_height, own_width = batch["semantic_sizes"][row].tolist()
    if (height, width) != (own_height, own_width):
        cv2 = require("cv2", "data")
        image = cv2.resize(image, (own_width, own_height), interpolation=cv2.INTER_LINEAR)
        image = image.reshape(own_height, own_width, -1)  # OpenCV drops a single channel
    return image.argmax(axis=-1)


def count_pixels(
    predict: Predict,
    batches: EvaluationBatches,
    num_classes: int,
    on_batch: Callable[[int], None] | None = None,
) -> PixelCounts:
    """Runs a segmenter over a split.

    Args:
        predict: images `(B, H, W, 3)` -> logits or probabilities `(B, H, W, C)`:
            `model.predict_on_batch`, or it in `models.sliding_window` or `models.multi_scale`.
        batches: `data.eval_mask_batches` of the split.
        num_classes: C.
        on_batch: called with the number of batches done, for progress.

    Returns:
        The counts; of a process's share of the split, if the batches are that.

    Raises:
        ValueError: if the scores have another shape or are not finite.
    """
    counts = PixelCounts(num_classes)
    for done, batch in enumerate(batches, start=1):
        scores = np.asarray(predict(batch["images"]))
        if scores.shape != (*batch["images"].shape[:3], num_classes):
            raise ValueError(
                f"The model gives an output of shape {scores.shape} for images of shape "
                f"{batch['images'].shape} and {num_classes} classes; it must give one score a "
                "pixel and class."
            )
        for row in np.flatnonzero(batch["valid"]).tolist():
            height, width = batch["semantic_sizes"][row].tolist()
            truth = batch["semantic"][row, :height, :width]
            counts.update(truth, labels_at_own_size(scores, batch, row))
        if on_batch is not None:
            on_batch(done)
    return counts


class SegmentationEvaluation(Evaluation):
    """Evaluates mean intersection over union during `fit`, on any backend.

    After an epoch the numbers of `SEGMENTATION_KEYS` are in the logs as `val_mIoU` and
    `val_pixel_accuracy`, so that `CSVLogger`, `ModelCheckpoint(monitor="val_mIoU", mode="max")`
    and the history see them, provided this callback is listed before them.

    Args:
        batches: `data.eval_mask_batches` of the split.
        class_names: name of each label.
        every: epochs between evaluations; the last epoch is always evaluated.
        weights: returns a context in which the model has the weights to evaluate, such as their
            moving averages; by default its current weights.
        inference: wraps `model.predict_on_batch`, for instance in `models.multi_scale`; by default
            whole images are predicted as they are in the batch.
        predictor: predicts instead of the model, such as `training.Cluster.predictor(model)`.
        gather: puts the counts of several processes together, as `training.Cluster.gather`; all
            processes then evaluate alike, each its share of the batches.
        verbose: whether to show progress and print the result.
        on_batch: called with the batches done and all of them, instead of Keras' progress bar.

    Attributes:
        results: what `PixelCounts.results` gave last, single classes included.
        confusion: `(C, C)` int64, pixels by true and by predicted label; None before the first
            evaluation. Not saved with checkpoints.
    """

    monitor = "val_mIoU"

    def __init__(
        self,
        batches: EvaluationBatches,
        class_names: Sequence[str],
        *,
        every: int = 1,
        weights: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        inference: Callable[[Predict], Predict] | None = None,
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
        self.class_names = tuple(class_names)
        self.weights = weights
        self.inference = inference
        self.confusion: np.ndarray | None = None

    def forget(self) -> None:
        """Forgets the last numbers, which are of other weights than the model has now."""
        super().forget()
        self.confusion = None

    def logged(self) -> dict[str, float]:
        """Those of all classes together."""
        return {f"val_{key}": self.results[key] for key in SEGMENTATION_KEYS}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Evaluates now, also outside of `fit`; sets `results` and `confusion`.

        Args:
            model: whatever has `predict_on_batch` as `count_pixels` wants it.

        Returns:
            `results`.
        """
        predict = (self.predictor or model).predict_on_batch
        if self.inference is not None:
            predict = self.inference(predict)
        with self.weights():
            counts = count_pixels(predict, self.batches, len(self.class_names), self.shown())
        if self.gather is not None:
            counts = counts.gathered(self.gather)
        self.confusion = counts.confusion
        self.results = counts.results(self.class_names)
        return self.results
