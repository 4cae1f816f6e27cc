"""Which anchors learn which object, by each object's own threshold.

Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training
Sample Selection" (CVPR 2020), algorithm 1. All images at once, with static shapes.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_densepred.models.anchors import ANCHORS_PER_CELL, BACKGROUND
from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.boxes import encode_boxes, pairwise_iou
from keras_densepred.ops.rows import top_k

Tensor = Any

NEAREST_CELLS = 9  # k of the paper: of each level, around an object's centre


def assign_adaptively(
    levels: Sequence[Tensor], boxes: Tensor, labels: Tensor, cells: int = NEAREST_CELLS
) -> tuple[Tensor, Tensor]:
    """What each anchor has to predict.

    Candidates of an object are the anchors of the 9 cells of each level that are nearest to its
    centre. Those learn it whose centre is inside of it and which overlap it by the mean of the
    candidates' overlaps plus their standard deviation at least; an anchor of several objects learns
    the one it overlaps most. In the paper an object may remain without anchors; here it then takes
    those that overlap it most.

    Args:
        levels: anchors (A_l, 4) xyxy of each level, cell by cell.
        boxes: (B, M, 4) xyxy in the same unit, M >= 1; padding rows may hold anything finite.
        labels: (B, M) int32 class indices, negative for padding rows.
        cells: k.

    Returns:
        Deltas (B, A, 4) float32, meaningful where the label is >= 0 and finite everywhere, and
        labels (B, A) int32: class index, or -1 for background.
    """
    anchors = ops.concatenate(levels, axis=0)
    valid = labels[:, None] >= 0
    near = ops.concatenate([_nearest(level, boxes, cells) for level in levels], axis=1)
    candidate = ops.logical_and(near, valid)
    overlap = ops.where(valid, pairwise_iou(anchors, boxes), 0.0)

    weight = ops.cast(candidate, "float32")
    count = ops.sum(weight, axis=1, keepdims=True)
    mean = ops.sum(weight * overlap, axis=1, keepdims=True) / ops.maximum(count, 1.0)
    variance = ops.sum(weight * ops.square(overlap - mean), axis=1, keepdims=True)
    threshold = mean + ops.sqrt(variance / ops.maximum(count - 1.0, 1.0))
    x, y = _centres(anchors)
    inside = ops.logical_and(
        ops.logical_and(x > boxes[:, None, :, 0], x < boxes[:, None, :, 2]),
        ops.logical_and(y > boxes[:, None, :, 1], y < boxes[:, None, :, 3]),
    )
    learns = ops.logical_and(ops.logical_and(candidate, inside), overlap >= threshold)

    most = ops.max(overlap, axis=1, keepdims=True)
    best = ops.logical_and(overlap >= most * (1.0 - 1e-5), most > 0.0)
    without = ops.logical_not(ops.any(learns, axis=1, keepdims=True))
    learns = ops.logical_or(learns, ops.logical_and(best, without))
    matched = argmax(ops.where(learns, overlap, -1.0), axis=-1)
    targets = ops.where(
        ops.any(learns, axis=-1), ops.take_along_axis(labels, matched, axis=1), BACKGROUND
    )
    matched_boxes = ops.take_along_axis(boxes, matched[..., None], axis=1)
    return encode_boxes(anchors, matched_boxes), ops.cast(targets, "int32")


def _centres(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """x and y, (1, A, 1) each."""
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2.0
    return centre[None, :, None, 0], centre[None, :, None, 1]


def _nearest(anchors: Tensor, boxes: Tensor, cells: int) -> Tensor:
    """(B, A, M) bool: the anchors of the cells nearest to the centre of each box, ties included."""
    x, y = _centres(anchors)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2.0
    away = ops.square(x - centre[:, None, :, 0]) + ops.square(y - centre[:, None, :, 1])
    count = cells * ANCHORS_PER_CELL
    # A level may have fewer anchors: a number that TensorFlow does not know in an open graph.
    nearness = ops.pad(
        -ops.transpose(away, (0, 2, 1)), [(0, 0), (0, 0), (0, count)], constant_values=-1e30
    )
    nearest, _ = top_k(nearness, count)
    return away <= -ops.transpose(nearest[..., -1:], (0, 2, 1))
