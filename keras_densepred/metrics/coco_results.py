"""A detector's predictions as COCO results, and back on the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_densepred.metrics.mask_results import (
    masks_on_image,
    masks_to_rle,
    run_lengths,
    segmentations_as_arrays,
    segmentations_from_arrays,
)


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
        `"boxes"` (N, 4) xyxy inside the image, `"labels"` (N,), `"confidence"` (N,), and where they
        are predicted `"masks"` (N, H, W) bool.
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
    # After the masks, which reach from edge to edge of the boxes as they are.
    detections["boxes"] = np.clip(boxes, 0, np.tile(size, 2)[::-1])
    return detections


def objects_to_coco(
    image_id: int,
    category_ids: Sequence[int],
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    masks: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """The objects of an image, in its own pixels, as COCO results.

    Args:
        image_id: of the image.
        category_ids: label -> COCO category id.
        boxes: (N, 4) xyxy.
        labels: (N,) from 0.
        scores: (N,) confidences.
        masks: (N, H, W) bool.

    Returns:
        As `detections_to_coco`.
    """
    corners = boxes.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    numbers = zip(corners.tolist(), labels.tolist(), scores.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": box,
            "score": score,
            **({} if masks is None else {"segmentation": run_lengths(masks[index])}),
        }
        for index, (box, label, score) in enumerate(numbers)
    ]


def as_arrays(detections: Sequence[Mapping[str, Any]], has_masks: bool) -> dict[str, np.ndarray]:
    """Results as numbers, which processes can send each other."""
    ids = [(item["image_id"], item["category_id"]) for item in detections]
    numbers = [(*item["bbox"], item["score"]) for item in detections]
    return {
        "ids": np.array(ids, np.int64).reshape(-1, 2),
        "numbers": np.array(numbers, np.float64).reshape(-1, 5),
        **(segmentations_as_arrays(detections) if has_masks else {}),
    }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The inverse of `as_arrays`."""
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
