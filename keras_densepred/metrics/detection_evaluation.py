"""Evaluation of a detector on a split, by itself and during `fit`."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

import numpy as np

from keras_densepred.data.batches.model_input import model_input
from keras_densepred.metrics.average_precision import (
    MASK_PREFIX,
    SUMMARY_KEYS,
    coco_average_precision,
)
from keras_densepred.metrics.coco_results import as_arrays, detections_to_coco, from_arrays
from keras_densepred.metrics.evaluation import Evaluation, EvaluationBatches, Gather, OnBatch, Once
from keras_densepred.metrics.mask_results import rle_to_masks


class EvaluationDataset(Protocol):
    """What evaluation needs of a data set; all of `keras_densepred.data` provide it."""

    @property
    def category_ids(self) -> tuple[int, ...]: ...

    def ground_truth(self) -> dict: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a detector found on a split, beside what there is.

    Attributes:
        ground_truth: a COCO dictionary of the images that were looked at: those that could not be
            read, and were passed over, are not in it.
        detections: COCO results with boxes, and with masks where `has_masks`.
        has_masks: whether the model predicts masks, and the split has them.
    """

    ground_truth: dict[str, Any]
    detections: list[dict[str, Any]]
    has_masks: bool = False

    @property
    def images(self) -> int:
        """How many images were looked at."""
        return len(self.ground_truth["images"])

    def without_boxes(self) -> list[dict[str, Any]]:
        """The detections for COCO's evaluation of masks, which measured them by a box beside."""
        return [{k: v for k, v in item.items() if k != "bbox"} for item in self.detections]

    def on_image(self, image_id: int, category_ids: Sequence[int]) -> dict[str, np.ndarray]:
        """What was found on an image, as `detections_on_image` gives it.

        Args:
            image_id: of the image.
            category_ids: of each label.
        """
        items = [item for item in self.detections if item["image_id"] == image_id]
        label_of = {category_id: label for label, category_id in enumerate(category_ids)}
        boxes = np.array([item["bbox"] for item in items], np.float64).reshape(-1, 4)
        found = {
            "boxes": np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            "labels": np.array([label_of[item["category_id"]] for item in items], np.int64),
            "confidence": np.array([item["score"] for item in items], np.float64),
        }
        if self.has_masks:
            image = next(i for i in self.ground_truth["images"] if i["id"] == image_id)
            lengths = [item["segmentation"] for item in items]
            found["masks"] = rle_to_masks(lengths, image["height"], image["width"])
        return found

    def results(self) -> dict[str, float]:
        """What `evaluate_detector` returns."""
        results = coco_average_precision(self.ground_truth, self.detections)
        if self.has_masks:
            scores = coco_average_precision(self.ground_truth, self.without_boxes(), "segm")
            results |= {f"{MASK_PREFIX}{key}": value for key, value in scores.items()}
        return results


def find_objects(
    model: Any,
    batches: EvaluationBatches,
    dataset: EvaluationDataset,
    on_batch: Callable[[int], None] | None = None,
    gather: Gather | None = None,
) -> Found:
    """Runs a detector over a split.

    Args:
        model: whatever has `predict_on_batch(images) -> {"boxes", "labels", "confidence"}` as
            `detections_to_coco` takes them; see `data.model_input` for what it is given.
        batches: `data.eval_batches` of the split; with `gather` this process' share of them.
        dataset: the split.
        on_batch: called with the number of batches done, for progress.
        gather: concatenates the arrays of several processes, as `training.Cluster.gather` does; all
            processes then call this function and get the same result.

    Returns:
        The detections of all processes, with masks if the model predicts them and the split has
        them.
    """
    ground_truth = dataset.ground_truth()
    image_sizes = {item["id"]: (item["height"], item["width"]) for item in ground_truth["images"]}
    has_masks = all("segmentation" in item for item in ground_truth["annotations"])
    detections: list[dict[str, Any]] = []
    seen: set[int] = set()
    for done, batch in enumerate(batches, start=1):
        predictions = model.predict_on_batch(model_input(model, batch))
        has_masks &= "masks" in predictions
        if not has_masks:
            predictions = {key: value for key, value in predictions.items() if key != "masks"}
        detections += detections_to_coco(predictions, batch, dataset.category_ids, image_sizes)
        seen.update(np.asarray(batch["image_ids"])[np.asarray(batch["valid"])].tolist())
        if on_batch is not None:
            on_batch(done)
    if gather is not None:
        detections = from_arrays(gather(as_arrays(detections, has_masks)))
        seen.update(gather({"image_ids": np.array(sorted(seen), np.int64)})["image_ids"].tolist())
    return Found(_of_images(ground_truth, seen), detections, has_masks)


def _of_images(ground_truth: dict[str, Any], image_ids: Container[int]) -> dict[str, Any]:
    """A COCO dictionary of some of its images: objects that nobody could see are not missed."""
    images = [item for item in ground_truth["images"] if item["id"] in image_ids]
    if len(images) == len(ground_truth["images"]):
        return ground_truth
    annotations = [item for item in ground_truth["annotations"] if item["image_id"] in image_ids]
    return {**ground_truth, "images": images, "annotations": annotations}


def evaluate_detector(
    model: Any,
    batches: EvaluationBatches,
    dataset: EvaluationDataset,
    on_batch: Callable[[int], None] | None = None,
    gather: Gather | None = None,
) -> dict[str, float]:
    """Average precision of a model on a split; the arguments are those of `find_objects`.

    Returns:
        What `coco_average_precision` returns; of a model that predicts masks, on a split that has
        them, also the same for masks, under names that begin with `MASK_PREFIX`.
    """
    return find_objects(model, batches, dataset, on_batch, gather).results()


class CocoEvaluation(Evaluation):
    """Evaluates average precision during `fit`, on any backend.

    After an epoch the numbers of `SUMMARY_KEYS` are in the logs as `val_AP`, `val_AP50` and so on,
    those of masks as `val_mask_AP` and so on, so that `CSVLogger`,
    `ModelCheckpoint(monitor="val_AP", mode="max")` and the history see them, provided this callback
    is listed before them. Those without any object to measure, such as `val_APl` of a split without
    large objects, are left out.

    Args:
        batches: `data.eval_batches` of the split.
        dataset: the split.
        every: epochs between evaluations; the last epoch is always evaluated.
        weights: returns a context in which the model has the weights to evaluate, such as their
            moving averages; by default its current weights.
        predictor: predicts instead of the model, such as `training.Cluster.predictor(model)`.
        gather: as in `evaluate_detector`.
        once: takes what computes the numbers and gives them, as `training.Cluster.once`, so that
            one of several processes computes them for all.
        verbose: whether to show progress and print the result.
        on_batch: called with the batches done and all of them, instead of Keras' progress bar.

    Attributes:
        results: what `coco_average_precision` gave last, single classes included.
        found: what the last epoch's evaluation found; None before it. Not saved with checkpoints.
    """

    monitor = "val_AP"

    def __init__(
        self,
        batches: EvaluationBatches,
        dataset: EvaluationDataset,
        *,
        every: int = 1,
        weights: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        predictor: Any = None,
        gather: Gather | None = None,
        once: Once = operator.call,
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
        self.dataset = dataset
        self.once = once
        self.weights = weights
        self.found: Found | None = None

    def forget(self) -> None:
        """Forgets the last numbers, which are of other weights than the model has now."""
        super().forget()
        self.found = None

    def evaluate(self, model: Any) -> dict[str, float]:
        """Evaluates now, also outside of `fit`; sets `results` and `found`.

        Args:
            model: as for `find_objects`.

        Returns:
            `results`.
        """
        with self.weights():
            self.found = find_objects(
                self.predictor or model, self.batches, self.dataset, self.shown(), self.gather
            )
        self.results = self.once(self.found.results)
        return self.results

    def logged(self) -> dict[str, float]:
        """Those of all classes together; what was not to be measured is left out."""
        keys = [*SUMMARY_KEYS, *(f"{MASK_PREFIX}{key}" for key in SUMMARY_KEYS)]
        return {f"val_{key}": self.results[key] for key in keys if self.results.get(key, -1.0) >= 0}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Evaluates when it is time."""
        super().on_epoch_end(epoch, logs)
        if not self.is_last(epoch):
            # Nobody asks for it any more, and that of a large split takes memory.
            self.found = None
