"""YOLOv8 on KerasCV: `keras_cv.models.YOLOV8Detector` on our backbones, its faults corrected."""

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_densepred._optional import require
from keras_densepred.faults import require_positive
from keras_densepred.models.anchors import grid_points
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.decoding import NonMaxSuppression
from keras_densepred.models.detector import DenseDetector
from keras_densepred.models.keras_cv import KerasCVDetector
from keras_densepred.models.pyramid import check_levels, share_batch_norms
from keras_densepred.ops.boxes import clip_boxes

if TYPE_CHECKING:
    import keras_cv
else:
    require("tensorflow", "tensorflow")  # keras-cv 0.9.0 imports it on every backend
    keras_cv = require("keras_cv", "cv")

Tensor = Any

LEVELS = 3
BINS = 16  # of each of the four distances from a cell's centre to a box
CLASS_PRIOR = 0.01  # probability that a class starts with everywhere


class _LossParts(keras.Model):
    """Comes after the host among the bases: its `compute_loss` ends here, and gives the parts."""

    def compute_loss(
        self,
        x: Tensor,
        y: dict[str, Tensor],
        y_pred: dict[str, Tensor],
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        return {
            f"{part}_loss": loss(y[part], y_pred[part], sample_weight[part])
            for part, loss in (("box", self.box_loss), ("class", self.classification_loss))
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class YOLOV8KerasCV(KerasCVDetector, DenseDetector, keras_cv.models.YOLOV8Detector, _LossParts):
    """YOLOv8: path-aggregation neck, no anchors, task-aligned assignment, as a KerasCV task.

    The same batches and predictions as `YOLOv3Detector`. Where
    `keras_cv.models.YOLOV8Detector` of keras-cv 0.9.0 differs: it takes labels under `"classes"`;
    `train_on_batch` and `predict_on_batch` fail; on PyTorch its decoder needs torchvision; its
    class loss is a mean over the classes instead of their sum; every class starts at probability
    0.5; under a global mixed precision policy training fails on TensorFlow; a compiled
    model does not compile again when loaded, and its CIoU loss forgets its box format.

    Neck and heads compute in float32 whatever the policy. On TensorFlow all images of a session
    have one size: the host makes its grid from a static shape.

    Args:
        backbone: a pyramid backbone with `pyramid_level_inputs` P3 to P5, channels_last.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        fpn_depth: depth of the neck's blocks, 1 to 3.
        label_encoder: KerasCV's assignment of objects, by default with ten candidates a box.
        prediction_decoder: layer from boxes and scores to detections; by default per-class
            suppression at 0.7, scores from 0.05, 100 boxes.
        **kwargs: arguments of `keras.Model`, such as `name`.
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        fpn_depth: int = 2,
        label_encoder: Any = None,
        prediction_decoder: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        require_positive(num_classes=num_classes)
        check_levels(backbone, getattr(backbone, "pyramid_level_inputs", ()), "YOLOV8KerasCV")
        decoder = prediction_decoder or NonMaxSuppression(
            bounding_box_format, from_logits=False, iou_threshold=0.7
        )
        with _float32():
            super().__init__(
                backbone,
                num_classes,
                bounding_box_format,
                fpn_depth,
                label_encoder,
                decoder,
                **kwargs,
            )
        share_batch_norms(self, backbone)
        self._set_detector(
            backbone, num_classes, bounding_box_format, "float32", ("box_loss", "class_loss")
        )
        self.box_loss = keras_cv.losses.CIoULoss(bounding_box_format="xyxy", reduction="sum")
        self.box_loss_weight = 7.5
        self.classification_loss = keras.losses.BinaryCrossentropy(reduction="sum")
        # keras-cv 0.9.0 takes the mean over the classes where YOLOv8 takes their sum.
        self.classification_loss_weight = 0.5 * num_classes
        # keras-cv 0.9.0 starts at 0.5: with thousands of places the class loss is all there is.
        prior = -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR)
        for number in range(1, LEVELS + 1):
            bias = self.get_layer(f"yolo_v8_head_{number}_class_3_conv").bias
            bias.assign(ops.full(bias.shape, prior))

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Detector.class_axes`."""
        last = [weight for weight in self.weights if "_class_3_conv/" in weight.path]
        return axes_of(last, ClassAxis())

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """AdamW with learning rate 1e-3 and weight decay 5e-4."""
        return keras.optimizers.AdamW(1e-3, weight_decay=5e-4)

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Tensor],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """`"box_loss"`, CIoU times 7.5, and `"class_loss"`, cross-entropy times 0.5.

        Divided by the sum of the assignment's scores.
        """
        height, width = ops.shape(images)[1:3]
        boxes = keras.utils.bounding_boxes.convert_format(
            targets["boxes"], "xyxy", self.bounding_box_format, height=height, width=width
        )
        is_object = targets["labels"][..., None] >= 0
        y = {"boxes": ops.where(is_object, boxes, -1.0), "classes": targets["labels"]}
        with _float32():
            return keras_cv.models.YOLOV8Detector.compute_loss(self, images, y, outputs)

    def boxes_and_scores(self, outputs: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        # The host's decoding, but for its grid, whose size is read from a tensor: `torch.export`
        # has no value there (keras-cv 0.9.0).
        height, width = ops.shape(images)[1:3]
        points, levels = grid_points(height, width, range(3, 3 + LEVELS))
        stride = ops.cast(2**levels, "float32")[:, None]
        boxes = outputs["boxes"]
        bins = ops.reshape(boxes, (-1, ops.shape(boxes)[1], 4, BINS))
        distances = ops.sum(ops.softmax(bins) * ops.arange(BINS, dtype="float32"), axis=-1) * stride
        centres = points + 0.5 * stride
        corners = [centres - distances[..., :2], centres + distances[..., 2:]]
        return clip_boxes(ops.concatenate(corners, axis=-1), height, width), outputs["classes"]


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Layers made inside compute in float32.

    keras-cv 0.9.0 makes a layer in its loss, which under a global mixed policy turns logits to half
    precision that is then multiplied by float32: TensorFlow refuses.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
