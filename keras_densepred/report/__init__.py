"""What is drawn and written about a model: on pictures, in tables, as figures."""

from keras_densepred.report.classification import draw_classified
from keras_densepred.report.confusion import confusion_png, draw_confusion
from keras_densepred.report.detection import (
    describe_errors,
    evaluation_json,
    write_detection_report,
)
from keras_densepred.report.objects import draw_predictions, samples_of
from keras_densepred.report.semantic import describe_iou, draw_segmentations, iou_csv

__all__ = [
    "confusion_png",
    "describe_errors",
    "describe_iou",
    "draw_classified",
    "draw_confusion",
    "draw_predictions",
    "draw_segmentations",
    "evaluation_json",
    "iou_csv",
    "samples_of",
    "write_detection_report",
]
