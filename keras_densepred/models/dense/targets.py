"""Which places of the maps answer for which object: task-aligned assignment.

Feng et al., "TOOD: Task-aligned One-stage Object Detection" (ICCV 2021), section 3.3. All images of
a batch at once, with shapes that depend on nothing but those of the inputs.
"""

from typing import Any

from keras import ops

from keras_densepred.ops.argmax import argmax
from keras_densepred.ops.boxes import pairwise_iou
from keras_densepred.ops.rows import top_k

Tensor = Any

BACKGROUND = -1
ALIGNED_PLACES = 13  # m of the paper: the best places of an object, which learn it
SCORE_POWER, OVERLAP_POWER = 1.0, 6.0  # alpha and beta


def aligned_places(
    places: Tensor,
    found: Tensor,
    scores: Tensor,
    boxes: Tensor,
    labels: Tensor,
    cell: float,
    count: int = ALIGNED_PLACES,
) -> tuple[Tensor, Tensor]:
    """Each object takes the places inside of it whose predictions fit it best.

    How well place i fits object j is `t = s^alpha u^beta`, with the score s of the object's class
    and the overlap u of the boxes. A place that several objects take goes to the one that its box
    overlaps most. Quality is t, scaled for each object so that its largest is the largest u.

    In the paper an object between the places is nobody's. Here one that is narrower or lower than
    a cell of the finest level counts as one of a cell's side, so that a place lies in each.

    Args:
        places: (N, 2) x, y in pixels, the centres of the cells.
        found: (B, N, 4) predicted boxes, xyxy in pixels.
        scores: (B, N, C) in 0..1.
        boxes: (B, M, 4) xyxy in pixels, M >= 1; rows of padding may hold anything finite.
        labels: (B, M) int32, negative where there is no object.
        cell: side of a cell of the finest level in pixels.
        count: m, places of an object at most; a few more where fits are equal.

    Returns:
        (B, N) int32 index of the object, or -1, and (B, N) float32 quality in 0..1, 0 where there
        is no object. Neither takes a gradient.
    """
    found, scores = ops.stop_gradient(found), ops.stop_gradient(scores)
    objects = _at_least(boxes, cell)
    valid = ops.expand_dims(labels, 1) >= 0
    candidate = ops.logical_and(_inside(places, objects), valid)
    overlap = ops.where(candidate, pairwise_iou(found, objects), 0.0)
    # As a product of matrices: a gather goes element by element on TensorFlow.
    classes = ops.cast(
        labels[..., None] == ops.arange(scores.shape[-1], dtype="int32"), scores.dtype
    )
    score = ops.matmul(scores, ops.transpose(classes, (0, 2, 1)))
    fit = ops.power(score, SCORE_POWER) * ops.power(overlap, OVERLAP_POWER)

    # Those that reach the m-th largest, which needs no scatter; padding and what has no fit at all
    # would reach 0.
    by_object = ops.transpose(fit, (0, 2, 1))
    number = by_object.shape[2]  # None in a TensorFlow graph of open image size
    best, _ = top_k(by_object, count if number is None else min(count, number))
    least = ops.transpose(best[..., -1:], (0, 2, 1))
    taken = ops.logical_and(fit >= least, fit > 0.0)
    rival = ops.where(taken, overlap, -1.0)
    owner = ops.where(ops.any(taken, axis=-1), argmax(rival, axis=-1), BACKGROUND)
    owner = ops.cast(owner, "int32")

    indices = ops.arange(ops.shape(boxes)[1], dtype="int32")
    owned = owner[..., None] == indices
    fit, overlap = ops.where(owned, fit, 0.0), ops.where(owned, overlap, 0.0)
    most_fit = ops.max(fit, axis=1, keepdims=True)
    scale = ops.max(overlap, axis=1, keepdims=True) / ops.where(most_fit > 0.0, most_fit, 1.0)
    return owner, ops.sum(fit * scale, axis=-1)


def _at_least(boxes: Tensor, side: float) -> Tensor:
    """Boxes grown around their centres to this side at least."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2.0
    half = ops.maximum(boxes[..., 2:] - boxes[..., :2], side) / 2.0
    return ops.concatenate([centre - half, centre + half], axis=-1)


def _inside(places: Tensor, boxes: Tensor) -> Tensor:
    """(B, N, M) bool: whether a place (N, 2) lies in a box (B, M, 4) or on its edge."""
    inside: Tensor = True
    # One coordinate at a time, as in `pairwise_iou`.
    for axis in (0, 1):
        place = places[None, :, None, axis]
        inside = ops.logical_and(inside, place >= boxes[:, None, :, axis])
        inside = ops.logical_and(inside, place <= boxes[:, None, :, axis + 2])
    return inside
