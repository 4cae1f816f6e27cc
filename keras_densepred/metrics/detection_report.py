"""What an evaluation of a detector tells beyond its average precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_densepred.metrics.average_precision import CocoScores
from keras_densepred.metrics.detection_evaluation import Found
from keras_densepred.metrics.error_split import ErrorSplit, split_errors
from keras_densepred.metrics.matching import MATCH_IOU, Matching, best_threshold, match

DEFAULT_THRESHOLD = 0.3  # where nothing was found, so that no score is the best


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionReport:
    """A detector on a split, class by class and error by error.

    Attributes:
        results: what `evaluate_detector` gives.
        by_class: class name to its numbers, `CocoScores.by_class`; those of masks under `"masks"`.
        recalls: `(101,)` from 0 to 1.
        precisions: class name to its precision `(101,)` at these recalls, IoU 0.5.
        threshold: score from which on detections are best, by F1 at IoU 0.5 over all classes; it is
            what the rest is counted at.
        f1: at that threshold.
        confusion: `(C + 1, C + 1)` int64, objects by their class (row) and that of the detection on
            them (column); the last row is detections on no object, the last column objects without
            a detection.
        lost: kind of error (`ERRORS`) to the AP50 that is lost to it, over detections of any score.
        shown: the detections from the threshold on, matched.
        errors: of those.
    """

    results: dict[str, float]
    by_class: dict[str, dict[str, dict[str, float]]]
    recalls: np.ndarray
    precisions: dict[str, np.ndarray]
    threshold: float
    f1: float
    confusion: np.ndarray
    lost: dict[str, float]
    shown: Matching
    errors: ErrorSplit

    @classmethod
    def of(cls, found: Found, results: dict[str, float]) -> DetectionReport:
        """Makes the report.

        Args:
            found: of `find_objects`.
            results: `found.results()`, which takes long on large splits.
        """
        scores = CocoScores(found.ground_truth, found.detections)
        by_class = {"boxes": scores.by_class()}
        if found.has_masks:
            masks = CocoScores(found.ground_truth, found.without_boxes(), "segm")
            by_class["masks"] = masks.by_class()
        recalls, precisions = scores.curves()
        everything = match(found.ground_truth, found.detections)
        best = best_threshold(everything)
        threshold = DEFAULT_THRESHOLD if best is None else best
        shown = everything.scored(threshold)
        right = int((shown.found >= 0).sum())
        counted = int((~shown.ignored).sum()) + len(shown.object_label)
        return cls(
            results=results,
            by_class=by_class,
            recalls=recalls,
            precisions=precisions,
            threshold=threshold,
            f1=2 * right / counted if counted else 0.0,
            confusion=_confusion(shown),
            lost=split_errors(everything).lost,
            shown=shown,
            errors=split_errors(shown),
        )

    @property
    def chosen(self) -> str:
        """Why the threshold is what it is, in a word."""
        return "best F1" if self.f1 else "no detection is right at any"

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of `confusion`."""
        return self.shown.names

    @property
    def cost(self) -> np.ndarray:
        """`(images,)` how many errors each picture has, in the order of `shown.image_ids`."""
        images = len(self.shown.image_ids)
        false = np.bincount(self.shown.image[self.errors.kind >= 0], minlength=images)
        return false + np.bincount(self.shown.object_image[self.errors.missed], minlength=images)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain numbers; precision at every tenth recall."""
        return {
            "results": self.results,
            "by_class": self.by_class,
            "precision_at_iou_0.5": {
                "recall": np.round(self.recalls[::10], 2).tolist(),
                **{
                    name: np.round(curve[::10], 4).tolist()
                    for name, curve in self.precisions.items()
                },
            },
            "best_threshold": self.threshold,
            "f1_at_threshold": self.f1,
            "AP50_lost": self.lost,
            "errors_at_threshold": self.errors.count,
            "confusion_at_threshold": {
                "classes": [*self.names, "background"],
                "objects": self.confusion.tolist(),
            },
        }


def _confusion(matching: Matching) -> np.ndarray:
    """Objects by class and class of the detection on them.

    What found its object is on the diagonal. Of the other detections, the surest lies on each
    object of another class that nothing found, from IoU 0.5 on.
    """
    classes = len(matching.names)
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    has_one = matching.is_found
    np.add.at(confusion, (matching.object_label[has_one],) * 2, 1)
    for row in np.flatnonzero((matching.found < 0) & ~matching.ignored):
        other = matching.other[row]
        if matching.other_iou[row] >= MATCH_IOU and not has_one[other]:
            has_one[other] = True
            confusion[matching.object_label[other], matching.label[row]] += 1
        else:
            confusion[classes, matching.label[row]] += 1
    np.add.at(confusion, (matching.object_label[~has_one], classes), 1)
    return confusion
