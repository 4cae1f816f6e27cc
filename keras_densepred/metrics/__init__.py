"""Metrics: COCO average precision, mean intersection over union, top-1 and top-5."""

from keras_densepred.metrics.average_precision import (
    MASK_PREFIX,
    SUMMARY_KEYS,
    CocoEvaluation,
    coco_average_precision,
    detections_on_image,
    detections_to_coco,
    evaluate_and_choose,
    evaluate_detector,
)
from keras_densepred.metrics.classification import (
    ClassificationCounts,
    ClassificationEvaluation,
    count_predictions,
)
from keras_densepred.metrics.mean_iou import (
    SEGMENTATION_KEYS,
    PixelCounts,
    SegmentationEvaluation,
    count_pixels,
    labels_at_own_size,
)
from keras_densepred.metrics.threshold import best_threshold

__all__ = [
    "MASK_PREFIX",
    "SEGMENTATION_KEYS",
    "SUMMARY_KEYS",
    "ClassificationCounts",
    "ClassificationEvaluation",
    "CocoEvaluation",
    "PixelCounts",
    "SegmentationEvaluation",
    "best_threshold",
    "coco_average_precision",
    "count_pixels",
    "count_predictions",
    "detections_on_image",
    "detections_to_coco",
    "evaluate_and_choose",
    "evaluate_detector",
    "labels_at_own_size",
]
