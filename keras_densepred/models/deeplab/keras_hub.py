"""DeepLabv3 and v3+ on KerasHub: `keras_hub.models.DeepLabV3ImageSegmenter` on our backbones."""

import math
from typing import Any

import keras
import keras_hub

from keras_densepred.backbones.saved_preset import BackboneClass
from keras_densepred.models.hub_task import HubTask
from keras_densepred.models.pyramid import image_shape, share_batch_norms
from keras_densepred.models.segmenter import Segmenter, check_backbone

# KerasHub's DeepLabV3ImageSegmenter.
_ATROUS_RATES = (6, 12, 18)
_LOW_LEVEL_FILTERS = 48


def as_deeplab_backbone(backbone: keras.Model, plus: bool = True) -> keras.Model:
    """KerasHub's DeepLab encoder and decoder around a pyramid backbone.

    Args:
        backbone: with `pyramid_outputs` P5, and P2 or P3 for `plus`. KerasHub up-samples by fixed
            factors and reads the stride of a level from its name, which is right for all of
            keras_densepred's backbones; images must be multiples of 32.
        plus: whether to add DeepLabv3+'s low-level features, from P2 where there is one.

    Returns:
        A `keras_hub.models.DeepLabV3Backbone` with maps of 256 channels at the images' size.
    """
    low = next((level for level in ("P2", "P3") if level in backbone.pyramid_outputs), None)
    return keras_hub.models.DeepLabV3Backbone(
        image_encoder=backbone,
        spatial_pyramid_pooling_key="P5",
        upsampling_size=2 ** (5 - int(low[1:])) if plus and low else 8,
        dilation_rates=list(_ATROUS_RATES),
        low_level_feature_key=low if plus else None,
        projection_filters=_LOW_LEVEL_FILTERS,
        image_shape=image_shape(backbone),
        dtype=backbone.dtype_policy,
    )


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeepLabV3KerasHub(Segmenter, HubTask, keras_hub.models.DeepLabV3ImageSegmenter):
    """KerasHub's DeepLabv3 or v3+ on a pyramid backbone: logits, trained on integer masks.

    Where `keras_hub.models.DeepLabV3ImageSegmenter` of keras-hub 0.32.0 differs: it compiles with
    categorical cross-entropy on one-hot masks and knows no ignored pixels; with `activation=
    "softmax"` a sparse loss fails on PyTorch (keras 3.15.1, see `IgnoreCrossentropy`), so there is
    no such argument here; its `fit` takes no generator.

    Input: images `(batch, height, width, 3)`, height and width multiples of 32. Output: logits
    `(batch, height, width, num_classes)` in the compute dtype.

    Args:
        backbone: a pyramid backbone with P5, and P2 or P3 for `plus`; or a
            `keras_hub.models.DeepLabV3Backbone`.
        num_classes: C, the background included where it is a class.
        plus: whether to build DeepLabv3+ around a pyramid backbone; otherwise v3.
        preprocessor: a `keras_hub` preprocessor, or `None` for images that are ready.
        **kwargs: arguments of `keras_hub.models.Task`, such as `name`.

    Raises:
        ValueError: if `backbone` lacks a level or is channels_first.
    """

    backbone_cls = BackboneClass(keras_hub.models.DeepLabV3Backbone)

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        plus: bool = True,
        preprocessor: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(backbone, keras_hub.models.DeepLabV3Backbone):
            check_backbone(backbone, num_classes, ("P5",))
            backbone = as_deeplab_backbone(backbone, plus)
        super().__init__(backbone, num_classes, preprocessor=preprocessor, **kwargs)
        share_batch_norms(self, backbone)
        self.plus = plus

    @property
    def size_divisor(self) -> int:
        """Height and width of images must be multiples of it: the host up-samples by factors."""
        return math.lcm(super().size_divisor, 32)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Logits; without `training` as in prediction.

        KerasHub's pooling (0.32.0) resizes with `keras.layers.Resizing`, which Keras (3.15.1) takes
        to be in training unless told otherwise, together with all layers that are called after it:
        a plain call would move the statistics of their batch norms.
        """
        return super().call(inputs, training=bool(training), mask=mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "plus": self.plus}
