"""Which query answers for which object, and what that costs.

"End-to-End Object Detection with Transformers" (Carion et al., 2020), section 3.1, with the focal
loss and the weights of "Deformable DETR", for all layers of the decoder at once.
"""

import dataclasses
from typing import Any

from keras import ops

from keras_densepred.models.retinanet.losses import SigmoidFocalLoss
from keras_densepred.ops.assignment import assign
from keras_densepred.ops.boxes import centre_to_corners, corners_to_centre, giou_loss
from keras_densepred.ops.rows import gather_rows

Tensor = Any

CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0  # of costs and of losses
ALPHA, GAMMA = 0.25, 2.0
EPSILON = 1e-12  # in the logarithms of the cost


@dataclasses.dataclass(frozen=True)
class Objects:
    """What a batch shows.

    Attributes:
        boxes: (B, G, 4) float32 centre x, centre y, width, height in 0..1 of what is image.
        labels: (B, G) int32, negative for padding.
        sizes: (B, 2) float32, height and width in pixels of what is image.
    """

    boxes: Tensor
    labels: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, targets: dict[str, Tensor], sizes: Tensor) -> "Objects":
        """Of `"boxes"` (B, G, 4) xyxy in pixels and `"labels"` (B, G)."""
        boxes = corners_to_centre(targets["boxes"]) / _scale(sizes)[:, None]
        return cls(boxes, targets["labels"], sizes)

    def of_one_class(self) -> "Objects":
        """The same with label 0 for all."""
        return dataclasses.replace(self, labels=ops.minimum(self.labels, 0))

    @property
    def valid(self) -> Tensor:
        """(B, G) bool."""
        return self.labels >= 0

    @property
    def scale(self) -> Tensor:
        """(B, 1, 1, 4) float32: pixels of a whole image, along the numbers of a box."""
        return _scale(self.sizes)[:, None, None]


def _scale(sizes: Tensor) -> Tensor:
    return ops.concatenate([ops.flip(sizes, axis=-1)] * 2, axis=-1)


def matching_costs(logits: Tensor, boxes: Tensor, objects: Objects) -> Tensor:
    """What it costs that a query answers for an object.

    Args:
        logits: (B, L, Q, C) float32.
        boxes: (B, L, Q, 4) as those of `Objects`.
        objects: of the batch.

    Returns:
        (B, L, Q, G) float32; of padding it is finite and means nothing.
    """
    probability = ops.sigmoid(logits)
    found = ALPHA * (1.0 - probability) ** GAMMA * -ops.log(probability + EPSILON)
    missed = (1.0 - ALPHA) * probability**GAMMA * -ops.log(1.0 - probability + EPSILON)
    # Class by class in one gather of rows, (B, C, L * Q) -> (B, G, L * Q).
    batch, layers, queries, classes = ops.shape(logits)
    # Without -1, by which a graph of TensorFlow would forget how long a row is.
    by_layer = ops.reshape(found - missed, (batch, layers * queries, classes))
    by_class = ops.transpose(by_layer, (0, 2, 1))
    rows = gather_rows(by_class, ops.maximum(objects.labels, 0))
    class_cost = ops.reshape(ops.transpose(rows, (0, 2, 1)), (batch, layers, queries, -1))

    ours, theirs = boxes[..., :, None, :], objects.boxes[:, None, None]
    distance = sum(ops.abs(ours[..., i] - theirs[..., i]) for i in range(4))
    ours = centre_to_corners(boxes * objects.scale)[..., None, :]
    theirs = centre_to_corners(theirs * objects.scale[:, None])
    # The loss is 1 - GIoU; what is the same for all queries changes nothing but the number.
    overlap = 1.0 - giou_loss(ours, theirs)
    return CLASS_WEIGHT * class_cost + L1_WEIGHT * distance - GIOU_WEIGHT * overlap


def match(logits: Tensor, boxes: Tensor, objects: Objects) -> Tensor:
    """The query of each object, one to one and cheapest in sum, for each layer by itself.

    Args:
        logits: (B, L, Q, C) float32.
        boxes: (B, L, Q, 4).
        objects: of the batch.

    Returns:
        (B, L, G) int32, -1 for padding and for objects that no query is left for.
    """
    costs = ops.stop_gradient(matching_costs(logits, boxes, objects))
    valid = ops.broadcast_to(objects.valid[:, None], (*ops.shape(costs)[:2], ops.shape(costs)[3]))
    return assign(costs, valid)


@dataclasses.dataclass(frozen=True)
class LayerLosses:
    """Of each of L layers, (L,) float32, weighted.

    Attributes:
        classification: focal loss of all queries and classes.
        l1: of the numbers of matched boxes.
        giou: of matched boxes.
    """

    classification: Tensor
    l1: Tensor
    giou: Tensor

    @property
    def total(self) -> Tensor:
        """(L,)."""
        return self.classification + self.l1 + self.giou


def layer_losses(
    logits: Tensor, boxes: Tensor, objects: Objects, assigned: Tensor, normalizer: Tensor
) -> LayerLosses:
    """Losses of all layers.

    Args:
        logits: (B, L, Q, C) float32.
        boxes: (B, L, Q, 4).
        objects: of the batch.
        assigned: what `match` gave.
        normalizer: what sums are divided by.
    """
    batch, layers, queries, classes = ops.shape(logits)
    matched = assigned >= 0  # (B, L, G)
    numbers = ops.arange(queries, dtype="int32")
    answers = ops.where(assigned[..., None] == numbers, objects.labels[:, None, :, None], -1)
    labels = ops.max(answers, axis=2)  # (B, L, Q): the class that a query answers for
    is_class = labels[..., None] == ops.arange(classes, dtype="int32")
    focal = SigmoidFocalLoss(ALPHA, GAMMA).call(ops.cast(is_class, "float32"), logits)

    flat = ops.reshape(boxes, (-1, queries, 4))
    index = ops.reshape(ops.maximum(assigned, 0), (-1, ops.shape(assigned)[2]))
    ours = ops.reshape(gather_rows(flat, index), (batch, layers, -1, 4))
    theirs = objects.boxes[:, None]
    share = ops.cast(matched, "float32") / normalizer
    distance = ops.sum(ops.abs(ours - theirs), axis=-1)
    apart = giou_loss(
        centre_to_corners(ours * objects.scale), centre_to_corners(theirs * objects.scale)
    )
    return LayerLosses(
        CLASS_WEIGHT * ops.sum(focal, axis=(0, 2)) / normalizer,
        L1_WEIGHT * ops.sum(share * distance, axis=(0, 2)),
        GIOU_WEIGHT * ops.sum(share * apart, axis=(0, 2)),
    )
