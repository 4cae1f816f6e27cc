"""YOLOv8 on KerasCV: `keras_cv.models.YOLOV8Detector` on our backbones, its faults corrected."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.models.compiling import saved_arguments
from keras_densepred.models.decoding import NonMaxSuppression

require("tensorflow", "tensorflow")  # keras-cv 0.9.0 imports it on every backend
keras_cv = require("keras_cv", "cv")

Tensor = Any

LEVELS = 3
CLASS_PRIOR = 0.01  # probability that a class starts with everywhere


@keras.saving.register_keras_serializable(package="keras_densepred")
class YOLOV8KerasCV(keras_cv.models.YOLOV8Detector):
    """YOLOv8: path-aggregation neck, no anchors, task-aligned assignment, as a KerasCV task.

    The same batches and predictions as `YOLOv3Detector`. Where
    `keras_cv.models.YOLOV8Detector` of keras-cv 0.9.0 differs: it takes labels under `"classes"`;
    `train_on_batch` and `predict_on_batch` fail; on PyTorch its decoder needs torchvision; its
    class loss is a mean over the classes instead of their sum; every class starts at probability
    0.5; under a global mixed precision policy training fails on TensorFlow; a compiled
    model does not compile again when loaded.

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
        # keras-cv 0.9.0 starts at 0.5: with thousands of places the class loss is all there is.
        prior = -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR)
        for number in range(1, LEVELS + 1):
            bias = self.get_layer(f"yolo_v8_head_{number}_class_3_conv").bias
            bias.assign(keras.ops.full(bias.shape, prior))

    def compile(self, optimizer: Any = "auto", metrics: None = None, **kwargs: Any) -> None:
        """Configures training with CIoU and binary cross-entropy, weighed 7.5 and 0.5.

        Args:
            optimizer: a Keras optimizer, or `"auto"` for AdamW with learning rate 1e-3 and weight
                decay 5e-4.
            metrics: not taken; average precision is computed by `keras_densepred.metrics`.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: if `metrics` or `loss` is given.
        """
        if metrics or "loss" in kwargs:
            raise ValueError(
                "YOLOV8KerasCV takes no `metrics` and no `loss` in compile(): evaluate with "
                "keras_densepred.metrics.CocoEvaluation."
            )
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.AdamW(1e-3, weight_decay=5e-4)
        super().compile(
            box_loss="ciou",
            classification_loss="binary_crossentropy",
            # keras-cv 0.9.0 takes the mean over the classes where YOLOv8 takes their sum.
            classification_loss_weight=0.5 * self.num_classes,
            optimizer=optimizer,
            **kwargs,
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as when it was saved, see `saved_arguments`."""
        # keras-cv 0.9.0: the CIoU loss forgets its box format in its config.
        config = {name: value for name, value in config.items() if name != "loss"}
        self.compile(**saved_arguments(config))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, *args: Any) -> Any:
        """As Keras'."""
        # keras-cv 0.9.0 unpacks exactly (x, y), and train_on_batch passes three.
        return keras.Model.train_step(self, *args)

    def test_step(self, *args: Any) -> Any:
        """As Keras'."""
        return keras.Model.test_step(self, *args)

    def predict_step(self, *args: Any) -> Any:
        """Keras' predict step, then decoding; JAX passes (state, data), the others (data,)."""
        # keras-cv 0.9.0 takes the data for the images; in predict_on_batch they are a tuple.
        outputs = keras.Model.predict_step(self, *args)
        images, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        if isinstance(outputs, tuple):
            return self.decode_predictions(outputs[0], images), outputs[1]
        return self.decode_predictions(outputs, images)

    def compute_loss(
        self,
        x: Tensor,
        y: dict[str, Tensor],
        y_pred: dict[str, Tensor],
        sample_weight: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """KerasCV's loss, divided by the sum of the assignment's scores.

        Args:
            x: (B, H, W, 3) images.
            y: `"boxes"` (B, M, 4) in `bounding_box_format` and `"labels"` (B, M), or KerasCV's
                `"classes"`, padded with -1.
            y_pred: the model's outputs.
            sample_weight: not taken.
            **kwargs: as in `keras.Model.compute_loss`.

        Returns:
            Scalar loss.

        Raises:
            ValueError: if `sample_weight` is given.
        """
        if sample_weight is not None:
            raise ValueError("YOLOV8KerasCV weighs places itself: fit without `sample_weight`.")
        classes = y["labels"] if "labels" in y else y["classes"]
        with _float32():
            return super().compute_loss(
                x, {"boxes": y["boxes"], "classes": classes}, y_pred, **kwargs
            )

    def decode_predictions(self, pred: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """Final detections from raw outputs, as `YOLOv3Detector.decode_predictions` gives them."""
        with _float32():
            return super().decode_predictions(pred, images)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "name": self.name}


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
