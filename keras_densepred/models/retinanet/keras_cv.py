"""RetinaNet on KerasCV: `keras_cv.models.RetinaNet` with the paper's anchors, losses and heads."""

from typing import TYPE_CHECKING, Any

import keras

from keras_densepred._optional import require
from keras_densepred.models.keras_cv import KerasCVDetector
from keras_densepred.models.retinanet.model import RetinaNetBase

if TYPE_CHECKING:
    import keras_cv
else:
    require("tensorflow", "tensorflow")  # keras-cv 0.9.0 imports it on every backend
    keras_cv = require("keras_cv", "cv")


@keras.saving.register_keras_serializable(package="keras_densepred")
class RetinaNetKerasCV(KerasCVDetector, RetinaNetBase, keras_cv.models.RetinaNet):
    """`RetinaNet` as a KerasCV task: the same network, targets, losses and decoding.

    Its raw outputs have KerasCV's names, `"box"` and `"classification"`; targets may have KerasCV's
    key `"classes"` for `"labels"`.

    Where `keras_cv.models.RetinaNet` of keras-cv 0.9.0 differs: it takes levels P3 to P5 only and
    puts its FPN on them, and a `feature_pyramid` of one's own is lost in saving; its FPN reports
    the size of P5 for P6 and P7, so images of fixed size fail; heads have 3 convolutions instead
    of the paper's 4; anchors are clipped to the image; deltas are divided by 0.1 and 0.2; a batch
    without boxes has no loss; decoding is class-agnostic from score 0.5 and needs torchvision on
    PyTorch.

    Args:
        backbone: a pyramid, or a backbone with P3 to P5 for KerasHub's FPN, as in `RetinaNet`.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction.
        head_width: filters of each head convolution; by default the pyramid's channels.
        head_depth: hidden convolutions of each head.
        prediction_decoder: layer from boxes and logits to detections.
        dtype: dtype policy of the heads; by default the backbone's.
        head_initializer: Keras initializer of the hidden head kernels.
        head_activation: activation of the heads, `"relu"` or `"swish"`.
        head_norm: whether hidden head convolutions have batch norms, of each level its own.
        head_separable: whether head convolutions are separable.
        anchor_scale: side of the smallest square anchor of a level over its stride.
        assigner: `"max_iou"` or `"atss"`.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` is no pyramid or is channels_first.
    """

    def _make_model(self, **kwargs: Any) -> None:
        # keras_cv.models.RetinaNet.__init__ takes no pyramid of five levels (keras-cv 0.9.0).
        keras_cv.models.Task.__init__(self, **kwargs)
