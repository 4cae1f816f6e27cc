"""RetinaNet on KerasCV: `keras_cv.models.RetinaNet` with the paper's anchors, losses and heads."""

from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.models.retinanet_core import (
    RetinaNetCore,
    as_detection_pyramid,
    build_heads,
    predict_levels,
)

require("tensorflow", "tensorflow")  # keras-cv 0.9.0 imports it on every backend
keras_cv = require("keras_cv", "cv")

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_densepred")
class RetinaNetKerasCV(RetinaNetCore, keras_cv.models.RetinaNet):
    """RetinaNet ("Focal Loss for Dense Object Detection") as a KerasCV task.

    The same network, targets, losses and decoding as `RetinaNetKerasHub`, weight for weight, under
    KerasCV's class and with its names of the raw outputs (`"box"`, `"classification"`).

    Where `keras_cv.models.RetinaNet` of keras-cv 0.9.0 differs: it takes levels P3 to P5 only and
    puts its FPN on them, and a `feature_pyramid` of one's own is lost in saving; its FPN reports
    the size of P5 for P6 and P7, so images of fixed size fail; heads have 3 convolutions instead
    of the paper's 4; anchors are clipped to the image; deltas are divided by 0.1 and 0.2; a batch
    without boxes has no loss; decoding is class-agnostic from score 0.5 and needs torchvision on
    PyTorch.

    Args:
        backbone: `keras_densepred.DetectionPyramid` (the heads run on its levels, no FPN), or a
            pyramid backbone with `pyramid_outputs` P3 to P5, around which KerasHub's FPN
            (P3 to P7, 256 channels) is put.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        head_width: filters of each head convolution; by default the pyramid's channels.
        head_depth: hidden convolutions of each head.
        prediction_decoder: layer from boxes and logits to detections; by default per-class
            suppression at 0.5, scores from 0.05, 100 boxes.
        dtype: dtype policy of the heads; by default the backbone's.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` is no pyramid or is channels_first.
    """

    box_output = "box"
    classification_output = "classification"

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        bounding_box_format: str = "xyxy",
        head_width: int | None = None,
        head_depth: int = 4,
        prediction_decoder: keras.layers.Layer | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        # === Layers ===
        backbone = as_detection_pyramid(backbone)
        head_dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        images = keras.Input(backbone.image_shape, name="images")
        features = backbone(images)
        width = head_width or next(iter(features.values())).shape[-1]
        box_head, classification_head = build_heads(num_classes, width, head_depth, head_dtype)

        # === Functional model ===
        outputs = predict_levels(
            features,
            num_classes,
            box_head,
            classification_head,
            self.box_output,
            self.classification_output,
        )
        # Past keras_cv.models.RetinaNet.__init__, which takes no pyramid of five levels.
        keras_cv.models.Task.__init__(self, inputs=images, outputs=outputs, **kwargs)

        # === Config ===
        self.backbone = backbone
        self.num_classes = num_classes
        self.bounding_box_format = bounding_box_format
        self.head_width = width
        self.head_depth = head_depth
        self.head_dtype = head_dtype
        self.pyramid_levels = tuple(range(backbone.min_level, backbone.max_level + 1))
        self.box_head = box_head
        self.classification_head = classification_head
        self._prediction_decoder = prediction_decoder or self.default_decoder(bounding_box_format)

    def train_step(self, *args: Any) -> Any:
        """As Keras'."""
        # keras-cv 0.9.0 unpacks exactly (x, y), and train_on_batch passes three.
        return keras.Model.train_step(self, *args)

    def test_step(self, *args: Any) -> Any:
        """As Keras'."""
        return keras.Model.test_step(self, *args)

    def compute_loss(
        self,
        x: Tensor,
        y: dict[str, Tensor],
        y_pred: dict[str, Tensor],
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """As `RetinaNetKerasHub.compute_loss`; KerasCV's key `"classes"` is taken for labels."""
        if "classes" in y:
            y = {"boxes": y["boxes"], "labels": y["classes"]}
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x: Tensor, y: Any, y_pred: Any, sample_weight: Any = None) -> dict:
        """The loss parts; KerasCV's own would decode boxes for the metrics compile() refuses."""
        return keras.Model.compute_metrics(self, x, y, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "bounding_box_format": self.bounding_box_format,
            "head_width": self.head_width,
            "head_depth": self.head_depth,
            "prediction_decoder": keras.saving.serialize_keras_object(self.prediction_decoder),
            "dtype": keras.saving.serialize_keras_object(self.head_dtype),
            "name": self.name,
        }
