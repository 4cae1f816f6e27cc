"""Greedy non-maximum suppression, per class, batched, with static shapes.

Written with `keras.ops` only, so one form serves the three backends, eager, traced and compiled.
The greedy rule looks sequential, but its result is the one fixed point of
`keep[j] = not any(keep[i] and i suppresses j for i ranked above j)`. Iterating that equation over
all candidates at once settles a candidate as soon as everything ranked above it has settled, so it
ends after as many rounds as the longest chain of suppressions (5 to 15 on detector output),
instead of one step for each candidate.
"""

from typing import Any

from keras import ops

Tensor = Any


def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    pre_nms_top_k: int = 1000,
) -> dict[str, Tensor]:
    """Keeps the best box of each overlapping group, class by class.

    All (box, class) pairs with `score >= score_threshold` are candidates; the `pre_nms_top_k`
    highest of an image take part (the result equals suppression over all pairs whenever an image
    has no more candidates than that, or `max_detections` are found among them). A candidate is
    dropped if its intersection over union with a kept candidate of the same class and of higher
    score is greater than `iou_threshold`. Of equal scores the lower box index, then the lower
    class, goes first.

    Args:
        boxes: (B, N, 4) corners (x1, y1, x2, y2), any unit. (y1, x1, y2, x2) serves as well.
        scores: (B, N, C) score of each class for each box; several classes may claim one box.
        iou_threshold: overlap above which the lower candidate goes, in [0, 1].
        score_threshold: least score of a candidate.
        max_detections: M, the detections returned for each image.
        pre_nms_top_k: K, the candidates of an image compared with each other (K x K overlaps).

    Returns:
        `{"boxes": (B, M, 4) float32, "labels": (B, M) int32, "confidence": (B, M) float32,
        "num_detections": (B,) int32}`, in descending order of score; rows past
        `num_detections` are -1.
    """
    boxes = ops.cast(boxes, "float32")
    scores = ops.cast(scores, "float32")
    num_classes = scores.shape[-1]
    boxes, scores, num_boxes = _pad_if_dynamic(boxes, scores, pre_nms_top_k)

    # The K best pairs lie in the K boxes with the best single class: this first cut keeps the
    # second selection at K x C scores instead of N x C (6 million at 800 px and 80 classes).
    num_kept_boxes = min(pre_nms_top_k, num_boxes)
    _, box_index = ops.top_k(ops.max(scores, axis=-1), num_kept_boxes, sorted=False)
    box_index = ops.sort(box_index, axis=-1)
    boxes = _gather_rows(boxes, box_index)
    pair_scores = ops.reshape(_gather_rows(scores, box_index), (-1, num_kept_boxes * num_classes))
    num_pairs = min(pre_nms_top_k, num_kept_boxes * num_classes)
    pair_index = _top_k_stable(pair_scores, num_pairs)
    scores = ops.take_along_axis(pair_scores, pair_index, axis=1)
    labels = ops.cast(pair_index % num_classes, "int32")
    boxes = _gather_rows(boxes, pair_index // num_classes)

    keep = _greedy_keep(boxes, labels, scores >= score_threshold, iou_threshold)

    num_slots = min(max_detections, num_pairs)
    rank_key = ops.where(keep, ops.arange(num_pairs, 0, -1, dtype="int32"), 0)
    rank_key, slot_index = ops.top_k(rank_key, num_slots)
    filled = rank_key > 0
    detections = {
        "boxes": ops.where(filled[..., None], _gather_rows(boxes, slot_index), -1.0),
        "labels": ops.where(filled, ops.take_along_axis(labels, slot_index, axis=1), -1),
        "confidence": ops.where(filled, ops.take_along_axis(scores, slot_index, axis=1), -1.0),
    }
    if num_slots < max_detections:
        missing = max_detections - num_slots
        detections = {
            key: ops.pad(
                value,
                [(0, 0), (0, missing)] + [(0, 0)] * (len(value.shape) - 2),
                constant_values=-1,
            )
            for key, value in detections.items()
        }
    detections["num_detections"] = ops.sum(ops.cast(filled, "int32"), axis=1)
    return detections


def _pad_if_dynamic(boxes: Tensor, scores: Tensor, top_k: int) -> tuple[Tensor, Tensor, int]:
    """Gives a run-time number of boxes (a TensorFlow graph) a known lower bound of `top_k`."""
    if boxes.shape[1] is not None:
        return boxes, scores, boxes.shape[1]
    boxes = ops.pad(boxes, [(0, 0), (0, top_k), (0, 0)])
    scores = ops.pad(scores, [(0, 0), (0, top_k), (0, 0)], constant_values=float("-inf"))
    return boxes, scores, top_k


def _gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """`values[b, index[b]]` for values (B, N, D) and index (B, K)."""
    return ops.take_along_axis(values, index[..., None], axis=1)


def _top_k_stable(values: Tensor, k: int) -> Tensor:
    """Indices (B, k) of the k largest of (B, N), in descending order, lower index first on ties.

    `top_k` alone leaves the order of ties open on PyTorch.
    """
    _, index = ops.top_k(values, k, sorted=False)
    index = ops.sort(index, axis=-1)
    order = ops.argsort(-ops.take_along_axis(values, index, axis=1), axis=-1)
    return ops.take_along_axis(index, order, axis=1)


def _greedy_keep(boxes: Tensor, labels: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """(B, K) bool: survivors among candidates sorted by descending score."""
    num = boxes.shape[1]
    lower, upper = boxes[..., :2], boxes[..., 2:]
    sides = ops.maximum(
        ops.minimum(upper[:, :, None], upper[:, None])
        - ops.maximum(lower[:, :, None], lower[:, None]),
        0.0,
    )
    intersection = sides[..., 0] * sides[..., 1]
    area = ops.prod(upper - lower, axis=-1)
    union = area[:, :, None] + area[:, None] - intersection
    # Without the division two boxes without area compare as 0 > 0: neither suppresses the other.
    overlaps = intersection > iou_threshold * union
    rank = ops.arange(num)
    suppressed_by = ops.logical_and(
        ops.logical_and(overlaps, labels[:, :, None] == labels[:, None]),
        ops.logical_and(rank[:, None] > rank[None], valid[:, None]),
    )

    def unsettled(keep, changed):
        return changed

    def settle(keep, changed):
        loses = ops.any(ops.logical_and(suppressed_by, keep[:, None]), axis=-1)
        settled = ops.logical_and(valid, ops.logical_not(loses))
        return settled, ops.any(settled != keep)

    keep, _ = ops.while_loop(unsettled, settle, (valid, ops.any(valid)), maximum_iterations=num + 1)
    return keep
