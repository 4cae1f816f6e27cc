"""Which detection found which object: COCO's matching at IoU 0.5, with what each one overlaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MATCH_IOU = 0.5
_MOST = 100  # detections of an image and class, those of the highest scores, as COCO counts


@dataclasses.dataclass(frozen=True)
class Matching:
    """Detections and objects of a split, matched.

    Detections are sorted by falling score, objects as in the ground truth; crowd regions are no
    objects here. Labels are positions among the categories of the ground truth, images likewise.

    Attributes:
        names: of the categories.
        image_ids: of the images.
        object_image: `(G,)` image of each object.
        object_label: `(G,)`.
        object_box: `(G, 4)` xyxy in pixels.
        image: `(D,)` image of each detection.
        label: `(D,)`.
        box: `(D, 4)`.
        score: `(D,)`.
        found: `(D,)` object that the detection found; -1 for none.
        ignored: `(D,)` bool, in a crowd region: neither right nor wrong.
        same: `(D,)` object of the detection's class that it overlaps most; -1 for none.
        same_iou: `(D,)` how much; 0 for none.
        other: `(D,)` the same of objects of other classes.
        other_iou: `(D,)`.
    """

    names: tuple[str, ...]
    image_ids: tuple[int, ...]
    object_image: np.ndarray
    object_label: np.ndarray
    object_box: np.ndarray
    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    found: np.ndarray
    ignored: np.ndarray
    same: np.ndarray
    same_iou: np.ndarray
    other: np.ndarray
    other_iou: np.ndarray

    def scored(self, least: float) -> Matching:
        """The same without the detections below a score: what they found is not found."""
        kept = self.score >= least
        names = [
            *("image", "label", "box", "score", "found", "ignored"),
            *("same", "same_iou", "other", "other_iou"),
        ]
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in names})

    @property
    def is_found(self) -> np.ndarray:
        """`(G,)` bool: objects that a detection found."""
        is_found = np.zeros(len(self.object_label), bool)
        is_found[self.found[self.found >= 0]] = True
        return is_found


def match(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Matching:
    """Matches boxes as COCO's evaluation does at IoU 0.5.

    Class by class, by falling score, a detection finds the object that it overlaps most among those
    that no detection before it found, from an IoU of 0.5 on; or else it may lie in a crowd region.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results with `bbox`.
    """
    categories = {item["id"]: label for label, item in enumerate(ground_truth["categories"])}
    images = {item["id"]: position for position, item in enumerate(ground_truth["images"])}
    annotations = ground_truth["annotations"]
    is_crowd = np.array([bool(item.get("iscrowd")) for item in annotations], bool)
    boxes = _corners(annotations)
    truth_image = np.array([images[item["image_id"]] for item in annotations], np.int64)
    truth_label = np.array([categories[item["category_id"]] for item in annotations], np.int64)
    number = np.cumsum(~is_crowd) - 1  # of an object among those that are no crowd

    score = np.array([item["score"] for item in detections], np.float64)
    image = np.array([images[item["image_id"]] for item in detections], np.int64)
    label = np.array([categories[item["category_id"]] for item in detections], np.int64)
    order = np.lexsort((image, -score))
    order = order[_is_among_the_first(image[order], label[order])]
    score, image, label = score[order], image[order], label[order]
    found_boxes = _corners(detections)[order]

    count = len(order)
    found, same, other = (np.full(count, -1, np.int64) for _ in range(3))
    same_iou, other_iou = np.zeros(count), np.zeros(count)
    ignored = np.zeros(count, bool)
    by_image = np.argsort(image, kind="stable")
    truth_by_image = np.argsort(truth_image, kind="stable")
    starts = np.searchsorted(image[by_image], np.arange(len(images) + 1))
    truth_starts = np.searchsorted(truth_image[truth_by_image], np.arange(len(images) + 1))
    for position in range(len(images)):
        rows = by_image[starts[position] : starts[position + 1]]
        truth = truth_by_image[truth_starts[position] : truth_starts[position + 1]]
        if not len(rows) or not len(truth):
            continue
        crowd, real = truth[is_crowd[truth]], truth[~is_crowd[truth]]
        if len(real):
            iou = _overlap(found_boxes[rows], boxes[real])
            is_same = label[rows][:, None] == truth_label[real]
            same[rows], same_iou[rows] = _best(np.where(is_same, iou, 0), number[real])
            other[rows], other_iou[rows] = _best(np.where(is_same, 0, iou), number[real])
            free = np.ones(len(real), bool)
            for row, overlaps in zip(rows, np.where(is_same, iou, 0), strict=True):
                best = int(np.argmax(overlaps * free))
                if free[best] and overlaps[best] >= MATCH_IOU:
                    free[best] = False
                    found[row] = number[real[best]]
        if len(crowd):
            inside = _overlap(found_boxes[rows], boxes[crowd], of_the_first=True)
            inside = np.where(label[rows][:, None] == truth_label[crowd], inside, 0).max(axis=1)
            ignored[rows] = (found[rows] < 0) & (inside >= MATCH_IOU)
    return Matching(
        names=tuple(str(item["name"]) for item in ground_truth["categories"]),
        image_ids=tuple(images),
        object_image=truth_image[~is_crowd],
        object_label=truth_label[~is_crowd],
        object_box=boxes[~is_crowd],
        image=image,
        label=label,
        box=found_boxes,
        score=score,
        found=found,
        ignored=ignored,
        same=same,
        same_iou=same_iou,
        other=other,
        other_iou=other_iou,
    )


def best_threshold(matching: Matching) -> float | None:
    """The score from which on detections are best, by F1 over all classes together.

    Returns:
        A multiple of 0.01 from 0.05 on, or None where nothing was found.
    """
    counted = ~matching.ignored
    right = np.cumsum(matching.found[counted] >= 0)
    if not len(right) or not right[-1]:
        return None
    score = matching.score[counted]
    f1 = 2 * right / (np.arange(1, len(right) + 1) + len(matching.object_label))
    # All detections of a score count, or none of them.
    f1[:-1][score[:-1] == score[1:]] = 0
    return max(0.05, float(np.floor(100 * score[int(np.argmax(f1))] + 1e-9) / 100))


def _corners(items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    boxes = np.array([item["bbox"] for item in items], np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _is_among_the_first(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Whether a detection is among the first of its image and class."""
    order = np.lexsort((label, image))
    keys = np.stack([image[order], label[order]], axis=1)
    is_new = np.ones(len(order), bool)
    is_new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    places = np.arange(len(order))
    first = np.maximum.accumulate(np.where(is_new, places, 0))
    among = np.zeros(len(order), bool)
    among[order] = places - first < _MOST
    return among


def _overlap(one: np.ndarray, two: np.ndarray, of_the_first: bool = False) -> np.ndarray:
    """`(N, M)` intersection over union of xyxy boxes, or over the area of the first."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    area_one, area_two = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (one, two))
    whole = area_one[:, None] + (0 if of_the_first else area_two[None] - both)
    return both / np.maximum(whole, 1e-12)


def _best(overlaps: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the object with the largest overlap, -1 for none, and that overlap."""
    best = overlaps.argmax(axis=1)
    largest = overlaps[np.arange(len(overlaps)), best]
    return np.where(largest > 0, numbers[best], -1), largest
