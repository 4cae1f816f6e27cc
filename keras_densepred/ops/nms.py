"""Greedy non-maximum suppression, per class, batched, with static shapes.

Written with `keras.ops` only, so one form serves the three backends, eager, traced and compiled.

Made for many boxes and classes: what is large (N x C scores) is read once, for the best class of
each box, and everything after that is of the size of `pre_nms_top_k`. On one CPU core, 8 images of
76,725 boxes and 80 classes, logits to detections (`tools/timing/detections.py`, least of 11, in
turns): JAX 49 ms, TensorFlow 128 ms, PyTorch 104 ms, of which the best class takes 24 to 80. With
the sigmoid of all scores, `take_along_axis` and all K x K overlaps at once it was 220, 1,296 and
581 ms.

The candidates of an image, best first, are settled block by block: a block is compared with the
boxes kept so far (`max_detections` at most) and with itself, which is a quarter of the overlaps of
all candidates with each other, in pieces that stay in the cache. Inside a block the greedy rule
looks sequential, but its result is the one fixed point of
`keep[j] = not any(keep[i] and i suppresses j for i ranked above j)`. Iterating that equation over
the whole block settles a candidate as soon as everything ranked above it has settled, so it ends
after as many rounds as the longest chain of suppressions.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_densepred.ops.loops import while_loop
from keras_densepred.ops.rows import descending_order, gather_rows, top_k_index
from keras_densepred.runtime.replicas import on_own_rows

Tensor = Any

BLOCK = 128  # candidates settled at a time


def non_max_suppression(
    boxes: Tensor | Callable[[Tensor], Tensor],
    scores: Tensor,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    pre_nms_top_k: int = 1000,
    from_logits: bool = False,
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
            Or a function that computes the corners (B, K, 4) of the boxes at an index (B, K)
            int32 < N, called once: only the boxes that take part are computed then. Boxes that
            differ by class are (B, N, C, 4), or (B, K, C, 4) from the function.
        scores: (B, N, C) score of each class for each box; several classes may claim one box.
        iou_threshold: overlap above which the lower candidate goes, in [0, 1].
        score_threshold: least score of a candidate.
        max_detections: M, the detections returned for each image.
        pre_nms_top_k: K, the candidates of an image.
        from_logits: whether the score is the sigmoid of what `scores` holds. Giving logits spares
            the sigmoid of N x C values: it is taken of the K that take part.

    Returns:
        `{"boxes": (B, M, 4) float32, "labels": (B, M) int32, "confidence": (B, M) float32,
        "num_detections": (B,) int32}`, in descending order of score; rows past
        `num_detections` are -1.
    """
    scores = ops.convert_to_tensor(scores)
    num_classes = scores.shape[-1]

    # The K best pairs lie in the K boxes with the best single class: this first cut keeps the
    # second selection at K x C scores instead of N x C (6 million at 800 px and 80 classes).
    # What is large stays in the type it came in; to float32 goes what was selected.
    best = ops.cast(ops.max(scores, axis=-1), "float32")
    box_index = top_k_index(best, pre_nms_top_k)
    num_kept_boxes = box_index.shape[1]
    num_boxes = ops.shape(scores)[1]
    is_box = box_index < num_boxes
    box_index = ops.minimum(box_index, num_boxes - 1)
    pair_scores = ops.cast(gather_rows(scores, box_index), "float32")
    pair_scores = ops.where(is_box[..., None], pair_scores, float("-inf"))
    boxes = boxes(box_index) if callable(boxes) else gather_rows(boxes, box_index)

    pair_scores = ops.reshape(pair_scores, (-1, num_kept_boxes * num_classes))
    pair_index = top_k_index(pair_scores, pre_nms_top_k)
    num_pairs = pair_index.shape[1]
    scores = gather_rows(pair_scores, pair_index)
    if from_logits:
        scores = ops.sigmoid(scores)
        is_pair = gather_rows(is_box, pair_index // num_classes)
        scores = ops.where(is_pair, scores, float("-inf"))
    # By score, not by logit: unequal logits may round to equal scores, of which the lower index
    # goes first (the sort is stable and `pair_index` ascends).
    order = descending_order(scores)
    scores = gather_rows(scores, order)
    pair_index = gather_rows(pair_index, order)
    labels = pair_index % num_classes
    if len(boxes.shape) == 4:
        boxes = ops.reshape(boxes, (-1, num_kept_boxes * num_classes, 4))
        boxes = gather_rows(boxes, pair_index)
    else:
        boxes = gather_rows(boxes, pair_index // num_classes)
    boxes = ops.cast(boxes, "float32")

    num_slots = min(max_detections, num_pairs)
    slots = greedy_slots(boxes, labels, scores >= score_threshold, iou_threshold, num_slots)
    filled = slots >= 0
    slots = ops.maximum(slots, 0)
    detections = {
        "boxes": ops.where(filled[..., None], gather_rows(boxes, slots), -1.0),
        "labels": ops.where(filled, gather_rows(labels, slots), -1),
        "confidence": ops.where(filled, gather_rows(scores, slots), -1.0),
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


def greedy_slots(
    boxes: Tensor, labels: Tensor, valid: Tensor, iou_threshold: float, num_slots: int
) -> Tensor:
    """(B, num_slots) int32: the survivors among candidates in descending order, then -1.

    Args:
        boxes: (B, K, 4) float32.
        labels: (B, K) int32.
        valid: (B, K) bool, the first rows of each image.
        iou_threshold: overlap above which the lower candidate goes.
        num_slots: survivors wanted.
    """

    def settle_all(boxes: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        return _greedy_slots(boxes, labels, valid, iou_threshold, num_slots)

    # Rounds are counted by the slowest image of a device, and not agreed upon by all devices.
    return on_own_rows(settle_all, boxes, labels, valid)


def _greedy_slots(
    boxes: Tensor, labels: Tensor, valid: Tensor, iou_threshold: float, num_slots: int
) -> Tensor:
    num = boxes.shape[1]
    block = min(BLOCK, num)
    num_blocks = -(-num // block)
    num_valid = ops.sum(ops.cast(valid, "int32"), axis=1)
    area = ops.prod(boxes[..., 2:] - boxes[..., :2], axis=-1, keepdims=True)
    table = ops.concatenate([boxes, area, ops.cast(labels, "float32")[..., None]], axis=-1)
    table = ops.pad(table, [(0, 0), (0, num_blocks * block - num), (0, 0)])
    slot = ops.arange(num_slots, dtype="int32")
    offset = ops.arange(block, dtype="int32")
    ranked_above = offset[None] < offset[:, None]

    def unfinished(start, slots):
        return ops.any(ops.logical_and(slots[:, -1] < 0, start < num_valid))

    def settle_block(start, slots):
        index = ops.broadcast_to((start + offset)[None], (ops.shape(slots)[0], block))
        filled = slots >= 0
        rows = gather_rows(table, index)
        overlaps = _overlaps(rows, gather_rows(table, ops.relu(slots)), iou_threshold)
        by_kept = ops.any(ops.logical_and(overlaps[..., :num_slots], filled[:, None]), axis=-1)
        by_block = ops.logical_and(overlaps[..., num_slots:], ranked_above)
        alive = ops.logical_and(index < num_valid[:, None], ops.logical_not(by_kept))

        def settle(keep, changed):
            loses = ops.any(ops.logical_and(by_block, keep[:, None]), axis=-1)
            settled = ops.logical_and(alive, ops.logical_not(loses))
            return settled, ops.any(settled != keep)

        keep, _ = while_loop(
            lambda keep, changed: changed,
            settle,
            (alive, ops.any(alive)),
            maximum_iterations=block + 1,
        )
        # The n-th survivor of the block goes into the n-th slot that is still empty.
        num_filled = ops.sum(ops.cast(filled, "int32"), axis=1, keepdims=True)
        kept = ops.cast(keep, "int32")
        position = (num_filled + ops.cumsum(kept, axis=1)) * kept - 1
        # One at most goes into a slot. A sum and no maximum, products and no `where` with a number,
        # and above `relu`: in a loop torch 2.13 exports neither Keras' maximum nor constants.
        is_newcomer = ops.cast(position[:, None] == slot[:, None], "int32")
        newcomer = ops.sum(is_newcomer * (index[:, None] + 1), axis=-1) - 1
        return start + block, ops.maximum(slots, newcomer)

    empty = ops.broadcast_to(ops.full_like(labels[:, :1], -1), (ops.shape(labels)[0], num_slots))
    _, slots = while_loop(
        unfinished,
        settle_block,
        (ops.zeros((), dtype="int32"), empty),
        maximum_iterations=num_blocks,
    )
    return slots


def _overlaps(rows: Tensor, kept: Tensor, iou_threshold: float) -> Tensor:
    """(B, T, M + T) bool: whether a row is one object with each of the kept, then of the rows.

    Rows (B, T, 6) and kept (B, M, 6) hold x1, y1, x2, y2, area and label.
    """
    x1, y1, x2, y2, area, label = (rows[..., i : i + 1] for i in range(6))
    # Each coordinate contiguous along the rivals: PyTorch and TensorFlow vectorise over those.
    other_x1, other_y1, other_x2, other_y2, other_area, other_label = (
        ops.concatenate([kept[..., i], rows[..., i]], axis=1)[:, None] for i in range(6)
    )
    width = ops.minimum(x2, other_x2) - ops.maximum(x1, other_x1)
    height = ops.minimum(y2, other_y2) - ops.maximum(y1, other_y1)
    intersection = ops.relu(width) * ops.relu(height)
    union = area + other_area - intersection
    # Without the division two boxes without area compare as 0 > 0: neither suppresses the other.
    return ops.logical_and(intersection > iou_threshold * union, label == other_label)
