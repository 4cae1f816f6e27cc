"""What masks are trained towards, looked at in points: instances, or classes of a label map."""

import dataclasses
from typing import Any, Protocol

from keras import ops

from keras_densepred.ops.point_samples import labels_at_points, sample_points
from keras_densepred.ops.rows import gather_rows

Tensor = Any

_OUTSIDE = -9.0  # of any map


class MaskTargets(Protocol):
    """M targets of each image of a batch, of which some are padding."""

    @property
    def labels(self) -> Tensor:
        """(B, M) int32, negative for padding."""

    @property
    def counted(self) -> Tensor | None:
        """(B,) float32, 1 for images that train, 0 for those that tell nothing; None: all do."""

    def at(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """All targets at the same points of an image.

        Args:
            points: (B, P, 2) float32 x, y in 0..1 of the image.

        Returns:
            (B, M, P) float32 in 0..1, and (B, P) float32, 0 where a point does not count; None
            where all do.
        """

    def at_each(self, points: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Each target at its own points.

        Args:
            points: (B, K, P, 2) as above.
            chosen: (B, K) int32, which targets; None: all in their order.

        Returns:
            (B, K, P), and (B, K, P) or None, as above.
        """

    def counts_at(self, points: Tensor) -> Tensor | None:
        """Which points count, (B, K, P) float32 of (B, K, P, 2), or None; as above."""


@dataclasses.dataclass(frozen=True)
class InstanceMasks:
    """Masks that are cut out by their boxes: a target is zero outside of its box.

    A hundred whole masks of 1024 px are 100 MB an image, cut out at 112 cells 1.3 MB. Both differ
    at borders only, by half a cell or half a pixel: on masks of COCO, scaled to boxes of 112, 448
    and 900 px, samples at random points differ from those of whole masks by 1.7, 2.7 and 2.9 % of
    the object's area in all, where masks of stride 4 themselves miss 4.5, 0.7 and 0.3 %.

    Attributes:
        boxes: (B, M, 4) float32 xyxy in 0..1 of the image.
        masks: (B, M, S, T), 1 on the object, each from edge to edge of its box.
        labels: (B, M) int32, negative for padding.
    """

    boxes: Tensor
    masks: Tensor
    labels: Tensor
    counted: None = None

    @classmethod
    def of(cls, targets: dict[str, Tensor], images: Tensor) -> "InstanceMasks":
        """Of `"boxes"` (B, M, 4) xyxy in pixels, `"masks"` and `"labels"`."""
        height, width = (ops.cast(side, "float32") for side in ops.shape(images)[1:3])
        boxes = targets["boxes"] / ops.stack([width, height, width, height])
        return cls(boxes, targets["masks"], targets["labels"])

    def at(self, points: Tensor) -> tuple[Tensor, None]:
        batch, count = ops.shape(self.labels)
        every = (batch, count, *ops.shape(points)[1:])
        return self.at_each(ops.broadcast_to(points[:, None], every))

    def at_each(self, points: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, None]:
        boxes, masks = self.boxes, self.masks
        if chosen is not None:
            boxes, masks = gather_rows(boxes, chosen), gather_rows(masks, chosen)
        low, extent = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
        low, extent = low[:, :, None], extent[:, :, None]
        inside = (points - low) / ops.maximum(extent, 1e-6)
        inside = ops.where(extent > 0.0, inside, _OUTSIDE)
        number = ops.shape(points)[2]
        maps = ops.reshape(masks, (-1, *ops.shape(masks)[2:], 1))
        values = sample_points(maps, ops.reshape(inside, (-1, number, 2)))
        return ops.reshape(values, ops.shape(points)[:3]), None

    def counts_at(self, points: Tensor) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class ClassMasks:
    """Each class that a label map has is one target: where the map has its label.

    A point has the label of the pixel that it lies in. Points on ignored pixels do not count: not
    in the costs of matching, not in the losses of any mask, and they are the last to be chosen as
    uncertain. An image without any label does not train at all.

    Attributes:
        semantic: (B, H, W) integers.
        num_classes: C, and M.
        ignore_label: of pixels that do not count.
    """

    semantic: Tensor
    num_classes: int
    ignore_label: int

    @property
    def labels(self) -> Tensor:
        numbers = ops.arange(self.num_classes, dtype="int32")
        return ops.where(self._present, numbers[None], -1)

    @property
    def counted(self) -> Tensor:
        return ops.cast(ops.any(self._present, axis=1), "float32")

    @property
    def _present(self) -> Tensor:
        """(B, C) bool."""
        flat = ops.reshape(ops.cast(self.semantic, "int32"), (ops.shape(self.semantic)[0], -1))
        return ops.stack(
            [ops.any(flat == label, axis=1) for label in range(self.num_classes)], axis=1
        )

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        found = labels_at_points(self.semantic, points)
        numbers = ops.arange(self.num_classes, dtype="int32")
        values = ops.cast(found[:, None] == numbers[None, :, None], "float32")
        return values, ops.cast(found != self.ignore_label, "float32")

    def at_each(self, points: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        found = self._labels_at(points)
        numbers = ops.arange(self.num_classes, dtype="int32")[None] if chosen is None else chosen
        values = ops.cast(found == numbers[..., None], "float32")
        return values, ops.cast(found != self.ignore_label, "float32")

    def counts_at(self, points: Tensor) -> Tensor:
        return ops.cast(self._labels_at(points) != self.ignore_label, "float32")

    def _labels_at(self, points: Tensor) -> Tensor:
        """(B, K, P) int32 of (B, K, P, 2)."""
        shape = ops.shape(points)[:3]
        flat = ops.reshape(points, (shape[0], -1, 2))
        return ops.reshape(labels_at_points(self.semantic, flat), shape)
