"""YOLOv3's loss: one whose gradient is what Darknet propagates (`yolo_layer.c`).

Darknet computes no loss but, for each logit, its change ("delta"). With respect to the logits these
are the gradients of

* objectness and classes: binary cross-entropy on the logits;
* `"mse"` boxes: (2 - w h) times cross-entropy of the offset (for `scale_xy` s, s times that of
  (offset + (s - 1) / 2) / s) and half the squared error of the log sizes: Darknet's deltas skip
  the derivative of the sigmoid;
* `"giou"`, `"ciou"`: 1 - GIoU, 1 - CIoU of the boxes in shares of the image, where the derivative
  by the centre goes to the logits of x and y as it is and that by the size times e^w, e^h.
  Darknet's `iou_normalizer` is chosen for that scale: a true derivative would be smaller by the
  number of cells and by image over anchor. (Darknet also doubles the GIoU part for sizes; not
  here.)
"""

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_densepred.models.yolo.decoding import decode_boxes, size_factor
from keras_densepred.models.yolo.settings import YOLOLoss
from keras_densepred.models.yolo.targets import Assignment, Objects
from keras_densepred.ops.rows import gather_rows

Tensor = Any


def level_losses(
    logits: Tensor,
    objects: Objects,
    assignment: Assignment,
    cells: Tensor,
    grid_size: Tensor,
    image_size: Tensor,
    anchors: Sequence[tuple[float, float]],
    level: str,
    settings: YOLOLoss,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of one level, summed over its slots.

    Args:
        logits: (B, N, A, 5 + C) float32.
        objects: M objects an image.
        assignment: of these objects to this level.
        cells: (N, 2) float32 column and row of each cell.
        grid_size: (2,) float32 columns and rows.
        image_size: (2,) float32 width and height in pixels.
        anchors: the level's A anchors in pixels.
        level: such as "P3".
        settings: of the loss.

    Returns:
        Box, objectness and class loss of each image, (B,) float32 each, normalisers included.
    """
    scale = settings.scale_xy.get(level, 1.0)
    boxes = decode_boxes(
        ops.stop_gradient(logits[..., :4]), cells, anchors, scale, grid_size, image_size
    )
    positive = assignment.positive
    counted = best_overlap(boxes, objects) <= settings.ignore_threshold
    score = logits[..., 4]
    loss = ops.softplus(ops.where(positive, -score, score))
    counted = ops.cast(ops.logical_or(positive, counted), "float32")
    objectness = ops.sum(counted * loss, axis=(1, 2))

    learned = gather_rows(logits, assignment.cell)  # (B, M, A, 5 + C)
    loss = ops.softplus(learned[..., 5:]) - assignment.classes * learned[..., 5:]
    classification = ops.sum(assignment.weight * ops.sum(loss, axis=-1), axis=(1, 2))

    if settings.box_loss == "mse":
        loss = _squared_error(
            learned[..., :4], objects, assignment.offset, anchors, scale, image_size
        )
    else:
        places = ops.take(cells, assignment.cell, axis=0)
        loss = _overlap_loss(
            learned[..., :4], objects, places, anchors, scale, grid_size, image_size, settings
        )
    # Not a product alone: what padding yields need not be finite.
    loss = ops.where(assignment.weight > 0.0, assignment.weight * loss, 0.0)
    return (
        settings.box_normalizer * ops.sum(loss, axis=(1, 2)),
        settings.objectness_normalizer * objectness,
        settings.class_normalizer * classification,
    )


def best_overlap(boxes: Tensor, objects: Objects) -> Tensor:
    """The largest intersection over union of a box with any object of its image.

    Args:
        boxes: (B, N, A, 4) centre x, centre y, width, height.
        objects: M objects an image, boxes alike.

    Returns:
        (B, N, A), 0 in images without objects.
    """
    box = boxes[..., None, :]
    other = objects.boxes[:, None, None]
    sides = [
        ops.minimum(box[..., i] + box[..., i + 2] / 2, other[..., i] + other[..., i + 2] / 2)
        - ops.maximum(box[..., i] - box[..., i + 2] / 2, other[..., i] - other[..., i + 2] / 2)
        for i in (0, 1)
    ]
    intersection = ops.maximum(sides[0], 0.0) * ops.maximum(sides[1], 0.0)
    union = box[..., 2] * box[..., 3] + other[..., 2] * other[..., 3] - intersection
    overlap = ops.where(objects.valid[:, None, None], intersection / ops.maximum(union, 1e-12), 0.0)
    return ops.max(overlap, axis=-1)


def _squared_error(
    logits: Tensor,
    objects: Objects,
    offset: Tensor,
    anchors: Sequence[tuple[float, float]],
    scale: float,
    image_size: Tensor,
) -> Tensor:
    """(B, M, A) box loss "mse" of (B, M, A, 4) logits."""
    centre, size = logits[..., :2], logits[..., 2:]
    shift = offset[:, :, None] + (scale - 1.0) / 2.0
    loss = scale * ops.softplus(centre) - shift * centre
    size_target = ops.log(
        ops.maximum(objects.boxes[..., None, 2:] * image_size, 1e-6)
        / ops.convert_to_tensor(anchors, "float32")
    )
    loss = ops.sum(loss + 0.5 * ops.square(size - size_target), axis=-1)
    area = objects.boxes[..., 2] * objects.boxes[..., 3]
    return (2.0 - area)[..., None] * loss


def _overlap_loss(
    logits: Tensor,
    objects: Objects,
    places: Tensor,
    anchors: Sequence[tuple[float, float]],
    scale: float,
    grid_size: Tensor,
    image_size: Tensor,
    settings: YOLOLoss,
) -> Tensor:
    """(B, M, A) box loss "giou" or "ciou" of (B, M, A, 4) logits at cells (B, M, 2)."""
    fixed = ops.stop_gradient(logits)
    boxes = decode_boxes(fixed, places, anchors, scale, grid_size, image_size)
    growth = size_factor(fixed[..., 2:])
    slope = ops.concatenate([ops.ones_like(growth), growth], axis=-1)
    # The decoded boxes, with Darknet's derivative by the logits.
    boxes = boxes + slope * (logits - fixed)
    # Padding rows get a box with an area, so that no gradient through them is NaN.
    truth = ops.where(objects.valid[..., None], objects.boxes, 0.5)[:, :, None]
    return 1.0 - box_overlap(boxes, truth, complete=settings.box_loss == "ciou")


def box_overlap(boxes: Tensor, truth: Tensor, complete: bool) -> Tensor:
    """Generalised or complete intersection over union.

    "Generalized Intersection over Union" (Rezatofighi et al., 2019), algorithm 1;
    "Distance-IoU Loss" (Zheng et al., 2020), equations 10 to 12, whose weight alpha has no gradient
    and whose aspect term is differentiated without the factor 1 / (w^2 + h^2), as there.

    Args:
        boxes: (..., 4) centre x, centre y, width, height, with an area.
        truth: (..., 4) alike.
        complete: whether CIoU is meant, else GIoU.

    Returns:
        (...), at most 1.
    """
    sides, hull = [], []
    for i in (0, 1):
        low, high = boxes[..., i] - boxes[..., i + 2] / 2, boxes[..., i] + boxes[..., i + 2] / 2
        first = truth[..., i] - truth[..., i + 2] / 2
        last = truth[..., i] + truth[..., i + 2] / 2
        sides.append(ops.maximum(ops.minimum(high, last) - ops.maximum(low, first), 0.0))
        hull.append(ops.maximum(high, last) - ops.minimum(low, first))
    intersection = sides[0] * sides[1]
    area = boxes[..., 2] * boxes[..., 3]
    union = area + truth[..., 2] * truth[..., 3] - intersection
    overlap = intersection / union
    if not complete:
        return overlap - 1.0 + union / (hull[0] * hull[1])
    distance = ops.square(boxes[..., 0] - truth[..., 0]) + ops.square(boxes[..., 1] - truth[..., 1])
    distance = distance / (ops.square(hull[0]) + ops.square(hull[1]))
    angle = ops.arctan2(truth[..., 2], truth[..., 3]) - ops.arctan2(boxes[..., 2], boxes[..., 3])
    aspect = 4.0 / math.pi**2 * ops.square(angle)
    fixed = ops.stop_gradient(aspect)
    square = ops.stop_gradient(ops.square(boxes[..., 2]) + ops.square(boxes[..., 3]))
    alpha = fixed / (1.0 - ops.stop_gradient(overlap) + fixed + 1e-6)
    return overlap - distance - alpha * (fixed + square * (aspect - fixed))
