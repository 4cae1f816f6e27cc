"""RetinaNet's anchors: where they are, what each one learns, and how its output becomes a box.

As the CEDNet and BiCSNet papers train (MMDetection's RetinaNet): at each cell of a level of stride
s, nine boxes around the cell's corner (s x, s y), of sizes 4 s 2^(0, 1/3, 2/3) and ratios
height / width of 0.5, 1 and 2; overlap 0.5 for a positive, below 0.4 for background; box deltas
(dx / w, dy / h, log w, log h) without variances.
"""

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

Tensor = Any

ANCHOR_SCALE = 4.0  # anchor side over stride, at the first octave
OCTAVE_SCALES = (1.0, 2.0 ** (1 / 3), 2.0 ** (2 / 3))
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width
ANCHORS_PER_CELL = len(OCTAVE_SCALES) * len(ASPECT_RATIOS)
POSITIVE_IOU = 0.5
NEGATIVE_IOU = 0.4
BACKGROUND = -1
IGNORED = -2

# Largest |log| of a size ratio that decoding follows: an anchor grows or shrinks 62.5 times at
# most, so an untrained or diverging model gives large boxes instead of infinite ones.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)


def anchor_boxes(
    height: int | Tensor,
    width: int | Tensor,
    levels: Sequence[int],
    anchor_scale: float = ANCHOR_SCALE,
    octave_scales: Sequence[float] = OCTAVE_SCALES,
) -> Tensor:
    """Anchors of one image size.

    Args:
        height: image height in pixels; an integer, or a scalar tensor in a TensorFlow graph of
            open image size.
        width: image width in pixels.
        levels: pyramid levels such as `range(3, 8)`; level n has stride 2^n and
            ceil(size / stride) cells a side.
        anchor_scale: side of the smallest square anchor of a level over its stride.
        octave_scales: sides of the square anchors of a cell over that of the smallest.

    Returns:
        (A, 4) float32 xyxy in pixels, not clipped to the image. Order: level, row, column, ratio,
        scale.
    """
    parts = [
        _level_anchors(height, width, 2**level, anchor_scale, octave_scales) for level in levels
    ]
    return ops.concatenate(parts, axis=0)


def _level_anchors(
    height: int | Tensor,
    width: int | Tensor,
    stride: int,
    anchor_scale: float,
    octave_scales: Sequence[float],
) -> Tensor:
    half_sides = []
    for ratio in ASPECT_RATIOS:
        for octave in octave_scales:
            side = anchor_scale * octave * stride
            half_sides.append((side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2))
    half_sides = ops.convert_to_tensor(half_sides, "float32")[None, None]
    x = ops.cast(ops.arange((width + stride - 1) // stride, dtype="int32") * stride, "float32")
    y = ops.cast(ops.arange((height + stride - 1) // stride, dtype="int32") * stride, "float32")
    y, x = ops.meshgrid(y, x, indexing="ij")
    centre = ops.stack([x, y], axis=-1)[:, :, None]
    return ops.reshape(
        ops.concatenate([centre - half_sides, centre + half_sides], axis=-1), (-1, 4)
    )


def assign_targets(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    positive_iou: float = POSITIVE_IOU,
    negative_iou: float = NEGATIVE_IOU,
    least_best_iou: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """What each anchor has to predict.

    An anchor belongs to the box it overlaps most if that is at least 0.5; below 0.4 it is
    background, between the two it is ignored. Beside that every box takes the anchors that overlap
    it most, however little that is (the smallest anchor is 32 px, a box below 16 px has no
    other), and an anchor wanted by several boxes in that way goes to the one it overlaps most.
    This is MMDetection's MaxIoUAssigner with `min_pos_iou=0`, except that there the last of
    several such boxes gets the anchor.

    Args:
        anchors: (A, 4) xyxy.
        boxes: (B, M, 4) xyxy in the same unit; padding rows may hold anything finite.
        labels: (B, M) class indices, negative for padding rows.
        positive_iou: the 0.5 above; 0.7 in a region proposal network.
        negative_iou: the 0.4 above; 0.3 in a region proposal network.
        least_best_iou: a box takes those anchors only that overlap it by more than this (0.3 in a
            region proposal network).

    Returns:
        Deltas (B, A, 4) float32, meaningful where the label is >= 0 and finite everywhere, and
        labels (B, A) int32: class index, -1 for background, -2 for ignored.
    """
    boxes = ops.cast(boxes, "float32")
    labels = ops.cast(labels, "int32")
    if boxes.shape[1] == 0:
        boxes = ops.pad(boxes, [(0, 0), (0, 1), (0, 0)], constant_values=-1.0)
        labels = ops.pad(labels, [(0, 0), (0, 1)], constant_values=-1)
    overlap = ops.where(labels[:, None] >= 0, pairwise_iou(anchors, boxes), 0.0)

    best_of_box = ops.max(overlap, axis=1, keepdims=True)
    # The margin keeps equal overlaps equal whatever order a backend multiplies in: all anchors
    # around a small box tie, and they are positive together.
    is_best = ops.logical_and(overlap >= best_of_box * (1.0 - 1e-5), best_of_box > least_best_iou)
    preference = ops.where(is_best, overlap + 1.0, overlap)
    matched = ops.argmax(preference, axis=-1)
    best_overlap = ops.max(overlap, axis=-1)
    positive = ops.logical_or(ops.any(is_best, axis=-1), best_overlap >= positive_iou)

    targets = ops.where(best_overlap < negative_iou, BACKGROUND, IGNORED)
    targets = ops.where(positive, ops.take_along_axis(labels, matched, axis=1), targets)
    matched_boxes = ops.take_along_axis(boxes, matched[..., None], axis=1)
    return encode_boxes(anchors, matched_boxes), ops.cast(targets, "int32")


def pairwise_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(B, A, M) intersection over union of (A, 4) or (B, A, 4) with (B, M, 4)."""
    anchors = ops.expand_dims(anchors if len(anchors.shape) == 3 else anchors[None], 2)
    boxes = boxes[:, None]
    # One coordinate at a time: a last axis of two would cost a strided pass over B x A x M.
    overlap_x = ops.minimum(anchors[..., 2], boxes[..., 2]) - ops.maximum(
        anchors[..., 0], boxes[..., 0]
    )
    overlap_y = ops.minimum(anchors[..., 3], boxes[..., 3]) - ops.maximum(
        anchors[..., 1], boxes[..., 1]
    )
    intersection = ops.maximum(overlap_x, 0.0) * ops.maximum(overlap_y, 0.0)
    anchor_area = (anchors[..., 2] - anchors[..., 0]) * (anchors[..., 3] - anchors[..., 1])
    box_area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return intersection / ops.maximum(anchor_area + box_area - intersection, 1e-6)


def encode_boxes(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The deltas that `decode_boxes` makes boxes of again.

    Args:
        anchors: (A, 4) or (B, A, 4) xyxy in pixels; one without area counts as a thousandth.
        boxes: (B, A, 4) xyxy in pixels, likewise.

    Returns:
        (B, A, 4) float32, finite for any finite boxes.
    """
    anchor_size = ops.maximum(anchors[..., 2:] - anchors[..., :2], 1e-3)
    size = ops.maximum(boxes[..., 2:] - boxes[..., :2], 1e-3)
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2.0
    return ops.concatenate([shift / anchor_size, ops.log(size / anchor_size)], axis=-1)


def decode_boxes(
    anchors: Tensor,
    deltas: Tensor,
    height: int | Tensor | None = None,
    width: int | Tensor | None = None,
) -> Tensor:
    """Boxes from predicted deltas, clipped to the image.

    Args:
        anchors: (A, 4) xyxy in pixels, or (B, A, 4), each image its own.
        deltas: (B, A, 4), any float type.
        height: image height in pixels; None for boxes that are not clipped.
        width: image width in pixels.

    Returns:
        (B, A, 4) float32 xyxy in pixels, 0 <= x <= width and 0 <= y <= height if given.
    """
    deltas = ops.cast(deltas, "float32")
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2.0 + deltas[..., :2] * anchor_size
    half = anchor_size * ops.exp(ops.clip(deltas[..., 2:], -MAX_LOG_RATIO, MAX_LOG_RATIO)) / 2.0
    corners = ops.concatenate([centre - half, centre + half], axis=-1)
    if height is None:
        return corners
    limit = ops.cast(ops.stack([width, height, width, height]), "float32")
    return ops.minimum(ops.maximum(corners, 0.0), limit)
