"""Metrics of dense prediction and classification: COCO average precision, top-1 and top-5."""

from keras_densepred.metrics.classification import (
    ClassificationCounts,
    ClassificationEvaluation,
    count_predictions,
)
from keras_densepred.metrics.coco_map import (
    SUMMARY_KEYS,
    CocoEvaluation,
    coco_average_precision,
    detections_to_coco,
    evaluate_detector,
)

__all__ = [
    "SUMMARY_KEYS",
    "ClassificationCounts",
    "ClassificationEvaluation",
    "CocoEvaluation",
    "coco_average_precision",
    "count_predictions",
    "detections_to_coco",
    "evaluate_detector",
]
