"""Metrics of dense prediction: COCO average precision."""

from keras_densepred.metrics.coco_map import (
    SUMMARY_KEYS,
    CocoEvaluation,
    coco_average_precision,
    detections_to_coco,
    evaluate_detector,
)

__all__ = [
    "SUMMARY_KEYS",
    "CocoEvaluation",
    "coco_average_precision",
    "detections_to_coco",
    "evaluate_detector",
]
