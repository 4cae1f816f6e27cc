"""Which regions of an image the second stage looks at: proposals, and samples of them to train on.

All shapes are static: proposals and samples are padded, and what is padding is told beside them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.boxes import decode_boxes, pairwise_iou
from keras_densepred.ops.nms import greedy_slots
from keras_densepred.ops.rows import descending_order, gather_rows, top_k, top_k_index

Tensor = Any

PROPOSAL_IOU = 0.7  # above which the lower-scoring proposal of a level goes


@dataclasses.dataclass(frozen=True)
class Truth:
    """The objects of a batch.

    Attributes:
        boxes: (B, M, 4) float32 xyxy in pixels.
        labels: (B, M) int32, negative for padding.
        masks: (B, M, S, S), each from edge to edge of its box, 1 on the object; or None.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """Regions to train on, R of each image, the positive ones first.

    Attributes:
        boxes: (B, R, 4) float32 xyxy in pixels.
        labels: (B, R) int32, the number of classes for background.
        matched: (B, R) int32 index of the object that a region overlaps most.
        positive: (B, R) bool, regions of an object.
        valid: (B, R) bool, regions that train at all.
        is_truth: (B, R) bool, regions that are objects' own boxes.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor
    positive: Tensor
    valid: Tensor
    is_truth: Tensor


def propose(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    height: int | Tensor,
    width: int | Tensor,
    pre_nms_top_k: int,
    num_proposals: int,
) -> tuple[Tensor, Tensor]:
    """The best anchors' boxes, after non-maximum suppression within each level.

    Args:
        logits: of each level (B, A_l) float32.
        deltas: (B, A_l, 4).
        anchors: (A_l, 4) xyxy in pixels.
        height: of the image in pixels; boxes are cut there.
        width: likewise.
        pre_nms_top_k: anchors of a level that take part.
        num_proposals: P.

    Returns:
        Boxes (B, P, 4) in descending score, (B, P) bool: which of them there are. They take no
        gradient.
    """
    boxes, scores, levels = [], [], []
    for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
        logit, delta = ops.stop_gradient(logit), ops.stop_gradient(delta)
        index = top_k_index(logit, pre_nms_top_k)
        count = ops.shape(logit)[1]
        is_anchor = index < count
        index = ops.minimum(index, count - 1)
        box = decode_boxes(
            ops.take(anchor, index, axis=0), gather_rows(delta, index), height, width
        )
        has_area = ops.all(box[..., 2:] > box[..., :2], axis=-1)
        score = gather_rows(logit, index)
        boxes.append(box)
        scores.append(ops.where(ops.logical_and(is_anchor, has_area), score, float("-inf")))
        levels.append(ops.full_like(index, level))
    joined = ops.concatenate(scores, axis=1)
    order = descending_order(joined)
    candidates = gather_rows(ops.concatenate(boxes, axis=1), order)
    level_of = gather_rows(ops.concatenate(levels, axis=1), order)
    there = gather_rows(joined, order) > float("-inf")
    num_slots = min(num_proposals, candidates.shape[1])
    slots = greedy_slots(candidates, level_of, there, PROPOSAL_IOU, num_slots)
    filled = slots >= 0
    found = ops.where(filled[..., None], gather_rows(candidates, ops.maximum(slots, 0)), 0.0)
    return ops.stop_gradient(found), filled


def sample_regions(
    random: Tensor,
    boxes: Tensor,
    valid: Tensor,
    truth: Truth,
    num_classes: int,
    positive_iou: float | Tensor,
    num_samples: int,
    most_positive: int,
) -> tuple[Sample, Tensor]:
    """Draws regions to train on, of objects and of background, from proposals and objects' boxes.

    A region belongs to the object that it overlaps most, if by `positive_iou` at least, and else
    to the background. Where there are fewer positive ones than `most_positive`, background takes
    their places.

    Args:
        random: (B, P + M) float32 in [0, 1), the draws.
        boxes: (B, P, 4) xyxy in pixels.
        valid: (B, P) bool.
        truth: the objects.
        num_classes: label of the background.
        positive_iou: least overlap of a region with its object.
        num_samples: R, at most P + M.
        most_positive: of the R regions.

    Returns:
        The sample, and the proposals' (B, P) best overlaps.
    """
    is_object = truth.labels >= 0
    candidates = ops.concatenate([boxes, truth.boxes], axis=1)
    candidates_valid = ops.concatenate([valid, is_object], axis=1)
    overlap = ops.where(is_object[:, None], pairwise_iou(candidates, truth.boxes), 0.0)
    best = ops.where(candidates_valid, ops.max(overlap, axis=-1), 0.0)
    matched = argmax(overlap, axis=-1)
    positive = ops.logical_and(candidates_valid, best >= positive_iou)
    # An object's own box is never background, however high the threshold has come.
    is_truth = ops.concatenate([ops.zeros_like(valid), is_object], axis=1)
    positive = ops.logical_or(positive, is_truth)
    negative = ops.logical_and(candidates_valid, ops.logical_not(positive))
    index, drawn = draw_rows(random, positive, negative, num_samples, most_positive)
    positive = ops.logical_and(drawn, gather_rows(positive, index))
    matched = gather_rows(matched, index)
    labels = ops.where(positive, gather_rows(truth.labels, matched), num_classes)
    sample = Sample(
        boxes=ops.stop_gradient(gather_rows(candidates, index)),
        labels=labels,
        matched=matched,
        positive=positive,
        valid=drawn,
        is_truth=gather_rows(is_truth, index),
    )
    return sample, best[:, : boxes.shape[1]]


def draw_rows(
    random: Tensor, positive: Tensor, negative: Tensor, num: int, most_positive: int
) -> tuple[Tensor, Tensor]:
    """Draws rows at random: up to `most_positive` positive ones, filled up with negative ones.

    Args:
        random: (B, N) float32 in [0, 1).
        positive: (B, N) bool.
        negative: (B, N) bool, never where `positive` is.
        num: rows to draw.
        most_positive: of these.

    Returns:
        Index (B, K) int32 with K = min(num, N), positive rows first, and (B, K) bool: whether the
        row was drawn, or stands there because there are too few.
    """
    count, rows = random.shape[1], ops.shape(random)[1]
    if count is None:  # a TensorFlow graph of open image size: with padding, `num` at least
        around, count = [(0, 0), (0, num)], num
        random = ops.pad(random, around)
        positive, negative = (
            ops.cast(ops.pad(ops.cast(x, "int32"), around), "bool") for x in (positive, negative)
        )
    ranked, _ = top_k(ops.where(positive, random, -1.0), min(most_positive, count))
    chosen = ops.logical_and(positive, random >= ranked[:, -1:])
    priority = ops.where(chosen, 3.0 + random, ops.where(negative, 1.0 + random, 0.0))
    value, index = top_k(priority, min(num, count))
    return ops.minimum(index, rows - 1), value >= 1.0
