"""DeepLabv3+ on KerasCV: `keras_cv.models.DeepLabV3Plus` on our backbones, giving logits."""

from typing import TYPE_CHECKING, Any

import keras

from keras_densepred._optional import require
from keras_densepred.layers.upsampling import UpsampleToImage
from keras_densepred.models.pyramid import image_shape, share_batch_norms
from keras_densepred.models.segmenter import Segmenter, check_backbone

if TYPE_CHECKING:
    import keras_cv
else:
    require("tensorflow", "tensorflow")  # keras-cv 0.9.0 imports it on every backend
    keras_cv = require("keras_cv", "cv")

_HIGH_LEVEL = "P5"
_ATROUS_RATES = (6, 12, 18)
_HEAD_FILTERS = 256


@keras.saving.register_keras_serializable(package="keras_densepred")
class DeepLabV3PlusKerasCV(Segmenter, keras_cv.models.DeepLabV3Plus):
    """KerasCV's DeepLabv3+ on a pyramid backbone: logits, trained on integer masks.

    KerasCV's atrous spatial pyramid pooling on P5, up-sampled to the size of P2 (P3 where the
    backbone has no P2) and concatenated with it, a 1x1 convolution of 256 channels with norm, and
    logits at the images' size.

    Where `keras_cv.models.DeepLabV3Plus` of keras-cv 0.9.0 differs: it takes P2 and P5 only and
    up-samples by 8 and by 4 whatever they are, so that images must be multiples of 32; it ends in
    a softmax, with which a sparse loss fails on PyTorch (keras 3.15.1, see `IgnoreCrossentropy`);
    it up-samples 256 channels before it makes the logits of them, which gives the same numbers for
    twelve times the memory.

    Input: images `(batch, height, width, 3)` as the backbone wants them. Output: logits `(batch,
    height, width, num_classes)`, float32.

    Args:
        backbone: a pyramid backbone with P5 and with P2 or P3.
        num_classes: C, the background included where it is a class.
        projection_filters: channels that the low-level features are reduced to.
        spatial_pyramid_pooling: layer in place of `keras_cv.layers.SpatialPyramidPooling`.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` lacks a level or is channels_first.
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        projection_filters: int = 48,
        spatial_pyramid_pooling: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        low = "P2" if "P2" in getattr(backbone, "pyramid_outputs", {}) else "P3"
        check_backbone(backbone, num_classes, (low, _HIGH_LEVEL))
        dtype = backbone.dtype_policy
        spatial_pyramid_pooling = spatial_pyramid_pooling or (
            keras_cv.layers.SpatialPyramidPooling(dilation_rates=_ATROUS_RATES, dtype=dtype)
        )

        # === Functional model ===
        images = keras.Input(image_shape(backbone), name="images")
        features = backbone(images)
        fine = _unit(features[low], projection_filters, "low_level_feature", dtype)
        stride = 2 ** int(low[1:])
        coarse = UpsampleToImage(32 // stride, name="encoder_output_upsampling", dtype=dtype)(
            spatial_pyramid_pooling(features[_HIGH_LEVEL]), fine
        )
        x = keras.layers.Concatenate(name="encoder_outputs", dtype=dtype)([coarse, fine])
        x = _unit(x, _HEAD_FILTERS, "segmentation_head", dtype)
        logits = keras.layers.Conv2D(
            num_classes,
            1,
            use_bias=False,
            data_format="channels_last",
            name="segmentation_output",
            dtype=dtype,
        )(x)
        outputs = UpsampleToImage(stride, name="upsampled_logits", dtype="float32")(logits, images)
        # Past keras_cv.models.DeepLabV3Plus.__init__, which takes no other levels than P2 and P5.
        keras_cv.models.Task.__init__(self, inputs=images, outputs=outputs, **kwargs)
        share_batch_norms(self, backbone)

        # === Config ===
        self.backbone = backbone
        self.num_classes = num_classes
        self.projection_filters = projection_filters
        self.spatial_pyramid_pooling = spatial_pyramid_pooling

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "projection_filters": self.projection_filters,
            "spatial_pyramid_pooling": keras.saving.serialize_keras_object(
                self.spatial_pyramid_pooling
            ),
        }


def _unit(x: Any, filters: int, name: str, dtype: Any) -> Any:
    """1x1 convolution, norm and activation, named as KerasCV names them."""
    x = keras.layers.Conv2D(
        filters,
        1,
        use_bias=False,
        data_format="channels_last",
        name=f"{name}_conv",
        dtype=dtype,
    )(x)
    x = keras.layers.BatchNormalization(name=f"{name}_norm", dtype=dtype)(x)
    return keras.layers.ReLU(name=f"{name}_relu", dtype=dtype)(x)
