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

from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.boxes import encode_boxes, pairwise_iou

Tensor = Any

ANCHOR_SCALE = 4.0  # anchor side over stride, at the first octave
OCTAVE_SCALES = (1.0, 2.0 ** (1 / 3), 2.0 ** (2 / 3))
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width
ANCHORS_PER_CELL = len(OCTAVE_SCALES) * len(ASPECT_RATIOS)
POSITIVE_IOU = 0.5
NEGATIVE_IOU = 0.4
BACKGROUND = -1
IGNORED = -2


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
        level_anchors(height, width, 2**level, anchor_scale, octave_scales) for level in levels
    ]
    return ops.concatenate(parts, axis=0)


def level_anchors(
    height: int | Tensor,
    width: int | Tensor,
    stride: int,
    anchor_scale: float = ANCHOR_SCALE,
    octave_scales: Sequence[float] = OCTAVE_SCALES,
) -> Tensor:
    """Anchors (A, 4) of the level of a stride, otherwise as `anchor_boxes`."""
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


def grid_points(
    height: int | Tensor, width: int | Tensor, levels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Where the cells of all levels begin, level by level, row by row.

    Args:
        height: as in `anchor_boxes`.
        width: likewise.
        levels: likewise.

    Returns:
        (N, 2) float32 x, y in pixels, of the first pixel of a cell, not of its centre, and (N,)
        int32 numbers of the levels.
    """
    points, numbers = [], []
    for level in levels:
        stride = 2**level
        y = ops.arange(-(-height // stride), dtype="float32") * float(stride)
        x = ops.arange(-(-width // stride), dtype="float32") * float(stride)
        y, x = (ops.reshape(part, (-1,)) for part in ops.meshgrid(y, x, indexing="ij"))
        points.append(ops.stack([x, y], axis=-1))
        numbers.append(ops.full_like(ops.cast(x, "int32"), level))
    return ops.concatenate(points), ops.concatenate(numbers)


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
    matched = argmax(preference, axis=-1)
    best_overlap = ops.max(overlap, axis=-1)
    positive = ops.logical_or(ops.any(is_best, axis=-1), best_overlap >= positive_iou)

    targets = ops.where(best_overlap < negative_iou, BACKGROUND, IGNORED)
    targets = ops.where(positive, ops.take_along_axis(labels, matched, axis=1), targets)
    matched_boxes = ops.take_along_axis(boxes, matched[..., None], axis=1)
    return encode_boxes(anchors, matched_boxes), ops.cast(targets, "int32")
