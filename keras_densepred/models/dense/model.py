"""A dense detector of today's kind, from its papers: no anchors, aligned assignment, distributions.

Feng et al., "TOOD: Task-aligned One-stage Object Detection" (ICCV 2021), section 3.3: which places
learn an object, and how well they are to do. Li et al., "Generalized Focal Loss" (NeurIPS 2020):
class scores that say how good the box is, sides as distributions. Ge et al., "YOLOX" (2021),
section 2.1: towers for classes and boxes apart. Wang et al., "YOLOv10" (2024), section 3.1: a
second head that finds each object once.
"""

from typing import Any

import keras
from keras import ops

from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.faults import require_positive
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.models.anchors import grid_points
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.decoding import NonMaxSuppression, TopDetections
from keras_densepred.models.dense.head import boxes_of, predict_levels
from keras_densepred.models.dense.losses import (
    CLASS_LOSSES,
    distribution_focal_loss,
    quality_focal_loss,
    varifocal_loss,
)
from keras_densepred.models.dense.targets import ALIGNED_PLACES, aligned_places
from keras_densepred.models.detector import DenseDetector
from keras_densepred.models.pyramid import as_pyramid, image_shape, pyramid_levels, pyramid_width
from keras_densepred.necks.pan import NORM_MOMENTUM, CSPPathAggregation
from keras_densepred.ops.boxes import clip_boxes, giou_loss
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

_NECK_WIDTH = 96
# Of GIoU and of distributions: twice those of TOOD and of Generalized Focal Loss. From random
# weights on the built-in shapes AP is 0.425 after 500 steps; with the papers' weights 0.379, with
# four times them 0.416.
_BOX_WEIGHT = 4.0
_DISTRIBUTION_WEIGHT = 0.5
_ONCE = "once_"  # before the outputs of the head that finds each object once


@keras.saving.register_keras_serializable(package="keras_densepred")
class TaskAlignedDetector(DenseDetector, keras.Model):
    """A one-stage detector without anchors that learns where its own predictions fit best.

    Each cell of each level predicts class scores and the distances to the four sides of a box, each
    as a distribution over 0 to `reach` strides. An object is learned by the 13 cells inside of it
    whose score and overlap are highest together; their score learns to be the overlap. Batch norms
    in the towers make it learn quickly from random weights.

    Args:
        backbone: a pyramid (`DetectionPyramid` on CEDNet, BiCSNet, any neck), or a backbone with P3
            to P5, around which `CSPPathAggregation` of 96 channels is put.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        head_width: channels of the towers; by default the pyramid's.
        head_depth: 3x3 convolutions of each tower.
        head_activation: `"swish"`, `"relu"` or another of `ConvNorm`.
        reach: the largest distance from a cell to a side, in strides: 16 on P5 are 512 pixels.
        class_loss: `"quality_focal"` or `"varifocal"`.
        focal_gamma: focusing exponent of the class loss.
        one_to_one: adds a head like the first that learns each object at its best place alone
            (YOLOv10, section 3.1), jointly with the first, which then is for training only:
            detections are this head's and need no suppression.
        prediction_decoder: layer from boxes and scores to detections, scores from 0.05, 100 boxes;
            by default per-class suppression at 0.6, or `TopDetections` with `one_to_one`.
        dtype: dtype policy of the head; by default the backbone's.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` is no pyramid or is channels_first, or an argument is out of
            range.

    Example:
        backbone = keras_densepred.CSPNetBackbone.from_preset("csp_resnet_10")
        model = keras_densepred.models.TaskAlignedDetector(backbone, num_classes=80)
        model.compile()
        model.fit(images, {"boxes": boxes, "labels": labels})
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        head_width: int | None = None,
        head_depth: int = 2,
        head_activation: str = "swish",
        reach: int = 16,
        class_loss: str = "quality_focal",
        focal_gamma: float = 2.0,
        one_to_one: bool = False,
        prediction_decoder: keras.layers.Layer | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        _check(num_classes, head_width, head_depth, reach, class_loss, focal_gamma)

        def neck(backbone: keras.Model) -> keras.Model:
            return CSPPathAggregation(backbone, _NECK_WIDTH, activation=head_activation)

        # === Layers ===
        backbone = as_pyramid(backbone, type(self).__name__, neck)
        dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        width = pyramid_width(backbone) if head_width is None else head_width
        kit = ConvNorm(
            head_activation,
            NORM_MOMENTUM,
            sync_batch_norm=shares_batch_norms(backbone),
            dtype=dtype,
        )

        # === Functional model ===
        images = keras.Input(image_shape(backbone), name="images")
        features = backbone(images)
        sizes = (num_classes, width, head_depth, reach)
        outputs, class_layers = predict_levels(kit, features, *sizes)
        if one_to_one:
            once, more = predict_levels(kit, features, *sizes, prefix="once")
            outputs |= {_ONCE + name: output for name, output in once.items()}
            class_layers += more
        super().__init__(inputs=images, outputs=outputs, **kwargs)

        # === Config ===
        self._set_detector(
            backbone,
            num_classes,
            bounding_box_format,
            dtype,
            losses=("classification_loss", "box_loss", "box_distribution_loss"),
        )
        self.head_width = width
        self.head_depth = head_depth
        self.head_activation = head_activation
        self.reach = reach
        self.class_loss = class_loss
        self.focal_gamma = focal_gamma
        self.pyramid_levels = pyramid_levels(backbone)
        self._class_layers = [layer.name for layer in class_layers]
        self.one_to_one = one_to_one
        self._prediction_decoder = prediction_decoder or (
            TopDetections(confidence_threshold=0.05)
            if one_to_one
            else NonMaxSuppression(bounding_box_format, from_logits=False, iou_threshold=0.6)
        )

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """AdamW with rate 1e-3 and weight decay 0.05: ours, for a batch of 16."""
        return keras.optimizers.AdamW(1e-3, weight_decay=0.05)

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`."""
        layers = (self.get_layer(name) for name in self._class_layers)
        return axes_of([weight for layer in layers for weight in layer.weights], ClassAxis())

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Tensor],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """The class loss, and those of boxes weighted by quality, over the sum of qualities.

        TOOD, equations 5 to 8: a place is worth what it is to reach. With two heads, the sums of
        theirs: YOLOv10's assignments differ in their number of places alone.
        """
        losses = self._losses_of("", ALIGNED_PLACES, images, targets, outputs)
        if self.one_to_one:
            once = self._losses_of(_ONCE, 1, images, targets, outputs)
            losses = {name: loss + once[name] for name, loss in losses.items()}
        return losses

    def _losses_of(
        self,
        head: str,
        count: int,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The losses of the head whose outputs begin so, with so many places an object."""
        boxes, labels = targets["boxes"], targets["labels"]
        places, strides = self._places(images)
        logits, distances = outputs[head + "classification"], outputs[head + "distances"]
        found = boxes_of(distances, places, strides)
        owner, quality = aligned_places(
            *(places, found, ops.sigmoid(logits), boxes, labels),
            cell=2.0 ** self.pyramid_levels[0],
            count=count,
        )
        normalizer = loss_normalizer(ops.sum(quality))
        index = ops.maximum(owner, 0)
        label = ops.where(owner >= 0, ops.take_along_axis(labels, index, axis=1), -1)
        is_class = label[..., None] == ops.arange(self.num_classes, dtype="int32")
        loss = quality_focal_loss if self.class_loss == "quality_focal" else varifocal_loss
        of_classes = loss(logits, ops.where(is_class, quality[..., None], 0.0), self.focal_gamma)
        # Where there is no object, padding's boxes may give anything.
        own = ops.take_along_axis(boxes, index[..., None], axis=1)
        own = ops.where(owner[..., None] >= 0, own, found)
        sides = ops.concatenate([places - own[..., :2], own[..., 2:] - places], axis=-1)
        of_sides = distribution_focal_loss(distances, sides / strides[:, None])
        return {
            "classification_loss": ops.sum(of_classes) / normalizer,
            "box_loss": _BOX_WEIGHT * ops.sum(quality * giou_loss(found, own)) / normalizer,
            "box_distribution_loss": _DISTRIBUTION_WEIGHT
            * ops.sum(quality * of_sides)
            / normalizer,
        }

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = ops.shape(images)[1:3]
        head = _ONCE if self.one_to_one else ""
        boxes = boxes_of(outputs[head + "distances"], *self._places(images))
        return clip_boxes(boxes, height, width), ops.sigmoid(outputs[head + "classification"])

    def _places(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The centres of all cells (N, 2) x, y, and their strides (N,), in pixels."""
        height, width = ops.shape(images)[1:3]
        corners, levels = grid_points(height, width, self.pyramid_levels)
        strides = ops.power(2.0, ops.cast(levels, "float32"))
        return corners + strides[:, None] / 2.0, strides


def _check(
    num_classes: int,
    head_width: int | None,
    head_depth: int,
    reach: int,
    class_loss: str,
    focal_gamma: float,
) -> None:
    require_positive(num_classes=num_classes, head_width=head_width, reach=reach)
    for name, number in (("head_depth", head_depth), ("focal_gamma", focal_gamma)):
        if number < 0:
            raise ValueError(f"`{name}` is {number}; give 0 or more.")
    if class_loss not in CLASS_LOSSES:
        raise ValueError(f"`class_loss` must be one of {CLASS_LOSSES}, got {class_loss!r}.")
