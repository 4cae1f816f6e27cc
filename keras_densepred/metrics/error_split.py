"""What costs average precision: the kinds of error of TIDE (Bolya et al., ECCV 2020, section 2)."""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_densepred.metrics.matching import MATCH_IOU, Matching

BACKGROUND_IOU = 0.1  # up to which a detection has nothing to do with an object

ERRORS = {
    "class": "on an object, of another class",
    "box": "right class, box too far off (IoU 0.1 to 0.5)",
    "both": "class and box are wrong",
    "duplicate": "on an object that a surer detection found",
    "background": "on no object",
    "missed": "no detection near the object",
}
"""Kinds of error, and what they mean."""
_KINDS = tuple(ERRORS)


@dataclasses.dataclass(frozen=True)
class ErrorSplit:
    """Errors by kind.

    Attributes:
        kind: `(D,)` of each detection, position in `ERRORS`; -1 for those that are no error.
        target: `(D,)` object that an error of class or box lies on; -1 for the others.
        missed: `(G,)` bool: objects that no detection found, nor an error of class or box lies on.
        lost: by kind, the AP50 that detections without such errors would have more, 0..1.
        count: by kind, how many there are.
    """

    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray
    lost: dict[str, float]
    count: dict[str, int]


def split_errors(matching: Matching) -> ErrorSplit:
    """Sorts what is wrong by its kind, and tells what each kind costs.

    What a kind costs is what AP50 gains when an oracle corrects it and nothing else: errors of
    class and box become right, if the object is not found, and otherwise go away like all others;
    missed objects are taken out of the count. The gains do not add up to the whole.

    Args:
        matching: of all detections for what they cost, or of those from a score on
            (`Matching.scored`) for how many there are in pictures drawn from there.
    """
    wrong = (matching.found < 0) & ~matching.ignored
    on_same = matching.same_iou >= MATCH_IOU
    near_same = (matching.same_iou >= BACKGROUND_IOU) & ~on_same
    on_other = matching.other_iou >= MATCH_IOU
    near_nothing = np.maximum(matching.same_iou, matching.other_iou) < BACKGROUND_IOU
    tests = {
        "box": near_same,
        "class": on_other,
        "duplicate": on_same,
        "background": near_nothing,
    }
    kind = np.where(wrong, _KINDS.index("both"), -1)
    for name, test in reversed(tests.items()):  # the first that holds decides
        kind[wrong & test] = _KINDS.index(name)
    target = np.full(len(kind), -1, np.int64)
    target[kind == _KINDS.index("box")] = matching.same[kind == _KINDS.index("box")]
    target[kind == _KINDS.index("class")] = matching.other[kind == _KINDS.index("class")]

    missed = ~matching.is_found
    missed[target[target >= 0]] = False
    objects = np.bincount(matching.object_label, minlength=len(matching.names))
    right = matching.found >= 0
    now = _mean_ap(matching.label, right, matching.ignored, objects, objects)
    lost = {}
    for position, name in enumerate(_KINDS):
        label, corrected, left_out, counted = matching.label, right, matching.ignored, objects
        if name == "missed":
            counted = objects - np.bincount(matching.object_label[missed], minlength=len(objects))
        else:
            errors = kind == position
            repaired = errors & _first_on_object(target, errors, matching.is_found)
            corrected = right | repaired
            left_out = matching.ignored | (errors & ~repaired)
            label = label.copy()
            label[repaired] = matching.object_label[target[repaired]]
        lost[name] = max(0.0, _mean_ap(label, corrected, left_out, counted, objects) - now)
    count = {name: int((kind == position).sum()) for position, name in enumerate(_KINDS)}
    return ErrorSplit(kind, target, missed, lost, {**count, "missed": int(missed.sum())})


def _first_on_object(target: np.ndarray, errors: np.ndarray, is_found: np.ndarray) -> np.ndarray:
    """Of each object that is not found, the surest of the errors that lie on it."""
    first = np.zeros(len(target), bool)
    rows = np.flatnonzero(errors & (target >= 0))
    rows = rows[~is_found[target[rows]]]
    first[rows[np.unique(target[rows], return_index=True)[1]]] = True
    return first


def _mean_ap(
    label: np.ndarray,
    right: np.ndarray,
    left_out: np.ndarray,
    objects: np.ndarray,
    classes: np.ndarray,
) -> float:
    """COCO's AP at one IoU, over the classes with numbers of objects that are not 0."""
    values = []
    for number in np.flatnonzero(classes):
        if not objects[number]:  # all of them were missed: nothing else can be wrong but too much
            values.append(float(not ((label == number) & ~left_out).any()))
            continue
        rows = right[(label == number) & ~left_out]
        true = np.cumsum(rows)
        precision = true / np.arange(1, len(rows) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(true / objects[number], np.linspace(0, 1, 101), side="left")
        values.append(np.append(precision, 0)[reached].mean())
    return float(np.mean(values)) if values else 0.0
