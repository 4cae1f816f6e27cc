"""RepPoints: Yang et al., "RepPoints: Point Set Representation for Object Detection" (2019)."""

from typing import Any

import keras
from keras import ops

from keras_densepred.faults import require_positive
from keras_densepred.models.anchors import grid_points
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.detector import DenseDetector
from keras_densepred.models.pyramid import as_pyramid, image_shape, pyramid_levels, pyramid_width
from keras_densepred.models.reppoints.head import RepPointsHead
from keras_densepred.models.reppoints.points import TRANSFORMS
from keras_densepred.models.reppoints.targets import (
    IGNORED,
    inside_images,
    nearest_points,
    overlapping_boxes,
)
from keras_densepred.models.retinanet.losses import SigmoidFocalLoss
from keras_densepred.necks.fpn import FeaturePyramid
from keras_densepred.ops.boxes import clip_boxes, smooth_l1
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any

_BETA = 0.11  # of smooth L1
_BOX_UNIT = 4.0  # strides: boxes are compared in these
_WEIGHTS = {"init_boxes": 0.5, "refined_boxes": 1.0}


@keras.saving.register_keras_serializable(package="keras_densepred")
class RepPoints(DenseDetector, keras.Model):
    """A one-stage detector without anchors: nine points stand for an object.

    As MMDetection's `reppoints_moment_r50_fpn`, with which the MSFM paper is measured (Table 4).
    Padding of a batch is background: what is found there would reach into the image. With heights
    and widths, `"image_sizes"` (B, 2), among the targets of `fit` it teaches nothing, as in
    MMDetection, which predicts images without padding.

    Args:
        backbone: a pyramid, or a backbone with P3 to P5, around which an FPN is put (P3 to P7, P6
            from the backbone's P5, 256 channels).
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        head_width: channels of the head; by default the pyramid's (256 in the paper).
        head_depth: convolutions of each tower.
        transform: `"moment"`, `"minmax"` or `"partial_minmax"`, see `points_to_boxes`.
        head_norm: whether the towers, and the FPN if it is put here, have group norms instead of
            biases.
        head_initializer: Keras initializer of the hidden kernels of the head; by default
            N(0, 0.01) at 256 channels. A He initializer learns faster from random weights.
        prediction_decoder: layer from boxes and scores to detections; by default per-class
            suppression at 0.5, scores from 0.05, 100 boxes.
        dtype: dtype policy of the head; by default the backbone's.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` is no pyramid or is channels_first, or an argument is out of
            range.

    Example:
        backbone = keras_densepred.ResNetBackbone.from_preset("resnet50")
        model = keras_densepred.models.RepPoints(backbone, num_classes=80)
        model.compile()
        model.fit(images, {"boxes": boxes, "labels": labels})
    """

    optional_target_keys = ("image_sizes",)

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        head_width: int | None = None,
        head_depth: int = 3,
        transform: str = "moment",
        head_norm: bool = False,
        head_initializer: Any = None,
        prediction_decoder: keras.layers.Layer | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        _check(num_classes, head_width, head_depth, transform)

        def neck(backbone: keras.Model) -> keras.Model:
            return FeaturePyramid(
                backbone, 256, 3, 7, extra_levels="conv_on_c5", group_norm=head_norm
            )

        # === Layers ===
        backbone = as_pyramid(backbone, type(self).__name__, neck)
        dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        width = pyramid_width(backbone) if head_width is None else head_width
        head = RepPointsHead(
            *(num_classes, width, head_depth, transform, head_norm, head_initializer),
            dtype=dtype,
            name="head",
        )

        # === Functional model ===
        images = keras.Input(image_shape(backbone), name="images")
        levels = pyramid_levels(backbone)
        parts = [
            head(feature, stride=2**level)
            for feature, level in zip(backbone(images).values(), levels, strict=True)
        ]
        names = ("classification", *_WEIGHTS)
        outputs = {
            name: keras.layers.Concatenate(axis=1, name=name, dtype="float32")(list(part))
            for name, part in zip(names, zip(*parts, strict=True), strict=True)
        }
        super().__init__(inputs=images, outputs=outputs, **kwargs)

        # === Config ===
        self._set_detector(
            backbone,
            num_classes,
            bounding_box_format,
            dtype,
            losses=("classification_loss", "init_boxes_loss", "refined_boxes_loss"),
        )
        self.head_width = width
        self.head_depth = head_depth
        self.transform = transform
        self.head_norm = head_norm
        self.head_initializer = head.hidden_initializer
        self.pyramid_levels = levels
        self.head = head
        self.classification_loss = SigmoidFocalLoss()
        self._prediction_decoder = prediction_decoder or NonMaxSuppression(
            bounding_box_format, from_logits=False
        )

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """SGD with rate 0.01 and weight decay 1e-4: MMDetection's for batch 16."""
        return keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=1e-4)

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`."""
        return axes_of(self.head.logits.weights, ClassAxis())

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Tensor],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """Focal loss, and smooth L1 of both stages' boxes, over the positives of each stage.

        Section 3.3 of the paper; an image without positives counts as having one.
        """
        boxes, labels = targets["boxes"], targets["labels"]
        height, width = ops.shape(images)[1:3]
        points, level_of = grid_points(height, width, self.pyramid_levels)
        sizes = targets.get("image_sizes")
        if sizes is None:
            sizes = ops.broadcast_to(ops.stack(ops.shape(images)[1:3]), (ops.shape(images)[0], 2))
        inside = inside_images(points, sizes)
        strides = ops.power(2.0, ops.cast(level_of, "float32"))[:, None]
        owners = {
            "init_boxes": nearest_points(
                points, level_of, self.pyramid_levels, boxes, labels, inside
            ),
            "refined_boxes": overlapping_boxes(
                ops.stop_gradient(outputs["init_boxes"]), boxes, labels, inside
            ),
        }
        losses, normalizer = {}, None
        for name, owner in owners.items():
            positive = ops.cast(owner >= 0, "float32")
            normalizer = loss_normalizer(ops.sum(ops.maximum(ops.sum(positive, axis=1), 1.0)))
            own = ops.take_along_axis(boxes, ops.maximum(owner, 0)[..., None], axis=1)
            difference = smooth_l1((outputs[name] - own) / (_BOX_UNIT * strides), _BETA)
            # Where there is no object, boxes of padding may give anything.
            difference = ops.where(owner >= 0, difference, 0.0)
            losses[f"{name}_loss"] = _WEIGHTS[name] * ops.sum(difference) / normalizer
        owner = owners["refined_boxes"]
        label = ops.take_along_axis(labels, ops.maximum(owner, 0), axis=1)
        label = ops.where(owner >= 0, label, owner)
        is_class = label[..., None] == ops.arange(self.num_classes, dtype="int32")
        losses["classification_loss"] = self.classification_loss(
            ops.cast(is_class, "float32"),
            outputs["classification"],
            sample_weight=ops.cast(owner != IGNORED, "float32") / normalizer,
        )
        return losses

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = ops.shape(images)[1:3]
        boxes = clip_boxes(outputs["refined_boxes"], height, width)
        return boxes, ops.sigmoid(outputs["classification"])


def _check(num_classes: int, head_width: int | None, head_depth: int, transform: str) -> None:
    require_positive(num_classes=num_classes, head_width=head_width, head_depth=head_depth)
    if transform not in TRANSFORMS:
        raise ValueError(f"`transform` must be one of {TRANSFORMS}, got {transform!r}.")
