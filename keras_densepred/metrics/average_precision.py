"""COCO average precision: the exact protocol, by faster-coco-eval, over every image of a split."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import keras
import numpy as np

from keras_densepred._optional import require
from keras_densepred.data.batches.model_input import model_input
from keras_densepred.metrics.mask_results import (
    masks_on_image,
    masks_to_rle,
    segmentations_as_arrays,
    segmentations_from_arrays,
)
from keras_densepred.metrics.shown import OnBatch, shown
from keras_densepred.metrics.threshold import best_threshold

SUMMARY_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
"""The numbers that `coco_average_precision` gives for all classes together."""

MASK_PREFIX = "mask_"
"""What precedes the names of the same numbers for masks."""

Gather = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class EvaluationDataset(Protocol):
    """What evaluation needs of a data set; all of `keras_densepred.data` provide it."""

    @property
    def category_ids(self) -> tuple[int, ...]: ...

    def ground_truth(self) -> dict: ...


class EvaluationBatches(Protocol):
    """What evaluation needs of `data.eval_batches`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


def coco_average_precision(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    iou_type: Literal["bbox", "segm"] = "bbox",
) -> dict[str, float]:
    """COCO's detection metrics of a whole split.

    Images without detections count, and so do images without objects. Crowd regions are ignored: a
    detection inside one is neither right nor wrong. An object's size is its `area` if it has one,
    else that of its box. Annotation ids play no part: pycocotools counts an object with id 0 as
    missed, this does not.

    Args:
        ground_truth: a COCO dictionary (`images`, `categories`, `annotations`); left as it is.
        detections: COCO results: `image_id`, `category_id`, `score`, and `bbox`
            `[x, y, width, height]` in original pixels or `segmentation` in compressed run lengths.
        iou_type: `"bbox"` or `"segm"`.

    Returns:
        `AP` (IoU 0.50:0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (objects below 32^2, up to 96^2,
        and above, in pixels), `AR100`, and `AP/{class name}` for each class, all in 0..1. A number
        without any object to measure is -1, as in COCO; without any detection the others are 0.

    Raises:
        ValueError: if a detection is of an image or category that the ground truth does not have,
            or its score or box is not finite.
        ImportError: if faster-coco-eval is not installed.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f'`iou_type` must be "bbox" or "segm", and is {iou_type!r}.')
    evaluator = require("faster_coco_eval", "data")
    _check_detections(ground_truth, detections)
    truth = evaluator.COCO(_plain_ground_truth(ground_truth))
    # Copies of everything: the evaluator writes into what it is given.
    found = truth.loadRes([dict(item) for item in detections])
    run = evaluator.COCOeval_faster(truth, found, iou_type, print_function=_silent)
    run.evaluate()
    run.accumulate()

    # precision: (IoU, recall, class, area, detections), recall: (IoU, class, area, detections);
    # area is all, small, medium, large; the last number of detections is 100.
    precision, recall = run.eval["precision"][..., -1], run.eval["recall"][..., -1]
    iou = np.round(run.params.iouThrs, 2)
    metrics = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[iou == 0.5][..., 0]),
        "AP75": _mean(precision[iou == 0.75][..., 0]),
        "APs": _mean(precision[..., 1]),
        "APm": _mean(precision[..., 2]),
        "APl": _mean(precision[..., 3]),
        "AR100": _mean(recall[..., 0]),
    }
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    for position, category_id in enumerate(run.params.catIds):
        metrics[f"AP/{names[category_id]}"] = _mean(precision[:, :, position, 0])
    return metrics


def detections_to_coco(
    predictions: Mapping[str, np.ndarray],
    batch: Mapping[str, np.ndarray],
    category_ids: Sequence[int],
    image_sizes: Mapping[int, tuple[int, int]],
) -> list[dict[str, Any]]:
    """A batch of decoded predictions as COCO results in original pixels.

    Args:
        predictions: `boxes` `(B, K, 4)` xyxy in pixels of the network input, `labels` `(B, K)`
            with -1 in unused rows, `confidence` `(B, K)`; and of detectors with masks `masks`
            `(B, K, S, S)` probabilities from edge to edge of the boxes.
        batch: of `data.eval_batches`: `image_ids` `(B,)`, `scales` `(B, 2)` (y, x), `valid`
            `(B,)`; rows that are not valid are left out.
        category_ids: label -> COCO category id.
        image_sizes: image id -> `(height, width)` in original pixels; boxes are cut there.

    Returns:
        One dictionary for each detection: `image_id`, `category_id`, `bbox`, `score`, and with
        masks `segmentation`.
    """
    results = []
    for row in np.flatnonzero(batch["valid"]):
        used = np.asarray(predictions["labels"][row]) >= 0
        image_id = int(batch["image_ids"][row])
        height, width = image_sizes[image_id]
        scale_y, scale_x = batch["scales"][row].astype(np.float64)
        boxes = np.asarray(predictions["boxes"][row], np.float64)[used]
        boxes = boxes / (scale_x, scale_y, scale_x, scale_y)
        segmentations: list[dict[str, Any]] = [{} for _ in boxes]
        if "masks" in predictions:
            masks = np.asarray(predictions["masks"][row], np.float64)[used]
            segmentations = [
                {"segmentation": rle} for rle in masks_to_rle(masks, boxes, height, width)
            ]
        # After the masks, which reach from edge to edge of the boxes as they are.
        boxes = np.clip(boxes, 0, (width, height, width, height))
        boxes[:, 2:] -= boxes[:, :2]
        labels = np.asarray(predictions["labels"][row])[used].tolist()
        scores = np.asarray(predictions["confidence"][row], np.float64)[used].tolist()
        for box, label, score, segmentation in zip(
            boxes.tolist(), labels, scores, segmentations, strict=True
        ):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(category_ids[label]),
                    "bbox": box,
                    "score": score,
                    **segmentation,
                }
            )
    return results


def detections_on_image(
    predictions: Mapping[str, np.ndarray],
    batch: Mapping[str, np.ndarray],
    row: int,
    size: tuple[int, int],
) -> dict[str, np.ndarray]:
    """What a detector found in an image, in pixels of the image as it is in its file.

    Args:
        predictions: of the detector for a batch.
        batch: of `data.eval_batches`.
        row: which image.
        size: height and width of the image in pixels.

    Returns:
        `"boxes"` (N, 4) xyxy, `"labels"` (N,), `"confidence"` (N,), and where they are predicted
        `"masks"` (N, H, W) bool.
    """
    used = predictions["labels"][row] >= 0
    boxes = predictions["boxes"][row][used] / np.tile(batch["scales"][row], 2)[::-1]
    detections = {
        "boxes": boxes,
        "labels": predictions["labels"][row][used],
        "confidence": predictions["confidence"][row][used],
    }
    if "masks" in predictions:
        detections["masks"] = masks_on_image(predictions["masks"][row][used], boxes, *size)
    return detections


def evaluate_detector(
    model: Any,
    batches: EvaluationBatches,
    dataset: EvaluationDataset,
    on_batch: Callable[[int], None] | None = None,
    gather: Gather | None = None,
) -> dict[str, float]:
    """Average precision of a model on a split.

    Args:
        model: whatever has `predict_on_batch(images) -> {"boxes", "labels", "confidence"}` as
            `detections_to_coco` takes them; see `data.model_input` for what it is given.
        batches: `data.eval_batches` of the split; with `gather` this process' share of them.
        dataset: the split.
        on_batch: called with the number of batches done, for progress.
        gather: concatenates the arrays of several processes, as `training.Cluster.gather` does; all
            processes then call this function and get the same result.

    Returns:
        What `coco_average_precision` returns; of a model that predicts masks, on a split that has
        them, also the same for masks, under names that begin with `MASK_PREFIX`.
    """
    return evaluate_and_choose(model, batches, dataset, on_batch, gather)[0]


def evaluate_and_choose(
    model: Any,
    batches: EvaluationBatches,
    dataset: EvaluationDataset,
    on_batch: Callable[[int], None] | None = None,
    gather: Gather | None = None,
) -> tuple[dict[str, float], float]:
    """`evaluate_detector`, and the score threshold of the best F1 (`best_threshold`)."""
    ground_truth = dataset.ground_truth()
    image_sizes = {item["id"]: (item["height"], item["width"]) for item in ground_truth["images"]}
    has_masks = all("segmentation" in item for item in ground_truth["annotations"])
    detections: list[dict[str, Any]] = []
    for done, batch in enumerate(batches, start=1):
        predictions = model.predict_on_batch(model_input(model, batch))
        has_masks &= "masks" in predictions
        if not has_masks:
            predictions = {key: value for key, value in predictions.items() if key != "masks"}
        detections += detections_to_coco(predictions, batch, dataset.category_ids, image_sizes)
        if on_batch is not None:
            on_batch(done)
    if gather is not None:
        detections = _from_arrays(gather(_as_arrays(detections, has_masks)))
    results = coco_average_precision(ground_truth, detections)
    if has_masks:
        # With a box beside it the evaluator would measure an object by its box.
        masks = [{k: v for k, v in item.items() if k != "bbox"} for item in detections]
        scores = coco_average_precision(ground_truth, masks, "segm")
        results |= {f"{MASK_PREFIX}{key}": value for key, value in scores.items()}
    return results, best_threshold(ground_truth, detections)[0]


def _as_arrays(detections: Sequence[Mapping[str, Any]], has_masks: bool) -> dict[str, np.ndarray]:
    ids = [(item["image_id"], item["category_id"]) for item in detections]
    numbers = [(*item["bbox"], item["score"]) for item in detections]
    return {
        "ids": np.array(ids, np.int64).reshape(-1, 2),
        "numbers": np.array(numbers, np.float64).reshape(-1, 5),
        **(segmentations_as_arrays(detections) if has_masks else {}),
    }


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    detections = [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for (image_id, category_id), (*box, score) in zip(
            arrays["ids"].tolist(), arrays["numbers"].tolist(), strict=True
        )
    ]
    if "rle_bytes" in arrays:
        segmentations = segmentations_from_arrays(arrays)
        for item, segmentation in zip(detections, segmentations, strict=True):
            item["segmentation"] = segmentation
    return detections


class CocoEvaluation(keras.callbacks.Callback):
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
        verbose: whether to show progress and print the result.
        on_batch: called with the batches done and all of them, instead of Keras' progress bar.

    Attributes:
        results: what `coco_average_precision` gave last, single classes included.
        threshold: the score from which on F1 was best then.
    """

    def __init__(
        self,
        batches: EvaluationBatches,
        dataset: EvaluationDataset,
        *,
        every: int = 1,
        weights: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        predictor: Any = None,
        gather: Gather | None = None,
        verbose: bool = True,
        on_batch: OnBatch | None = None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be at least 1 epoch, and is {every}.")
        self.batches = batches
        self.dataset = dataset
        self.every = every
        self.weights = weights
        self.predictor = predictor
        self.gather = gather
        self.verbose = verbose
        self.on_batch = on_batch
        self.results: dict[str, float] = {}
        self.threshold = 0.0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        is_last = epoch + 1 == (self.params or {}).get("epochs")
        if (epoch + 1) % self.every and not is_last:
            return
        show = shown(self.batches, self.on_batch, self.verbose)
        with self.weights():
            self.results, self.threshold = evaluate_and_choose(
                self.predictor or self.model,
                self.batches,
                self.dataset,
                show,
                self.gather,
            )
        keys = [*SUMMARY_KEYS, *(f"{MASK_PREFIX}{key}" for key in SUMMARY_KEYS)]
        keys = [key for key in keys if self.results.get(key, -1.0) >= 0]
        if logs is not None:
            logs.update({f"val_{key}": self.results[key] for key in keys})
        if self.verbose:
            print(", ".join(f"val_{key} {self.results[key]:.3f}" for key in keys))


def _check_detections(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> None:
    for field, known in (
        ("image_id", {image["id"] for image in ground_truth["images"]}),
        ("category_id", {category["id"] for category in ground_truth["categories"]}),
    ):
        unknown = {item[field] for item in detections} - known
        if unknown:
            raise ValueError(
                f"There are detections with {field} {min(unknown)}, which the ground truth does "
                "not have; evaluate a model on the split that it was run on."
            )
    numbers = ((item["score"], *item.get("bbox", ())) for item in detections)
    if not np.isfinite(np.fromiter(itertools.chain.from_iterable(numbers), np.float64)).all():
        raise ValueError(
            "There are detections with a score or box that is not finite; the network has probably "
            "diverged, look at its training loss."
        )


def _plain_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with everything that the evaluator expects, and annotation ids from 1 on."""
    annotations = []
    for number, item in enumerate(ground_truth["annotations"], start=1):
        plain = {"iscrowd": 0, **item, "id": number}
        if "area" not in plain:
            plain["area"] = item["bbox"][2] * item["bbox"][3]
        annotations.append(plain)
    return {
        "images": [dict(image) for image in ground_truth["images"]],
        "categories": [dict(category) for category in ground_truth["categories"]],
        "annotations": annotations,
    }


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _silent(*message: object) -> None:
    del message
