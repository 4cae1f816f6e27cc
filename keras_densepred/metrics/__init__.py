"""Metrics: COCO average precision, mean intersection over union, top-1 and top-5."""

from keras_densepred.metrics.average_precision import (
    MASK_PREFIX,
    SUMMARY_KEYS,
    CocoScores,
    coco_average_precision,
)
from keras_densepred.metrics.classification import (
    ClassificationCounts,
    ClassificationEvaluation,
    count_predictions,
)
from keras_densepred.metrics.coco_results import (
    detections_on_image,
    detections_to_coco,
    objects_to_coco,
)
from keras_densepred.metrics.detection_evaluation import (
    CocoEvaluation,
    Found,
    evaluate_detector,
    find_objects,
)
from keras_densepred.metrics.detection_report import DetectionReport
from keras_densepred.metrics.error_split import ERRORS, ErrorSplit, split_errors
from keras_densepred.metrics.matching import Matching, best_threshold, match
from keras_densepred.metrics.mean_iou import (
    SEGMENTATION_KEYS,
    PixelCounts,
    SegmentationEvaluation,
    count_pixels,
    labels_at_own_size,
)

__all__ = [
    "ERRORS",
    "MASK_PREFIX",
    "SEGMENTATION_KEYS",
    "SUMMARY_KEYS",
    "ClassificationCounts",
    "ClassificationEvaluation",
    "CocoEvaluation",
    "CocoScores",
    "DetectionReport",
    "ErrorSplit",
    "Found",
    "Matching",
    "PixelCounts",
    "SegmentationEvaluation",
    "best_threshold",
    "coco_average_precision",
    "count_pixels",
    "count_predictions",
    "detections_on_image",
    "detections_to_coco",
    "evaluate_detector",
    "find_objects",
    "labels_at_own_size",
    "match",
    "objects_to_coco",
    "split_errors",
]
