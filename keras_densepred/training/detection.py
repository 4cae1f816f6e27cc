"""A detector's predictions on some images of a split, ready to be drawn."""

import itertools
from typing import Any

import numpy as np

from keras_densepred.metrics.mask_results import masks_on_image

SAMPLES = 8


def predict_samples(
    predictor: Any, batches: Any, dataset: Any, batch_count: int
) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Takes up to eight images of the first batches: images, objects, what is found.

    Args:
        predictor: has `predict_on_batch`, as a detector or `Cluster.predictor` of one.
        batches: `data.eval_batches` of the split.
        dataset: the split.
        batch_count: batches to run; processes that predict together take the same number.

    Returns:
        Three lists as `draw_predictions` takes them, in pixels of the images; with masks where the
        records and the predictions have them.
    """
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    images, truth, found = [], [], []
    for batch in itertools.islice(batches, batch_count):
        predictions = predictor.predict_on_batch(batch["images"])
        for row in np.flatnonzero(batch["valid"])[: SAMPLES - len(images)]:
            record = dataset[index_of[int(batch["image_ids"][row])]]
            images.append(record.image)
            objects = {"boxes": record.boxes, "labels": record.labels}
            if record.masks is not None:
                objects["masks"] = record.masks
            truth.append(objects)
            found.append(_detections(predictions, batch, row, record.size))
    return images, truth, found


def _detections(
    predictions: dict[str, np.ndarray],
    batch: dict[str, np.ndarray],
    row: int,
    size: tuple[int, int],
) -> dict[str, np.ndarray]:
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
