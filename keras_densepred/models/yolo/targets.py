"""Which slots of YOLOv3 learn which object, as Darknet assigns them (`forward_yolo_layer`).

A slot is one anchor in one cell of a level. The anchor whose shape overlaps an object most, of the
anchors of all levels, learns it, at the cell of its centre, on each level that has this anchor;
with a threshold below 1 so do all other anchors whose shape overlaps it by more.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_densepred.ops.argmax import argmax

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of a batch.

    Attributes:
        boxes: (B, M, 4) float32 centre x, centre y, width, height in shares of the image.
        classes: (B, M, C) float32 one-hot, all 0 for padding.
        valid: (B, M) bool; padding and boxes without area are not.
    """

    boxes: Tensor
    classes: Tensor
    valid: Tensor


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Who learns what on one level of N cells and A anchors.

    Attributes:
        cell: (B, M) int32 the cell of an object's centre, in 0..N - 1.
        weight: (B, M, A) float32, 1 where an anchor learns an object, 1 / k if it learns k of them
            in this cell, else 0.
        classes: (B, M, A, C) float32 in {0, 1}: the classes of all objects that slot learns.
        positive: (B, N, A) bool: whether a slot learns anything.
        offset: (B, M, 2) position of the centre in its cell, in [0, 1].
    """

    cell: Tensor
    weight: Tensor
    classes: Tensor
    positive: Tensor
    offset: Tensor


def shape_overlap(boxes: Tensor, anchors: Sequence[tuple[float, float]]) -> Tensor:
    """Intersection over union of boxes and anchors around one centre.

    Args:
        boxes: (..., 2) width and height in pixels.
        anchors: A widths and heights in pixels.

    Returns:
        (..., A) float32.
    """
    shapes = ops.convert_to_tensor(anchors, "float32")
    both = ops.minimum(boxes[..., None, :], shapes)
    intersection = both[..., 0] * both[..., 1]
    area = boxes[..., 0] * boxes[..., 1]
    return intersection / (area[..., None] + shapes[:, 0] * shapes[:, 1] - intersection)


def learning_anchors(
    objects: Objects,
    image_size: Tensor,
    anchors: Sequence[tuple[float, float]],
    threshold: float,
) -> Tensor:
    """Which of all anchors learn an object.

    Args:
        objects: M objects an image.
        image_size: (2,) width and height in pixels.
        anchors: all anchors of the detector, in pixels.
        threshold: `YOLOLoss.anchor_threshold`.

    Returns:
        (B, M, len(anchors)) bool; none learns padding. Of equal overlaps the first anchor's counts.
    """
    overlap = shape_overlap(objects.boxes[..., 2:] * image_size, anchors)
    best = argmax(overlap, axis=-1)[..., None]
    learns = ops.cast(best, "int32") == ops.arange(len(anchors), dtype="int32")
    if threshold < 1.0:
        learns = ops.logical_or(learns, overlap > threshold)
    return ops.logical_and(learns, objects.valid[..., None])


def assign_level(objects: Objects, learns: Tensor, grid_size: Tensor, cells: Tensor) -> Assignment:
    """Puts the objects of a batch into the slots of one level.

    Args:
        objects: M objects an image.
        learns: (B, M, A) bool: which of the level's anchors learn an object.
        grid_size: (2,) float32 columns and rows.
        cells: (N, 2) float32 column and row of each cell.

    Returns:
        The assignment. The class targets of a slot that learns several objects are those of all,
        as in Darknet; of their boxes it learns the mean loss (Darknet adds up, and takes this mean
        where `iou_thresh` is below 1 and their classes differ).
    """
    position = objects.boxes[..., :2] * grid_size
    # A centre on the right or lower edge of the image is in the last cell.
    corner = ops.minimum(ops.maximum(ops.floor(position), 0.0), grid_size - 1.0)
    index = corner[..., 1] * grid_size[0] + corner[..., 0]
    learns = ops.cast(learns, "float32")
    together = ops.cast(index[:, :, None] == index[:, None, :], "float32")
    count = ops.einsum("bmn,bna->bma", together, learns)
    classes = learns[..., None] * objects.classes[:, :, None]
    classes = ops.einsum("bmn,bnac->bmac", together, classes)
    cell_index = cells[:, 1] * grid_size[0] + cells[:, 0]
    inside = ops.cast(cell_index[None, :, None] == index[:, None, :], "float32")
    return Assignment(
        cell=ops.cast(index, "int32"),
        weight=learns / ops.maximum(count, 1.0),
        classes=ops.minimum(classes, 1.0),
        positive=ops.einsum("bnm,bma->bna", inside, learns) > 0.0,
        offset=ops.clip(position - corner, 0.0, 1.0),
    )
