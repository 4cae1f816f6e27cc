"""Which places of the map answer for which object, in RepPoints' two stages.

Section 3.3 of the paper; details are MMDetection's `PointAssigner` and `MaxIoUAssigner`. All images
of a batch at once, with shapes that depend on nothing but those of the inputs.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.boxes import pairwise_iou

Tensor = Any

BACKGROUND, IGNORED = -1, -2
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
_SCALE = 4.0  # an object of 4 x 8 pixels is of stride 8
_FAR = 1e30


def inside_images(points: Tensor, image_sizes: Tensor) -> Tensor:
    """(B, N) bool: whether a point (N, 2) begins inside an image of (B, 2) height and width."""
    sizes = ops.cast(image_sizes, "float32")[:, None]
    return ops.logical_and(points[:, 0] < sizes[..., 1], points[:, 1] < sizes[..., 0])


def nearest_points(
    points: Tensor,
    level_of: Tensor,
    levels: Sequence[int],
    boxes: Tensor,
    labels: Tensor,
    inside: Tensor,
) -> Tensor:
    """First stage: each object has the one point of its level that is nearest to its centre.

    Distances are in sides of the object's box. A point that several objects want goes to the one
    that is nearest to it, the first of equals; the others get none.

    Args:
        points: (N, 2) x, y in pixels.
        level_of: (N,) int32, the level of each point.
        levels: all levels, finest first.
        boxes: (B, M, 4) xyxy in pixels, M >= 1.
        labels: (B, M) int32, negative where there is no object.
        inside: (B, N) bool, which points may be chosen.

    Returns:
        (B, N) int32: index of the object, or -1.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2.0
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6)
    # log2 of sqrt(area) / 4, cut: from 64 pixels on P4. As products, which no logarithm rounds.
    area = ops.prod(sides, axis=-1)
    level = ops.full_like(labels, levels[0])
    for coarser in levels[1:]:
        level = level + ops.cast(area >= (_SCALE * 2.0**coarser) ** 2, "int32")
    # One coordinate at a time: (B, N, M) each.
    away_x, away_y = (
        (points[None, :, None, axis] - centre[:, None, :, axis]) / sides[:, None, :, axis]
        for axis in (0, 1)
    )
    distance = ops.sqrt(ops.square(away_x) + ops.square(away_y))
    wanted = ops.logical_and(
        level_of[None, :, None] == level[:, None], ops.expand_dims(labels, 1) >= 0
    )
    wanted = ops.logical_and(wanted, inside[..., None])
    distance = ops.where(wanted, distance, _FAR)
    nearest = ops.argmin(distance, axis=1)  # (B, M); the first of equals
    number = ops.arange(ops.shape(points)[0], dtype="int32")
    chosen = ops.logical_and(number[None, :, None] == ops.cast(nearest, "int32")[:, None], wanted)
    distance = ops.where(chosen, distance, _FAR)
    owner = ops.cast(ops.argmin(distance, axis=-1), "int32")
    return ops.where(ops.any(chosen, axis=-1), owner, BACKGROUND)


def overlapping_boxes(found: Tensor, boxes: Tensor, labels: Tensor, inside: Tensor) -> Tensor:
    """Second stage: a box belongs to the object that it overlaps by half.

    Below 0.4 it is background, in between it is ignored. Besides, every object takes all boxes that
    overlap it most, later objects from earlier ones; but none if no box touches it. (In MMDetection
    such an object takes every box without overlap, nearly all of an image: its issue 8289.)

    Args:
        found: (B, N, 4) xyxy in pixels.
        boxes: (B, M, 4) of the objects, M >= 1.
        labels: (B, M) int32, negative where there is no object.
        inside: (B, N) bool; the others are ignored.

    Returns:
        (B, N) int32: index of the object, -1 for background, -2 for ignored.
    """
    counts = ops.logical_and(ops.expand_dims(labels, 1) >= 0, inside[..., None])
    overlap = ops.where(counts, pairwise_iou(found, boxes), 0.0)
    best = ops.max(overlap, axis=-1)
    owner = ops.where(best < NEGATIVE_IOU, BACKGROUND, IGNORED)
    first = argmax(overlap, axis=-1)
    owner = ops.where(best >= POSITIVE_IOU, first, owner)
    most = ops.max(overlap, axis=1, keepdims=True)
    takes = ops.logical_and(overlap == most, most > 0.0)
    number = ops.arange(ops.shape(boxes)[1], dtype="int32")
    last = ops.max(ops.where(takes, number, -1), axis=-1)
    owner = ops.where(last >= 0, last, owner)
    return ops.cast(ops.where(inside, owner, IGNORED), "int32")
