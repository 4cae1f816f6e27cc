"""RetinaNet on KerasCV: `keras_cv.models.RetinaNet` with the paper's anchors, losses and heads."""

from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.models.retinanet.model import RetinaNetCore

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
        backbone: `keras_densepred.DetectionPyramid` or a BiCSNet backbone (the heads run on its
            levels, no FPN), or a pyramid backbone with `pyramid_outputs` P3 to P5, around which
            KerasHub's FPN (P3 to P7, 256 channels) is put.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction, a name of
            `keras.utils.bounding_boxes.convert_format`.
        head_width: filters of each head convolution; by default the pyramid's channels.
        head_depth: hidden convolutions of each head.
        prediction_decoder: layer from boxes and logits to detections; by default per-class
            suppression at 0.5, scores from 0.05, 100 boxes.
        dtype: dtype policy of the heads; by default the backbone's.
        head_initializer: Keras initializer of the hidden head kernels; by default RetinaNet's
            N(0, 0.01) at 256 filters. `"he_normal"` trains faster from random weights.
        head_activation: activation of the heads, `"relu"` or `"swish"` (BiCSNet, strategy B).
        head_norm: whether hidden head convolutions have batch norms, of each level its own, as in
            BiCSNet and SpineNet.
        head_separable: whether head convolutions are separable, as in BiCSNet-Lite.
        anchor_scale: side of the smallest square anchor of a level over its stride; 4, in BiCSNet
            up to BiCSNet-94 3.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` is no pyramid or is channels_first.
    """

    box_output = "box"
    classification_output = "classification"
    # keras_cv.models.RetinaNet.__init__ takes no pyramid of five levels (keras-cv 0.9.0).
    host_task = keras_cv.models.Task

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
