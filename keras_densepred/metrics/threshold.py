"""The score from which on a detector's boxes are worth showing."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_SAME = 0.5  # overlap from which on a detection is an object


def best_threshold(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> tuple[float, float]:
    """The score threshold with the best F1 of all classes together, at an overlap of one half.

    As in COCO's protocol a detection is right if its box overlaps an object of its class that no
    better scored one has taken, and one that is mostly inside of a crowd region is not counted.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results with boxes.

    Returns:
        The threshold, in the middle between the last score that counts and the next one, and its
        F1; (0, 0) where nothing is right at any.
    """
    objects, crowds = defaultdict(list), defaultdict(list)
    for item in ground_truth["annotations"]:
        place = crowds if item.get("iscrowd", 0) else objects
        place[item["image_id"], item["category_id"]].append(item["bbox"])
    count = sum(len(boxes) for boxes in objects.values())
    groups = defaultdict(list)
    for item in detections:
        groups[item["image_id"], item["category_id"]].append((item["score"], item["bbox"]))
    scores: list[float] = []
    right: list[bool] = []
    for key, group in groups.items():
        group.sort(key=lambda pair: -pair[0])
        boxes = np.array([box for _, box in group], np.float64)
        for (score, _), hit in zip(group, _hits(boxes, objects[key], crowds[key]), strict=True):
            if hit is not None:
                scores.append(score)
                right.append(hit)
    if not any(right):
        return 0.0, 0.0
    order = np.argsort(-np.asarray(scores), kind="stable")
    sorted_scores, hits = np.asarray(scores)[order], np.cumsum(np.asarray(right)[order])
    f1 = 2.0 * hits / (np.arange(1, len(hits) + 1) + count)
    last = int(np.argmax(f1))
    following = sorted_scores[last + 1] if last + 1 < len(sorted_scores) else sorted_scores[last]
    return float((sorted_scores[last] + following) / 2.0), float(f1[last])


def _hits(
    boxes: np.ndarray, objects: Sequence[Sequence[float]], crowds: Sequence[Sequence[float]]
) -> list[bool | None]:
    """Of boxes (N, 4) x, y, width, height in descending score: right, wrong, or not counted."""
    overlaps = _shared(boxes, objects, of_union=True)
    inside = _shared(boxes, crowds, of_union=False).max(axis=1, initial=0.0)
    hits: list[bool | None] = []
    for row, in_crowd in zip(overlaps, inside, strict=True):
        if row.max(initial=0.0) >= _SAME:
            overlaps[:, row.argmax()] = -1.0  # taken
            hits.append(True)
        else:
            hits.append(None if in_crowd >= _SAME else False)
    return hits


def _shared(boxes: np.ndarray, others: Sequence[Sequence[float]], of_union: bool) -> np.ndarray:
    """(N, M): the intersection, over the union or over the area of each of the N boxes."""
    other = np.asarray(others, np.float64).reshape(-1, 4)
    low = np.maximum(boxes[:, None, :2], other[None, :, :2])
    ends = boxes[:, :2] + boxes[:, 2:], other[:, :2] + other[:, 2:]
    high = np.minimum(ends[0][:, None], ends[1][None])
    shared = np.maximum(high - low, 0.0).prod(axis=-1)
    whole = boxes[:, 2:].prod(axis=-1)[:, None]
    if of_union:
        whole = whole + other[:, 2:].prod(axis=-1)[None] - shared
    return shared / np.maximum(whole, 1e-9)
